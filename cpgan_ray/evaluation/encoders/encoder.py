"""Encoders as files: torch.export programs (`.pt2`) and ONNX models (`.onnx`), our own and those of other people.

An encoder takes the values of the store, (B, C, H, W): uint8 pictures or float32 signals. It returns one or several arrays (B,
...), which are flattened and concatenated to codes (B, k). If an encoder takes float32 pictures, they are scaled to [-1, 1].
"""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpgan_ray.common.ownership import is_own, owner_key
from cpgan_ray.config import AttackConfig, EncoderConfig
from cpgan_ray.data import Dataset
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.repeats import check_repeats
from cpgan_ray.evaluation.encoders.runners import KINDS, Runner, open_runner
from cpgan_ray.evaluation.encoders.sandbox import Arrays, ProgramError, RefusedError, Sandbox, SandboxError, array_sizes, one_line
from cpgan_ray.evaluation.protocol import Codes

BLOCK = 250
MAX_EXACT_INT = 2**24
"""Integers up to this size are exact in float32."""
PRELOAD = {".pt2": "torch", ".onnx": "cpgan_ray.evaluation.encoders.onnx_models"}


class Encoder:
    """An open encoder. `outputs`: names and sizes of the outputs that are attacked, known after the first call."""

    def __init__(
        self, path: Path, runner: Runner, image_shape: tuple[int, int, int], *, raw: bool, settings: EncoderConfig
    ) -> None:
        self.path, self.runner, self.image_shape = path, runner, image_shape  # (H, W, C)
        self.raw, self.settings = raw, settings
        self.outputs: list[tuple[str, int]] = []
        self.left_out: list[str] = []
        self.repeats: dict[str, Any] = {}

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures (B, C, H, W) as stored -> codes (B, k) float32.

        Raises: InputError if the program fails, or does not return one row of finite numbers per picture.
        """
        x = pictures if self.raw or pictures.dtype != np.uint8 else pictures.astype(np.float32) / np.float32(127.5) - np.float32(1)
        failure = f"fails on {len(pictures)} pictures"
        with as_input_error(
            f"encoder {self.path}", refused="is refused", stopped=failure, failed=failure, remedy="export a dynamic batch"
        ):
            outputs = self.runner.run(np.ascontiguousarray(x))
        codes = self.concatenate(outputs, len(pictures))
        if not np.isfinite(codes).all():
            raise InputError(f"encoder {self.path} returns codes that are not finite")
        return codes

    def concatenate(self, outputs: Arrays, rows: int) -> np.ndarray:
        """The selected outputs side by side, one row per picture."""
        selected = self.settings.outputs or tuple(outputs)
        for name in selected:
            if name not in outputs:
                choices = ", ".join(one_line(choice, 80) for choice in list(outputs)[:50]) or "none"
                raise InputError(f"encoder {self.path} has no output {name!r}: choose --encoder.outputs from {choices}")
        for name in selected:
            if outputs[name].ndim < 1 or outputs[name].shape[0] != rows:
                shape = outputs[name].shape
                raise InputError(
                    f"encoder {self.path} returns shape {shape} for {rows} pictures in output {one_line(name, 80)!r}: it must be "
                    "(B, k), one row per picture; select other outputs with --encoder.outputs"
                )
        sizes = [(name, size) for name, size in array_sizes({name: outputs[name] for name in selected})]
        if self.outputs and sizes != self.outputs:
            raise InputError(
                f"encoder {self.path} returns codes of different sizes for different batches: export an encoder with a fixed size"
            )
        if not sum(size for _, size in sizes):
            raise InputError(f"encoder {self.path} returns no numbers: it must return codes (B, k)")
        self.outputs, self.left_out = sizes, [name for name in outputs if name not in selected]
        return np.concatenate([self.as_float32(name, outputs[name].reshape(rows, -1)) for name in selected], axis=1)

    def as_float32(self, name: str, values: np.ndarray) -> np.ndarray:
        """Convert an output to float32.

        Raises: InputError if float32 cannot represent its values.
        """
        output = f"encoder {self.path}: output {one_line(name, 80)!r}"
        if values.dtype.kind in "iu" and values.size and max(int(values.max()), -int(values.min())) > MAX_EXACT_INT:
            raise InputError(
                f"{output} holds integers above 2^24, which float32 cannot represent: scale them, or select other outputs"
            )
        with np.errstate(over="ignore"):
            converted = values.astype(np.float32)
        if values.dtype == np.float64 and len(values) > 1:
            with np.errstate(invalid="ignore", over="ignore"):
                error, spread = np.abs(values - converted).max(axis=0), values.std(axis=0)
            if np.any(error > 1e-3 * spread) and np.any(values != values[:1]):
                raise InputError(f"{output} holds float64 values whose differences are lost in float32: export it as float32")
        return converted

    def close(self) -> None:
        """End its process, if it has its own."""
        self.runner.close()

    def description(self) -> dict[str, Any]:
        """The report's entry about what was attacked."""
        return {
            "file": self.path.name,
            "kind": KINDS[self.path.suffix],
            "outputs": [{"name": one_line(name, 80), "size": size} for name, size in self.outputs],
            "left_out": [one_line(name, 80) for name in self.left_out],
            "stochastic": self.settings.stochastic,
            "repeats": self.repeats,
        }


def open_encoder(path: Path, settings: EncoderConfig | None = None) -> Encoder:
    """Open the encoder of a file.

    Raises: InputError if the file is missing, is of neither kind, or does not take pictures.
    """
    settings = settings or EncoderConfig()
    if not path.is_file():
        raise InputError(f"encoder {path} is not a file: give a torch.export .pt2 or an ONNX file")
    if path.suffix not in KINDS:
        raise InputError(f"encoder {path} ends in {path.suffix!r}: give a torch.export .pt2 or an ONNX file")
    runner = open_program(path, what="encoder", settings=settings)
    try:
        if len(runner.inputs) != 1:
            raise InputError(f"encoder {path} takes {len(runner.inputs)} inputs: export one that takes only pictures (B, 3, H, W)")
        shape, dtype = runner.inputs[0]
        return Encoder(path, runner, _image_shape(path, shape), raw=_takes_raw(path, dtype), settings=settings)
    except InputError:
        runner.close()
        raise


def open_program(path: Path, *, what: str, settings: EncoderConfig) -> Runner:
    """Open a program: in this process if this user's own runs have written it, any other in a separate process.

    Raises: InputError if the file is damaged, or contains anything that could execute code.
    """
    unreadable = f"cannot be read as {KINDS[path.suffix]}"
    with as_input_error(
        f"{what} {path}", refused="is not loaded", stopped="cannot be opened", failed=unreadable, remedy="export it again"
    ):
        if is_own(path):
            return open_runner(path, stochastic=settings.stochastic, trusted=True)
        return open_in_sandbox(path, settings)


@contextlib.contextmanager
def as_input_error(program: str, *, refused: str, stopped: str, failed: str, remedy: str) -> Iterator[None]:
    """Convert the errors of a program into an InputError that says which one was refused, was stopped at a limit, or failed."""
    try:
        yield
    except RefusedError as e:
        raise InputError(f"{program} {refused}: {e}") from e
    except SandboxError as e:
        raise InputError(f"{program} {stopped}: {e}") from e
    except ProgramError as e:
        raise InputError(f"{program} {failed} ({e}): {remedy}") from e


def open_in_sandbox(path: Path, settings: EncoderConfig) -> Runner:
    """Open a program in a separate process."""
    limits = {"timeout_s": settings.timeout_s, "memory_gb": settings.memory_gb}
    sandbox = Sandbox(**limits, threads=torch.get_num_threads(), preload=PRELOAD[path.suffix])
    try:
        reply, _ = sandbox.request({"path": str(path), "stochastic": settings.stochastic})
        inputs = tuple(
            (tuple(s if type(s) is int else "?" for s in shape), one_line(dtype, 40)) for shape, dtype in reply["inputs"]
        )
    except (KeyError, TypeError, ValueError) as e:
        sandbox.close()
        if isinstance(e, RefusedError):
            raise
        raise SandboxError("its process sent a malformed reply") from e
    except BaseException:
        sandbox.close()
        raise
    return Runner(inputs, lambda x: sandbox.request({}, {"x": x})[1], lambda: sandbox.close() and None)


def _image_shape(path: Path, shape: tuple[Any, ...]) -> tuple[int, int, int]:
    if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
        raise InputError(
            f"encoder {path} takes an input of shape {list(shape)[:10]}: it must be (B, C, H, W) with fixed C, H and W"
        )
    return (int(shape[2]), int(shape[3]), int(shape[1]))


def _takes_raw(path: Path, dtype: str) -> bool:
    """Whether it takes uint8 pictures; otherwise it takes float32 pictures in [-1, 1]."""
    if dtype not in ("uint8", "float32"):
        raise InputError(f"encoder {path} takes {dtype}: it must take uint8 pictures, or float32 pictures in [-1, 1]")
    return dtype == "uint8"


def encode_all(encoder: Encoder, dataset: Dataset, attacks: AttackConfig | None = None) -> Codes:
    """Codes of all splits, and of copies of the pictures that attacks are fitted on (see `code_sets`). Some pictures are encoded
    again as a check.

    The pictures of all sets are mixed, in an order that the author of the encoder cannot predict: if the codes depend on the number
    of earlier calls or on time, all sets are affected in the same way.

    Raises: InputError if the pictures have another size than the encoder takes, its codes are not (B, k) or not finite, or a
    picture gets another code when it is encoded again.
    """
    sets = code_sets(dataset)
    if dataset.train.image_shape != encoder.image_shape:
        stored, expected = dataset.train.image_shape, encoder.image_shape
        raise InputError(
            f"encoder {encoder.path} takes pictures of {expected}, the store has {stored}: set --data.image-size {expected[0]}, or "
            "choose the data set that it was made for"
        )

    def pictures(name: str, rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(sets[name].take(rows).transpose(0, 3, 1, 2))

    k = encoder.encode(pictures("train", np.arange(min(BLOCK, len(dataset.train))))).shape[1]
    sets = code_sets(dataset, attacks=attacks, k=k)
    rng = np.random.default_rng(_secret_seed(encoder.path))
    set_of_row = np.concatenate([np.full(len(code_set), number) for number, code_set in enumerate(sets.values())])
    rows = np.concatenate([np.arange(len(code_set)) for code_set in sets.values()])
    order = rng.permutation(len(rows))
    codes: dict[str, np.ndarray] = {}
    for start in range(0, len(order), BLOCK):
        batch = order[start : start + BLOCK]
        positions = [(name, np.flatnonzero(set_of_row[batch] == number)) for number, name in enumerate(sets)]
        parts = [(at, pictures(name, rows[batch[at]])) for name, at in positions]
        block = np.empty((len(batch), *parts[0][1].shape[1:]), parts[0][1].dtype)
        for at, part in parts:
            block[at] = part
        z = encoder.encode(block)
        if not codes:
            codes = {name: _empty_codes(encoder, len(code_set), len(order), z.shape[1]) for name, code_set in sets.items()}
        for name, at in positions:
            codes[name][rows[batch[at]]] = z[at]
    subject, stochastic = f"encoder {encoder.path}", encoder.settings.stochastic
    encoder.repeats = check_repeats(codes, pictures, encoder.encode, subject=subject, stochastic=stochastic, rng=rng)
    return codes


def _secret_seed(path: Path) -> int:
    """A seed that is the same each time this user attacks this file, and that nobody else can know."""
    key = owner_key() or secrets.token_bytes(32)
    return int.from_bytes(hashlib.sha256(key + path.read_bytes()).digest()[:16])


def _empty_codes(encoder: Encoder, rows: int, total: int, k: int) -> np.ndarray:
    """An array for `rows` codes.

    Raises: InputError if the codes of all `total` pictures exceed the memory limit.
    """
    limit_gb = encoder.settings.memory_gb
    if 4 * total * k > limit_gb * 2**30:
        raise InputError(
            f"encoder {encoder.path} returns {k} numbers per picture: codes of {total} pictures need "
            f"{4 * total * k / 2**30:.1f} GB, more than --encoder.memory-gb {limit_gb:g}: raise this limit"
        )
    return np.empty((rows, k), np.float32)

"""Encoders as files: torch.export programs (`.pt2`) and ONNX models (`.onnx`), ours and other people's.

An encoder takes what lies in the store, (B, C, H, W): uint8 pictures or float32 signals, and returns one array (B, ...) or several,
which are flattened and joined to codes (B, k). One that takes float32 pictures is taken to want them scaled to [-1, 1].
"""

import contextlib
import hashlib
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpgan_ray.common.ownership import is_own, owner_key
from cpgan_ray.config import EncoderConfig
from cpgan_ray.data import Dataset
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.repeats import check_repeats
from cpgan_ray.evaluation.encoders.runners import KINDS, Runner, open_runner
from cpgan_ray.evaluation.encoders.sandbox import Arrays, ProgramError, RefusedError, Sandbox, SandboxError, printable, split_arrays
from cpgan_ray.evaluation.protocol import Codes

BLOCK = 250
LARGEST_WHOLE = 2**24
"""Whole numbers up to here are exact in float32."""
PRELOAD = {".pt2": "torch", ".onnx": "cpgan_ray.evaluation.encoders.onnx_models"}


class Encoder:
    """An encoder, open. `outputs`: names and sizes of what is attacked, known after the first call."""

    def __init__(
        self, path: Path, runner: Runner, image_shape: tuple[int, int, int], *, raw: bool, settings: EncoderConfig
    ) -> None:
        self.path, self.runner, self.image_shape = path, runner, image_shape  # (H, W, C)
        self.raw, self.settings = raw, settings
        self.outputs: list[tuple[str, int]] = []
        self.left_out: list[str] = []
        self.repeats: dict[str, Any] = {}

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """(B, C, H, W) as stored -> float32 (B, k).

        Raises: InputError where the program fails, or what it returns is not one row per picture.
        """
        x = pictures if self.raw or pictures.dtype != np.uint8 else pictures.astype(np.float32) / np.float32(127.5) - np.float32(1)
        with self.named_errors(f"fails on {len(pictures)} pictures", "export a dynamic batch"):
            results = self.runner.run(np.ascontiguousarray(x))
        codes = self.join(results, len(pictures))
        if not np.isfinite(codes).all():
            raise InputError(f"encoder {self.path} answers codes that are not finite")
        return codes

    @contextlib.contextmanager
    def named_errors(self, what: str, remedy: str) -> Any:
        try:
            yield
        except RefusedError as e:
            raise InputError(f"encoder {self.path} is refused: {e}") from e
        except SandboxError as e:
            raise InputError(f"encoder {self.path} {what}: {e}") from e
        except ProgramError as e:
            raise InputError(f"encoder {self.path} {what} ({e}): {remedy}") from e

    def join(self, results: Arrays, rows: int) -> np.ndarray:
        """The chosen outputs side by side, one row per picture."""
        chosen = self.settings.outputs or tuple(results)
        for name in chosen:
            if name not in results:
                choices = ", ".join(printable(known, 80) for known in list(results)[:50]) or "none"
                raise InputError(f"encoder {self.path} has no output {name!r}: choose --encoder.outputs from {choices}")
        for name in chosen:
            if results[name].ndim < 1 or results[name].shape[0] != rows:
                shape = results[name].shape
                raise InputError(
                    f"encoder {self.path} answers {rows} pictures with shape {shape} in output {printable(name, 80)!r}: it must be "
                    "(B, k), a row per picture; choose others by --encoder.outputs"
                )
        outputs = [(name, size) for name, size in split_arrays({n: results[n] for n in chosen})]
        if self.outputs and outputs != self.outputs:
            raise InputError(
                f"encoder {self.path} answers with codes of other sizes from batch to batch: export one with a fixed size"
            )
        if not sum(size for _, size in outputs):
            raise InputError(f"encoder {self.path} answers with no numbers: it must return codes (B, k)")
        self.outputs, self.left_out = outputs, [name for name in results if name not in chosen]
        return np.concatenate([self.as_float32(name, results[name].reshape(rows, -1)) for name in chosen], axis=1)

    def as_float32(self, name: str, values: np.ndarray) -> np.ndarray:
        """Raises: InputError where float32 does not hold what is in them."""
        where = f"encoder {self.path}: output {printable(name, 80)!r}"
        if values.dtype.kind in "iu" and values.size and max(int(values.max()), -int(values.min())) > LARGEST_WHOLE:
            raise InputError(f"{where} holds whole numbers above 2^24, which float32 does not: scale them, or choose other outputs")
        with np.errstate(over="ignore"):
            converted = values.astype(np.float32)
        if values.dtype == np.float64 and len(values) > 1:
            with np.errstate(invalid="ignore", over="ignore"):
                lost, spread = np.abs(values - converted).max(axis=0), values.std(axis=0)
            if np.any(lost > 1e-3 * spread) and np.any(values != values[:1]):
                raise InputError(f"{where} holds float64 values that differ by less than float32 can tell: export it as float32")
        return converted

    def close(self) -> None:
        """End its process, if it has one of its own."""
        self.runner.close()

    def about(self) -> dict[str, Any]:
        """What a report says was attacked."""
        return {
            "file": self.path.name,
            "kind": KINDS[self.path.suffix],
            "outputs": [{"name": printable(name, 80), "size": size} for name, size in self.outputs],
            "left_out": [printable(name, 80) for name in self.left_out],
            "stochastic": self.settings.stochastic,
            "repeats": self.repeats,
        }


def open_encoder(path: Path, settings: EncoderConfig | None = None) -> Encoder:
    """Raises: InputError where the file is missing, is neither kind, or takes something else than pictures."""
    settings = settings or EncoderConfig()
    if not path.is_file():
        raise InputError(f"encoder {path} is no file: give a torch.export .pt2 or an ONNX file")
    if path.suffix not in KINDS:
        raise InputError(f"encoder {path} ends in {path.suffix!r}: give a torch.export .pt2 or an ONNX file")
    runner = open_program(path, what="encoder", settings=settings)
    try:
        if len(runner.inputs) != 1:
            raise InputError(f"encoder {path} takes {len(runner.inputs)} inputs: export one that takes pictures (B, 3, H, W) alone")
        shape, dtype = runner.inputs[0]
        return Encoder(path, runner, _image_shape(path, shape), raw=_takes_raw(path, dtype), settings=settings)
    except InputError:
        runner.close()
        raise


def open_program(path: Path, *, what: str, settings: EncoderConfig) -> Runner:
    """A program that this user's own runs have written, in this process; any other, in a process of its own.

    Raises: InputError where the file is damaged, or holds anything that could be made to run.
    """
    try:
        if is_own(path):
            return open_runner(path, stochastic=settings.stochastic, trusted=True)
        return open_apart(path, settings)
    except RefusedError as e:
        raise InputError(f"{what} {path} is not loaded: {e}") from e
    except ProgramError as e:
        raise InputError(f"{what} {path} cannot be read as {KINDS[path.suffix]} ({e}): export it again") from e
    except SandboxError as e:
        raise InputError(f"{what} {path} cannot be opened: {e}") from e


def open_apart(path: Path, settings: EncoderConfig) -> Runner:
    """A program in a process of its own."""
    limits = {"timeout_s": settings.timeout_s, "memory_gb": settings.memory_gb}
    sandbox = Sandbox(**limits, threads=torch.get_num_threads(), preload=PRELOAD[path.suffix])
    try:
        reply, _ = sandbox.ask({"path": str(path), "stochastic": settings.stochastic})
        inputs = tuple(
            (tuple(s if type(s) is int else "?" for s in shape), printable(dtype, 40)) for shape, dtype in reply["inputs"]
        )
    except (KeyError, TypeError, ValueError) as e:
        sandbox.close()
        if isinstance(e, RefusedError):
            raise
        raise SandboxError("its process gave an answer of another form") from e
    except BaseException:
        sandbox.close()
        raise
    return Runner(inputs, lambda x: sandbox.ask({}, {"x": x})[1], lambda: sandbox.close() and None)


def _image_shape(path: Path, shape: tuple[Any, ...]) -> tuple[int, int, int]:
    if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
        raise InputError(
            f"encoder {path} takes an input of shape {list(shape)[:10]}: it must be (B, C, H, W) with fixed C, H and W"
        )
    return (int(shape[2]), int(shape[3]), int(shape[1]))


def _takes_raw(path: Path, dtype: str) -> bool:
    """Whether it takes the pictures' bytes as they are; else it takes them scaled to [-1, 1]."""
    if dtype not in ("uint8", "float32"):
        raise InputError(f"encoder {path} takes {dtype}: it must take uint8 pictures, or float32 ones in [-1, 1]")
    return dtype == "uint8"


def encode_all(encoder: Encoder, dataset: Dataset) -> Codes:
    """Codes of all splits, and of the mirrored pictures of those an attack is fitted on; some of them asked for again.

    The pictures of all sets come mixed, in an order that the encoder's maker cannot know: what depends on how often or how long it
    has been asked is then the same in every set.

    Raises: InputError where the pictures have another size than the encoder takes, its codes are not (B, k) or not finite, or a
    picture gets another code when it is asked for again.
    """
    names = ["train", "val", "test"] + ["train_mirrored", "val_mirrored"] * dataset.info.mirrored
    splits = {name: getattr(dataset, name.partition("_")[0]) for name in names}
    if dataset.train.image_shape != encoder.image_shape:
        has, wanted = dataset.train.image_shape, encoder.image_shape
        raise InputError(
            f"encoder {encoder.path} takes pictures of {wanted}, the store has {has}: set --data.image-size {wanted[0]}, or "
            "give the data set that it was made for"
        )

    def pictures(name: str, rows: np.ndarray) -> np.ndarray:
        block = splits[name].take(rows)
        block = block[:, :, ::-1] if name.endswith("_mirrored") else block
        return np.ascontiguousarray(block.transpose(0, 3, 1, 2))

    rng = np.random.default_rng(_unpredictable(encoder.path))
    sets = np.concatenate([np.full(len(splits[name]), number) for number, name in enumerate(names)])
    rows = np.concatenate([np.arange(len(splits[name])) for name in names])
    order = rng.permutation(len(rows))
    codes: dict[str, np.ndarray] = {}
    for start in range(0, len(order), BLOCK):
        asked = order[start : start + BLOCK]
        here = [(name, np.flatnonzero(sets[asked] == number)) for number, name in enumerate(names)]
        parts = [(places, pictures(name, rows[asked[places]])) for name, places in here]
        block = np.empty((len(asked), *parts[0][1].shape[1:]), parts[0][1].dtype)
        for places, part in parts:
            block[places] = part
        z = encoder.encode(block)
        if not codes:
            codes = {name: _room(encoder, len(splits[name]), len(order), z.shape[1]) for name in names}
        for name, places in here:
            codes[name][rows[asked[places]]] = z[places]
    what, stochastic = f"encoder {encoder.path}", encoder.settings.stochastic
    encoder.repeats = check_repeats(codes, pictures, encoder.encode, what=what, stochastic=stochastic, rng=rng)
    return codes


def _unpredictable(path: Path) -> int:
    """A seed that is the same whenever this user attacks this file, and that nobody else knows."""
    key = owner_key() or secrets.token_bytes(32)
    return int.from_bytes(hashlib.sha256(key + path.read_bytes()).digest()[:16])


def _room(encoder: Encoder, rows: int, total: int, k: int) -> np.ndarray:
    limit_gb = encoder.settings.memory_gb
    if 4 * total * k > limit_gb * 2**30:
        raise InputError(
            f"encoder {encoder.path} answers with {k} numbers a picture: codes of {total} pictures need "
            f"{4 * total * k / 2**30:.1f} GB, more than --encoder.memory-gb {limit_gb:g}: raise it"
        )
    return np.empty((rows, k), np.float32)

"""Encoders of anybody: torch.export programs (`.pt2`) and ONNX models (`.onnx`), commands and URLs.

An encoder gets pictures as its input wants them (inputs.py) and returns one or several arrays, one row per picture, which are
flattened and concatenated to codes (B, k) (outputs.py). Files run in a process of their own (opening.py); a command or a URL is a
black box that answers pictures with codes (messages.py).
"""

import hashlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.common.credentials import redacted, remember
from cpgan_ray.common.ownership import owner_key
from cpgan_ray.common.rng import stream
from cpgan_ray.config import AttackConfig, EncoderConfig
from cpgan_ray.config.encoders import OF_FILES
from cpgan_ray.data import Dataset
from cpgan_ray.data.code_sets import CodeSet, code_sets
from cpgan_ray.data.store import progress_bar
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.command import Command
from cpgan_ray.evaluation.encoders.inputs import COLOURS, EncoderInput, black_box_input, encoder_input
from cpgan_ray.evaluation.encoders.messages import BlackBoxError
from cpgan_ray.evaluation.encoders.opening import as_input_error, open_program
from cpgan_ray.evaluation.encoders.outputs import as_codes, names_and_sizes, selected, sizes_of
from cpgan_ray.evaluation.encoders.repeats import check_repeats
from cpgan_ray.evaluation.encoders.runners import KINDS
from cpgan_ray.evaluation.encoders.sandbox import Arrays, ProgramError, one_line
from cpgan_ray.evaluation.encoders.service import Service
from cpgan_ray.evaluation.encoders.sketch import Sketch
from cpgan_ray.evaluation.protocol import Codes

logger = logging.getLogger(__name__)

BLOCK = 250
COMMAND, URL = "a command", "a URL"
"""Kinds of black boxes."""


class Encoder:
    """An open encoder. `outputs`: names and sizes of the outputs that are attacked, known after the first call. `queries`: number
    of pictures that it has encoded."""

    def __init__(
        self, source: Path | str, run: Callable[[np.ndarray], Arrays], entry: EncoderInput, settings: EncoderConfig, *, kind: str
    ) -> None:
        self.source, self.kind, self.run, self.entry, self.settings = source, kind, run, entry, settings
        self.subject = f"encoder {redacted(str(source), whole=True)}"
        self.close: Callable[[], None] = lambda: None
        self.outputs: list[tuple[str, int]] = []
        self.left_out: list[str] = []
        self.repeats: dict[str, Any] = {}
        self.queries, self.reduced_to = 0, 0

    @property
    def black_box(self) -> bool:
        """Whether nothing of it is known but its answers."""
        return self.kind in (COMMAND, URL)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(H, W, C) of the pictures that it takes; None for a black box that takes any size."""
        return (*self.entry.size, self.entry.channels) if self.entry.size else None

    @property
    def k(self) -> int:
        """Length of its codes; 0 before the first call."""
        return sum(size for _, size in self.outputs)

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures (B, C, H, W) as stored -> codes (B, k) float32.

        Raises: InputError if the encoder fails, or does not return one row of finite numbers per picture.
        """
        x = self.entry.prepare(pictures, subject=self.subject)
        size = self.entry.batch or (BLOCK if self.black_box else len(x))
        return np.concatenate([self._encode_batch(x[start : start + size]) for start in range(0, len(x), size)])

    def check(self, store_size: tuple[int, int]) -> None:
        """Encode two pictures, together and alone, so that an encoder that cannot be attacked fails before a store is prepared. An
        encoder of any number of pictures that fails on two is called with one at a time.

        store_size: height and width, if the encoder takes any.

        Raises: InputError, see `encode`.
        """
        if self.entry.channels not in COLOURS:
            return  # signals, of which no example is known
        pictures = example_pictures((*(self.entry.size or store_size), self.entry.channels))
        try:
            self.encode(pictures)
        except InputError as e:
            if self.entry.batch is not None or not isinstance(e.__cause__, ProgramError):
                raise
            assumed = (*self.entry.assumed, "it is called with one picture at a time, because it fails on two")
            self.entry = replace(self.entry, batch=1, assumed=assumed)
            self.encode(pictures)
        self.encode(pictures[:1])

    def _encode_batch(self, x: np.ndarray) -> np.ndarray:
        rows, fixed = len(x), self.entry.declared[0]
        if isinstance(fixed, int) and rows < fixed:
            x = np.concatenate([x, np.repeat(x[-1:], fixed - rows, axis=0)])
        failure = f"fails on {len(x)} picture{'s' if len(x) > 1 else ''}"
        height, width = x.shape[1:3] if self.entry.last else x.shape[2:4]
        remedy = f"it got {x.dtype} {tuple(x.shape)}; export a dynamic batch, or try --encoder.batch-size 1"
        if self.entry.batch == 1:
            remedy = f"it got {x.dtype} {tuple(x.shape)}; try another size than {height} x {width}, or another --encoder.layout"
        try:
            with as_input_error(self.subject, refused="is refused", stopped=failure, failed=failure, remedy=remedy):
                outputs = self.run(x)
        except BlackBoxError as e:
            raise InputError(f"{self.subject} {e}") from e
        self.queries += rows
        arrays = selected(outputs, self.settings.outputs, rows=len(x), subject=self.subject)
        sizes = sizes_of(arrays)
        if self.outputs and sizes != self.outputs:
            raise InputError(
                f"{self.subject} returns codes of different sizes for different pictures or batches: select outputs of a fixed "
                "size with --encoder.outputs, or export it with a fixed size"
            )
        if not sum(size for _, size in sizes):
            raise InputError(f"{self.subject} returns no numbers: it must return codes (B, k)")
        self.outputs, self.left_out = sizes, [name for name in outputs if name not in arrays]
        return as_codes({name: values[:rows] for name, values in arrays.items()}, subject=self.subject)

    def description(self) -> dict[str, Any]:
        """The report's entry about what was attacked."""
        source = self.source.name if isinstance(self.source, Path) else redacted(self.source, whole=True)
        return {
            "file": one_line(source),
            "kind": self.kind,
            "black_box": self.black_box,
            "queries": self.queries,
            "input": self.entry.description(),
            "outputs": names_and_sizes(self.outputs),
            "left_out": [one_line(name, 80) for name in self.left_out],
            "reduced_to": self.reduced_to or None,
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
        encoder = Encoder(
            path, runner.run, encoder_input(f"encoder {path}", shape, dtype, settings), settings, kind=KINDS[path.suffix]
        )
    except InputError:
        runner.close()
        raise
    encoder.close = runner.close
    return encoder


def open_own(path: Path) -> Encoder:
    """Open the privatizer of a run: its channels come first, for pictures and for signals.

    Raises: see `open_encoder`.
    """
    return open_encoder(path, EncoderConfig(layout="nchw"))


def open_black_box(source: str, settings: EncoderConfig) -> Encoder:
    """Start the command `settings.command`, or connect to a URL.

    source: the command or the URL.

    Raises: InputError if it cannot be started, or if a flag describes the input of a file.
    """
    remember(source)
    kind = COMMAND if source == settings.command else URL
    subject = f"encoder {redacted(source, whole=True)}"
    defaults = {field.name: field.default for field in fields(EncoderConfig)}
    given = tuple(name for name in OF_FILES if getattr(settings, name) != defaults[name])
    entry = black_box_input(subject, settings, given)
    try:
        box = (Command if kind == COMMAND else Service)(source, timeout_s=settings.timeout_s)
    except BlackBoxError as e:
        raise InputError(f"{subject} {e}") from e
    encoder = Encoder(source, box.encode, entry, settings, kind=kind)
    encoder.close = box.close
    return encoder


def example_pictures(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Two pictures (2, C, H, W) uint8: smooth shades, and noise."""
    height, width, channels = image_shape
    shades = np.add.outer(np.linspace(0, 160, height), np.linspace(0, 95, width)).round()
    noise = stream(0, "example").integers(0, 256, (channels, height, width))
    return np.stack([np.broadcast_to(shades, noise.shape), noise]).astype(np.uint8)


def encode_all(encoder: Encoder, dataset: Dataset, attacks: AttackConfig | None = None, *, max_numbers: int | None = None) -> Codes:
    """Codes of all splits, and of copies of the pictures that attacks are fitted on (see `code_sets`). Some pictures are encoded
    again as a check.

    The pictures of all sets are mixed, in an order that the author of the encoder cannot predict: if the codes depend on the number
    of earlier calls or on time, all sets are affected in the same way.

    max_numbers: longer codes are reduced to so many numbers (sketch.py); None: they are not.

    Raises: InputError if the pictures have another size than the encoder takes, its codes are not (B, k) or not finite, or a
    picture gets another code when it is encoded again.
    """
    sets = code_sets(dataset)
    if encoder.entry.size not in (None, dataset.train.image_shape[:2]):
        (height, width), stored = encoder.entry.size, dataset.train.image_shape
        raise InputError(
            f"{encoder.subject} takes pictures of {height} x {width}, the store has {stored[0]} x {stored[1]}: set "
            f"--data.image-size {height} --data.image-width {width}, or choose the data set that it was made for"
        )

    def pictures(name: str, rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(sets[name].take(rows).transpose(0, 3, 1, 2))

    encode, encoder.reduced_to = encoder.encode, 0
    if not encoder.k or (max_numbers and encoder.k > max_numbers):
        first = encoder.encode(pictures("train", np.arange(min(BLOCK, len(dataset.train)))))
        if max_numbers and encoder.k > max_numbers:
            reduce, encoder.reduced_to = Sketch(first, numbers=max_numbers), max_numbers
            encode = lambda x: reduce(encoder.encode(x))  # noqa: E731
    k = encoder.reduced_to or encoder.k
    sets = code_sets(dataset, attacks=attacks, k=k)
    if encoder.black_box:
        total = sum(map(len, sets.values()))
        logger.info(f"{encoder.subject} gets {total} pictures: {', '.join(f'{name} {len(part)}' for name, part in sets.items())}")
    rng = np.random.default_rng(_secret_seed(encoder.source))
    codes = _encode_mixed(encoder, encode, sets, pictures, k=k, rng=rng)
    stochastic = encoder.settings.stochastic
    encoder.repeats = check_repeats(codes, pictures, encode, subject=encoder.subject, stochastic=stochastic, rng=rng)
    return codes


def _encode_mixed(
    encoder: Encoder,
    encode: Callable[[np.ndarray], np.ndarray],
    sets: dict[str, CodeSet],
    pictures: Callable[[str, np.ndarray], np.ndarray],
    *,
    k: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The codes of all sets, whose pictures are encoded in a random order."""
    set_of_row = np.concatenate([np.full(len(code_set), number) for number, code_set in enumerate(sets.values())])
    rows = np.concatenate([np.arange(len(code_set)) for code_set in sets.values()])
    order = rng.permutation(len(rows))
    codes = {name: _empty_codes(encoder, len(code_set), len(order), k) for name, code_set in sets.items()}
    with progress_bar(len(order), what=f"encoding by {encoder.subject.partition(' ')[2]}", unit="pictures") as advance:
        for start in range(0, len(order), BLOCK):
            batch = order[start : start + BLOCK]
            positions = [(name, np.flatnonzero(set_of_row[batch] == number)) for number, name in enumerate(sets)]
            parts = [(at, pictures(name, rows[batch[at]])) for name, at in positions]
            block = np.empty((len(batch), *parts[0][1].shape[1:]), parts[0][1].dtype)
            for at, part in parts:
                block[at] = part
            z = encode(block)
            for name, at in positions:
                codes[name][rows[batch[at]]] = z[at]
            advance(len(batch))
    return codes


def _secret_seed(source: Path | str) -> int:
    """A seed that is the same each time this user attacks this encoder, and that only this user can know."""
    key = owner_key() or secrets.token_bytes(32)
    content = source.read_bytes() if isinstance(source, Path) else source.encode()
    return int.from_bytes(hashlib.sha256(key + content).digest()[:16])


def _empty_codes(encoder: Encoder, rows: int, total: int, k: int) -> np.ndarray:
    """An array for `rows` codes.

    Raises: InputError if the codes of all `total` pictures exceed the memory limit.
    """
    limit_gb = encoder.settings.memory_gb
    if 4 * total * k > limit_gb * 2**30:
        raise InputError(
            f"{encoder.subject} returns {k} numbers per picture: codes of {total} pictures need "
            f"{4 * total * k / 2**30:.1f} GB, more than --encoder.memory-gb {limit_gb:g}: raise this limit"
        )
    return np.empty((rows, k), np.float32)

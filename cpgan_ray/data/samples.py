"""Shared parts of the readers of small data sets: the arrays that they return, and functions that find and read files.

A reader is a module with two functions: `files(source)` returns all files that it reads, in order; `read(source)` returns their
content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from cpgan_ray.errors import InputError


@dataclass(frozen=True, eq=False)
class StackedArrays:
    """Several arrays (n, H, W, C) of one type that act as one array (N, H, W, C), without a copy of the large arrays."""

    parts: Sequence[np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        height, width, channels = self.parts[0].shape[1:]
        return len(self), height, width, channels

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the values in `rows` (B,), in that order: (B, H, W, C)."""
        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        start = 0
        for part in self.parts:
            in_part = (rows >= start) & (rows < start + len(part))
            values[in_part] = part[rows[in_part] - start]
            start += len(part)
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """A data set in memory, with one label of several classes."""

    values: np.ndarray | StackedArrays
    """(N, H, W, C): uint8 pictures, or float32 signals as they will be stored."""
    labels: np.ndarray
    """(N,) int8, class numbers from 0."""
    label_name: str
    """Name of the label, for example "digit"."""
    classes: tuple[str, ...]
    """Names of the classes, by number."""
    identity: np.ndarray
    """(N,) int64. Rows of one identity (a person, a section of a recording) are never in two splits and are resampled together.
    Independent rows have their row number as identity."""
    rows: Mapping[str, np.ndarray]
    """Split ("train", "val", "test") to row numbers. A row may be in no split."""
    scale: float = 1.0
    """For float32 values: raw value = stored value * scale + offset[channel]."""
    offset: tuple[float, ...] = ()
    """(C,), in raw units; empty for pictures."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """Remarks on decoded picture files: keys of `decoding.REMARKS` to numbers of pictures."""


def validate_samples(samples: Samples, source: Path | str) -> Samples:
    """Check that the samples can be used for training and evaluation; returns them.

    Raises:
        InputError: a split is empty, a class does not occur in the training split, an identity is in two splits.
    """
    for split, rows in samples.rows.items():
        if len(rows) == 0:
            raise InputError(
                f"{source}: the {split} split is empty, {len(samples.labels)} rows are too few: use the whole data set"
            )
    counts = np.bincount(samples.labels[samples.rows["train"]], minlength=len(samples.classes))
    if len(missing_classes := np.flatnonzero(counts == 0)):
        name = samples.classes[missing_classes[0]]
        raise InputError(f"{source}: no training row has the {samples.label_name} {name!r}: use the whole data set")
    for first, second in combinations(samples.rows, 2):
        if len(shared := np.intersect1d(samples.identity[samples.rows[first]], samples.identity[samples.rows[second]])):
            raise InputError(f"{source}: identity {shared[0]} is in the {first} and the {second} split: use the official files")
    return samples


def find_file(source: Path, candidates: Sequence[str], *, remedy: str) -> Path:
    """The first of `candidates`, relative to `source`, that is a file.

    Raises:
        InputError: none of them is a file.
    """
    if not source.is_dir():
        raise InputError(f"data folder {source} does not exist or is not a folder: {remedy}")
    for candidate in candidates:
        if (source / candidate).is_file():
            return source / candidate
    others = f" (nor is there {' or '.join(candidates[1:])})" if candidates[1:] else ""
    raise InputError(f"{source / candidates[0]} is missing{others}: {remedy}")


MAX_PACKING_RATIO, FREE_UNPACKED_BYTES = 20, 64 << 20
"""Pictures have a smaller compression ratio than the first number (the official files: below 5). Small files may unpack to the
second number of bytes with any ratio."""


def max_unpacked_bytes(size: int) -> int:
    """The number of bytes that a picture file of `size` bytes may unpack to; a larger result is a decompression bomb."""
    return FREE_UNPACKED_BYTES + MAX_PACKING_RATIO * size


def read_bytes(path: Path, *, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
        InputError: the file is larger or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as e:
        raise unreadable_error(path, e) from e
    if len(content) > limit:
        raise InputError(f"{path} is larger than {limit} bytes: it is not the official file, download it again")
    return content


def unreadable_error(path: Path, error: OSError) -> InputError:
    """The error for a file that the operating system cannot read."""
    return InputError(f"{path} cannot be read ({error.strerror or error}): repair the file or its permissions")

"""What the readers of the small data sets have in common: the arrays that they return, finding and reading files.

A reader is a module with `files(source)`, all files that it reads, in order, and `read(source)`, what they hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from cpgan_ray.errors import InputError


@dataclass(frozen=True, eq=False)
class Stacked:
    """Arrays (n, H, W, C) of one type as one of all their rows, (N, H, W, C), without a copy: of large files, each in memory."""

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
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        start = 0
        for part in self.parts:
            here = (rows >= start) & (rows < start + len(part))
            taken[here] = part[rows[here] - start]
            start += len(part)
        return taken


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """A data set in memory, with one label of several classes."""

    values: np.ndarray | Stacked
    """(N, H, W, C): uint8 pictures, or float32 signals as they are to be stored."""
    labels: np.ndarray
    """(N,) int8, class numbers from 0."""
    label_name: str
    """What the classes are classes of, for example "digit"."""
    classes: tuple[str, ...]
    """Their names, by number."""
    identity: np.ndarray
    """(N,) int64. Rows of one identity are never in two splits and are resampled together: a person, a stretch of a recording;
    the row's own number where rows are independent."""
    rows: Mapping[str, np.ndarray]
    """Split ("train", "val", "test") to row numbers. A row may be in none."""
    scale: float = 1.0
    """Of float32 values: raw value = stored value * scale + offset[channel]."""
    offset: tuple[float, ...] = ()
    """(C,), raw units; empty for pictures."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """Of decoded picture files: keys of `decoding.REMARKS` to numbers of pictures."""


def checked(samples: Samples, source: Path | str) -> Samples:
    """The same samples, if they can be trained and judged on.

    Raises:
        InputError: a split is empty, a class does not occur in the training split, an identity is in two splits.
    """
    for split, rows in samples.rows.items():
        if len(rows) == 0:
            raise InputError(
                f"{source}: the {split} split is empty, {len(samples.labels)} rows are too few: use the whole data set"
            )
    counts = np.bincount(samples.labels[samples.rows["train"]], minlength=len(samples.classes))
    if len(absent := np.flatnonzero(counts == 0)):
        name = samples.classes[absent[0]]
        raise InputError(f"{source}: no training row has the {samples.label_name} {name!r}: use the whole data set")
    for one, other in combinations(samples.rows, 2):
        if len(both := np.intersect1d(samples.identity[samples.rows[one]], samples.identity[samples.rows[other]])):
            raise InputError(f"{source}: identity {both[0]} is in the {one} and the {other} split: use the official files")
    return samples


def find(source: Path, places: Sequence[str], *, remedy: str) -> Path:
    """The first of `places`, relative to `source`, that is a file.

    Raises:
        InputError: none is.
    """
    if not source.is_dir():
        raise InputError(f"data folder {source} does not exist or is no folder: {remedy}")
    for place in places:
        if (source / place).is_file():
            return source / place
    others = f" (nor is there {' or '.join(places[1:])})" if places[1:] else ""
    raise InputError(f"{source / places[0]} is missing{others}: {remedy}")


PACKED, UNPACKED_FREELY = 20, 64 << 20
"""Pictures do not pack so many times (the official files: less than 5); but as many bytes may come of anything."""


def most_unpacked(size: int) -> int:
    """Bytes that a file of pictures of `size` bytes may unpack to; what unpacks to more is a bomb."""
    return UNPACKED_FREELY + PACKED * size


def read_bytes(path: Path, *, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
        InputError: it is larger or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as e:
        raise unreadable(path, e) from e
    if len(content) > limit:
        raise InputError(f"{path} is larger than {limit} bytes: it is not the official file, download it again")
    return content


def unreadable(path: Path, error: OSError) -> InputError:
    """What to say of a file that the system does not let us read."""
    return InputError(f"{path} cannot be read ({error.strerror or error}): mend the file or its permissions")

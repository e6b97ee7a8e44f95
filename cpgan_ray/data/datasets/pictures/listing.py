"""What every layout of own pictures is read into: the pictures in order, with their columns."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from cpgan_ray.data.decoder_pool import PictureFile

Files = Callable[[np.ndarray], Iterator[PictureFile]]
"""Row numbers (n,) to the files of these pictures, in that order."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column as its distinct values, because few values repeat many times."""

    values: list[str]
    """(V,) distinct, without spaces around them."""
    codes: np.ndarray
    """(N,) int32: the number of each row's value; -1 if the cell is null."""
    class_names: tuple[str, ...] = ()
    """Names of the classes by number, if the file declares them (Hugging Face's ClassLabel)."""

    def empty_rows(self) -> np.ndarray:
        """The rows without a value (n,): the cell is null or empty."""
        return np.flatnonzero((self.codes < 0) | (self.codes == self.code_of("")))

    def code_of(self, value: str) -> int:
        """The number of a value; -2 if it does not occur."""
        return self.values.index(value) if value in self.values else -2


def column_of(cells: Iterable[str]) -> Column:
    """The column with these cells."""
    numbers: dict[str, int] = {}
    codes = np.fromiter((numbers.setdefault(cell.strip(), len(numbers)) for cell in cells), np.int32)
    return Column(list(numbers), codes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """The pictures of a source."""

    origin: str
    """The file or the folder that lists them, for messages."""
    names: list[str]
    """(N,) for messages and, if the identities are unknown, for drawing splits."""
    columns: dict[str, Column]
    """Those that may hold labels, identities or splits."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Columns that cannot hold labels -> the kind of their values."""
    parts: np.ndarray | None = None
    """(N,) int64, 0 train, 1 val or 2 test, if folders or file names are named after splits."""
    exists: np.ndarray
    """(N,) bool: whether there is a file."""
    renamed: int = 0
    """Number of pictures that are stored under another spelling of their name."""
    open: Callable[[], AbstractContextManager[Files]]
    row_name: Callable[[int], str]
    """A row number to where it is listed, for messages, such as `labels.csv, line 17`."""

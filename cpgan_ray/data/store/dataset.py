"""A prepared store, open: its splits, memory-mapped."""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cpgan_ray.data.store.info import DatasetInfo
from cpgan_ray.data.store.manifest import MANIFEST, Manifest, SplitFile, damaged, read_manifest

SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One memory-mapped file of the store. Pickles as its path; pictures stay in the page cache, never in this process's heap."""

    path: Path
    label_names: tuple[str, ...]
    labels: np.ndarray
    """(N, L) int8, 0 or 1, or the number of a class."""
    identity: np.ndarray
    """(N,) int64."""
    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    dtype: np.dtype
    """uint8 or float32."""
    views: tuple[np.ndarray, ...] = field(repr=False)
    """The pictures, zero-copy and read-only: one (n, H, W, C) per record batch."""
    starts: np.ndarray = field(repr=False)
    """(len(views),) int64: row number of each view's first picture."""

    def __len__(self) -> int:
        return len(self.identity)

    def __reduce__(self) -> tuple[Callable[[Path], "Split"], tuple[Path]]:
        return open_split, (self.path,)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the pictures in `rows` (B,), in that order: (B, H, W, C).

        Raises:
            IndexError: a row is negative or not below `len(self)`.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self.path.name}, which has {len(self)}")
        view = np.searchsorted(self.starts, rows, side="right") - 1
        pictures = np.empty((len(rows), *self.image_shape), self.dtype)
        for i, (v, offset) in enumerate(zip(view.tolist(), (rows - self.starts[view]).tolist(), strict=True)):
            pictures[i] = self.views[v][offset]
        return pictures

    def iter_batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Copies of all pictures in order, `batch_size` at a time (the last batch may be smaller): (<=B, H, W, C)."""
        for start in range(0, len(self), batch_size):
            yield self.take(np.arange(start, min(start + batch_size, len(self))))


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A prepared store, open."""

    folder: Path
    digest: str
    """Of everything the store was made from; the name of the folder."""
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    info: DatasetInfo
    train: Split
    val: Split
    test: Split
    skipped: tuple[str, ...] = ()
    """Pictures that were missing or could not be decoded, and were left out."""
    again: Callable[[], "Dataset"] | None = None
    """How a node that has not got the folder gets it; pickled with the rest."""
    shared: str | Path | None = None
    """Where nodes share what is made of it (`Config.shared_cache`)."""
    own_only: bool = False
    """Whether what is kept in the folder is used only if this user has made it: the folder came with the data."""

    def __reduce__(self) -> tuple[Callable[..., "Dataset"], tuple[dict[str, Any]]]:
        return elsewhere, ({f.name: getattr(self, f.name) for f in fields(self) if f.name not in SPLITS},)


def elsewhere(values: dict[str, Any]) -> Dataset:
    """A data set in another process: its store is where it was, or the node gets its own.

    Raises: InputError where it cannot; see `Dataset.again`.
    """
    folder: Path = values["folder"]
    if values["again"] is not None and not folder.is_dir():
        folder = values["again"]().folder
    if (digest := read_manifest(folder).digest) != values["digest"]:
        raise damaged(folder, f"it holds store {digest!r:.40} instead of {values['digest']}")
    train, val, test = (open_split(folder / f"{name}.arrow") for name in SPLITS)
    return Dataset(**{**values, "folder": folder}, train=train, val=val, test=test)


def open_split(path: Path) -> Split:
    """One file of a store, memory-mapped, as the manifest next to it says.

    Raises: InputError where the manifest is damaged or says what the file cannot hold.
    """
    return map_split(path, read_manifest(path.parent))


def map_split(path: Path, manifest: Manifest) -> Split:
    """The same by a manifest that has been read. Nothing outside of the file is ever touched, whatever the manifest says: each
    column lies inside, where its type may lie, and no two share a byte, so that a small file cannot stand for many rows.

    Raises: InputError where one does not.
    """
    told = manifest.splits.get(path.stem)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if told is None:
        raise damaged(path.parent, f"{MANIFEST} does not tell of {path.name}")
    try:
        with path.open("rb") as file:
            content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as e:
        raise damaged(path.parent, f"{path.name} cannot be read ({e})") from e
    dtype = np.dtype(manifest.dtype)
    sizes = [dtype.itemsize * math.prod(manifest.image_shape), 8, *[1] * len(manifest.label_names)]
    if (fault := misplaced(told, len(content), sizes, [dtype.itemsize, 8], manifest.image_shape)) is not None:
        raise damaged(path.parent, f"{MANIFEST} says of {path.name} what it cannot hold: {fault}")
    counts = np.array([batch[0] for batch in told.batches], np.int64)
    columns = [
        [content[start : start + rows * size] for start, size in zip(starts, sizes, strict=True)] for rows, *starts in told.batches
    ]
    labels = np.empty((told.rows, len(manifest.label_names)), np.int8)
    first = 0
    for rows, (_, _, *of_batch) in zip(counts.tolist(), columns, strict=True):
        for i, column in enumerate(of_batch):
            labels[first : first + rows, i] = column.view(np.int8)
        first += rows
    several = manifest.info.classes
    limits = np.array([len(several[name]) if name in several else 2 for name in manifest.label_names], np.int64)
    if len(wrong := np.argwhere((labels < 0) | (labels >= limits))):
        row, column = wrong[0].tolist()
        raise damaged(path.parent, f"{path.name} has the value {labels[row, column]} of label {column + 1} in row {row}")
    return Split(
        path=path,
        label_names=manifest.label_names,
        labels=frozen(labels),
        identity=frozen(np.concatenate([np.empty(0, np.int64), *(c[1].view(np.int64) for c in columns)])),
        image_shape=manifest.image_shape,
        dtype=dtype,
        views=tuple(c[0].view(dtype).reshape(-1, *manifest.image_shape) for c in columns),
        starts=np.cumsum(counts) - counts,
    )


def misplaced(
    told: SplitFile, size: int, sizes: Sequence[int], alignment: Sequence[int], image_shape: tuple[int, int, int]
) -> str | None:
    """What is wrong with the positions of columns in a file of `size` bytes; None where they are in order.

    sizes: bytes of a row in each column; alignment: of the first columns.
    """
    if size != told.bytes:
        return f"it has {size} bytes instead of {told.bytes}"
    if min(image_shape) < 1 or sizes[0] > size:
        return f"pictures of shape {image_shape}"
    if {len(batch) for batch in told.batches} - {1 + len(sizes)}:
        return f"batches of {len(sizes)} columns"
    try:
        table = np.array(told.batches, np.int64).reshape(-1, 1 + len(sizes))
    except OverflowError:
        return "a position beyond its end"
    rows, starts = table[:, :1], table[:, 1:]
    if (table < 0).any() or (table > size).any() or (rows == 0).any() or (rows * np.array(sizes, float) > size).any():
        return "a position or a length beyond its end"
    ends = starts + rows * np.array(sizes, np.int64)
    if (ends > size).any():
        return "a column that ends beyond its end"
    if (starts[:, : len(alignment)] % np.array(alignment) != 0).any():
        return "a column between two numbers"
    order = np.argsort(starts, axis=None)
    if (starts.ravel()[order][1:] < ends.ravel()[order][:-1]).any():
        return "two columns that share bytes"
    if rows.sum() != told.rows:
        return f"{told.rows} rows, its batches have {rows.sum()}"
    return None


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array

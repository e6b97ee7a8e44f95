"""A prepared store, open: its splits, memory-mapped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

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


@dataclass(frozen=True, kw_only=True)
class Nature:
    """What the values and labels of a data set are."""

    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Label to the names of its classes, for labels that are not 0/1."""
    mirrored: bool = True
    """Whether a mirror image is a sample of the same kind (faces), or is not (digits, signals)."""
    unit: float = 127.5
    """What 1 of the values that networks see is in the data set's own unit: 127.5 grey levels for uint8 pictures in [-1, 1]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A prepared store, open."""

    folder: Path
    digest: str
    """Of everything the store was made from; the name of the folder."""
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    nature: Nature
    train: Split
    val: Split
    test: Split
    skipped: tuple[str, ...] = ()
    """Pictures that were missing or could not be decoded, and were left out."""
    again: Callable[[], "Dataset"] | None = None
    """How a node that has not got the folder gets it; pickled with the rest."""
    shared: str | Path | None = None
    """Where nodes share what is made of it (`Config.shared_cache`)."""

    def __reduce__(self) -> tuple[Callable[..., "Dataset"], tuple[dict[str, Any]]]:
        return elsewhere, ({f.name: getattr(self, f.name) for f in fields(self) if f.name not in SPLITS},)


def elsewhere(values: dict[str, Any]) -> Dataset:
    """A data set in another process: its store is where it was, or the node gets its own.

    Raises: InputError where it cannot; see `Dataset.again`.
    """
    folder: Path = values["folder"]
    if values["again"] is not None and not folder.is_dir():
        folder = values["again"]().folder
    train, val, test = (open_split(folder / f"{name}.arrow") for name in SPLITS)
    return Dataset(**{**values, "folder": folder}, train=train, val=val, test=test)


def open_split(path: Path) -> Split:
    """One file of a store, memory-mapped, unchecked."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    schema = reader.schema
    image_shape = tuple(schema.field("image").type.shape)
    label_names = tuple(schema.names[2:])
    labels = [np.stack([in_place(b[name]) for name in label_names], axis=1) for b in batches]
    counts = np.array([len(b) for b in batches], np.int64)
    return Split(
        path=path,
        label_names=label_names,
        labels=frozen(np.concatenate(labels) if labels else np.empty((0, len(label_names)), np.int8)),
        identity=frozen(np.concatenate([in_place(b["identity"]) for b in batches] or [np.empty(0, np.int64)])),
        image_shape=image_shape,
        dtype=in_place(pa.nulls(0, schema.field("image").type.value_type)).dtype,
        views=tuple(in_place(b["image"].storage.flatten()).reshape(-1, *image_shape) for b in batches),
        starts=np.cumsum(counts) - counts,
    )


def in_place(array: pa.Array) -> np.ndarray:
    """Numbers without a copy, read-only. By DLPack: `to_numpy` imports pandas, 0.6 s in every process that opens a store."""
    return np.from_dlpack(array)


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array

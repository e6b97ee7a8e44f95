"""An open prepared store: its splits, memory-mapped."""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cpgan_ray.common.rng import stream
from cpgan_ray.data.store.info import MISSING, DatasetInfo, Landmarks
from cpgan_ray.data.store.manifest import MANIFEST, Manifest, SplitFile, damaged_store, read_manifest
from cpgan_ray.errors import InputError

SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
FILES: tuple[Literal["train", "val", "test", "final"], ...] = (*SPLITS, "final")
"""The splits of a store, each of which is a file."""
ATTACKER = "attacker"
"""Name of the split that `withhold` takes from `train`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One memory-mapped file of the store, or some of its rows. It pickles as its path and its rows; the pictures stay in the page
    cache, outside the process's heap."""

    name: str
    """`train`, `val`, `test`, `final` or `attacker`."""
    path: Path
    label_names: tuple[str, ...]
    labels: np.ndarray
    """(N, L) int8: 0 or 1, or the number of a class; `MISSING` if the answer is not known."""
    identity: np.ndarray
    """(N,) int64."""
    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    dtype: np.dtype
    """uint8 or float32."""
    views: tuple[np.ndarray, ...] = field(repr=False)
    """The pictures, zero-copy and read-only: one array (n, H, W, C) per record batch."""
    starts: np.ndarray = field(repr=False)
    """(len(views),) int64: row number of each view's first picture."""
    stored_rows: np.ndarray | None = field(default=None, repr=False)
    """(N,) int64: the row in the file of each row; None: the split is the whole file."""

    def __len__(self) -> int:
        return len(self.identity)

    def __reduce__(self) -> tuple[Callable[..., "Split"], tuple[Any, ...]]:
        return reopen_split, (self.path, self.name, self.stored_rows)

    def select(self, rows: np.ndarray, *, name: str) -> "Split":
        """The rows (n,) of a split that is a whole file, as a split of this name; no picture is copied."""
        assert self.stored_rows is None
        labels, identity = read_only(self.labels[rows]), read_only(self.identity[rows])
        return replace(self, name=name, labels=labels, identity=identity, stored_rows=read_only(rows.astype(np.int64)))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the pictures in `rows` (B,), in that order: (B, H, W, C).

        Raises:
            IndexError: a row is negative, or at least `len(self)`.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} are not all in {self.path.name}, which has {len(self)} rows")
        if self.stored_rows is not None:
            rows = self.stored_rows[rows]
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
    """An open prepared store."""

    folder: Path
    digest: str
    """Hash of everything that the store was made from; the name of the folder."""
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    info: DatasetInfo
    train: Split
    val: Split
    test: Split
    final: Split
    """Identities that are held out from everything until a result is published (data/final.py). May be empty."""
    final_opened: bool = False
    """Whether `test` is the final split."""
    skipped: tuple[str, ...] = ()
    """Pictures that were missing or could not be decoded, and were skipped."""
    reload: Callable[[], "Dataset"] | None = None
    """Fetches or prepares the store on a node that does not have the folder; pickled with the other fields."""
    shared: str | Path | None = None
    """Where nodes share files derived from the store (`Config.shared_cache`)."""
    own_only: bool = False
    """Whether cached files in the folder are used only if this user made them, because the folder may have come with the data."""
    landmarks: Landmarks | None = None
    """Where each picture shows eyes, nose and mouth, so that a face recogniser can judge it; None if they are at no fixed
    position."""
    attacker: Split | None = None
    """Pictures of people whom the defender never sees: the attacker's own. None if nothing is withheld from the defender."""
    attacker_share: float = 0.0
    """Share of the people of the store's `train` who are in `attacker`; `train` has the others."""

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name: `train`, `val`, `test`, and `attacker` if there is one."""
        splits = {name: getattr(self, name) for name in SPLITS}
        return splits if self.attacker is None else splits | {ATTACKER: self.attacker}

    @property
    def fit_splits(self) -> tuple[str, ...]:
        """Names of the splits on which attacks are fitted: the attacks need the codes of their mirror images, too."""
        return ("train", "val" if self.attacker is None else ATTACKER)

    def __reduce__(self) -> tuple[Callable[..., "Dataset"], tuple[dict[str, Any]]]:
        return reopen, ({f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*FILES, ATTACKER)},)

    def open_final(self) -> "Dataset":
        """The same data set, scored on its final split: `test` is that split.

        Raises:
            InputError: the final split is empty.
        """
        if not len(self.final):
            raise InputError(
                f"the final split of {self.folder} is empty: leave out --final, or train with a larger --data.final-fraction"
            )
        return replace(self, test=self.final, final_opened=True)


def reopen(values: dict[str, Any]) -> Dataset:
    """Unpickle a data set in another process: open its folder if it exists, otherwise get the store for this node.

    Raises:
        InputError: the store cannot be fetched or prepared (see `Dataset.reload`), or the folder holds another store.
    """
    folder: Path = values["folder"]
    if values["reload"] is not None and not folder.is_dir():
        folder = values["reload"]().folder
    if (digest := read_manifest(folder).digest) != values["digest"]:
        raise damaged_store(folder, f"it holds store {digest!r:.40} instead of {values['digest']}")
    train, val, test, final = (open_split(folder / f"{name}.arrow") for name in FILES)
    share, shown = values["attacker_share"], final if values["final_opened"] else test
    whole = {**values, "folder": folder, "attacker_share": 0.0}
    dataset = Dataset(**whole, train=train, val=val, test=shown, final=final)
    return withhold(dataset, share=share) if share else dataset


def withhold(dataset: Dataset, *, share: float) -> Dataset:
    """The data set with a share of the people of `train` moved to the split `attacker`, so that everything that is fitted on
    `train` (networks, batch norm statistics, principal components, label frequencies) never sees them.

    The people are drawn at random, by a stream that depends on nothing else: all processes and all seeds of a run withhold the same
    people. At least one person is on each side. Both splits are rows of the same memory-mapped file.

    Raises:
        InputError: `train` has fewer than two people.
    """
    people = np.unique(dataset.train.identity)
    if len(people) < 2:
        raise InputError(
            f"data.attacker_share is {share:g}, but {len(people)} person is in the training split of {dataset.folder} and two are "
            "needed: set --data.attacker-share 0, or add people"
        )
    count = min(max(1, round(share * len(people))), len(people) - 1)
    withheld = np.isin(dataset.train.identity, stream(0, "attacker").permutation(people)[:count])
    train, attacker = (
        dataset.train.select(np.flatnonzero(rows), name=name) for name, rows in (("train", ~withheld), (ATTACKER, withheld))
    )
    return replace(dataset, train=train, attacker=attacker, attacker_share=share)


def reopen_split(path: Path, name: str, stored_rows: np.ndarray | None) -> Split:
    """Unpickle a split in another process."""
    split = open_split(path)
    return split if stored_rows is None else split.select(stored_rows, name=name)


def open_split(path: Path) -> Split:
    """Memory-map one file of a store by the manifest next to it.

    Raises:
        InputError: the manifest is damaged or does not fit the file.
    """
    return map_split(path, read_manifest(path.parent))


def map_split(path: Path, manifest: Manifest) -> Split:
    """Memory-map one file of a store by a manifest that has been read.

    The positions in the manifest are checked first, so nothing outside the file is ever accessed: each column lies inside the file,
    is aligned for its type, and shares no byte with another column, so that a small file cannot claim many rows.

    Raises:
        InputError: a column does not fit the file, or a label has an impossible value.
    """
    entry = manifest.splits.get(path.stem)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if entry is None:
        raise damaged_store(path.parent, f"{MANIFEST} has no entry for {path.name}")
    try:
        with path.open("rb") as file:
            content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as e:
        raise damaged_store(path.parent, f"{path.name} cannot be read ({e})") from e
    dtype = np.dtype(manifest.dtype)
    sizes = [dtype.itemsize * math.prod(manifest.image_shape), 8, *[1] * len(manifest.label_names)]
    if (problem := layout_problem(entry, len(content), sizes, [dtype.itemsize, 8], manifest.image_shape)) is not None:
        raise damaged_store(path.parent, f"{MANIFEST} does not fit {path.name}: {problem}")
    counts = np.array([batch[0] for batch in entry.batches], np.int64)
    columns = [
        [content[start : start + rows * size] for start, size in zip(starts, sizes, strict=True)] for rows, *starts in entry.batches
    ]
    labels = np.empty((entry.rows, len(manifest.label_names)), np.int8)
    first = 0
    for rows, (_, _, *label_columns) in zip(counts.tolist(), columns, strict=True):
        for i, column in enumerate(label_columns):
            labels[first : first + rows, i] = column.view(np.int8)
        first += rows
    classes = manifest.info.classes
    limits = np.array([len(classes[name]) if name in classes else 2 for name in manifest.label_names], np.int64)
    if len(invalid := np.argwhere((labels < MISSING) | (labels >= limits))):
        row, column = invalid[0].tolist()
        raise damaged_store(
            path.parent, f"{path.name} has the impossible value {labels[row, column]} for label {column + 1} in row {row}"
        )
    return Split(
        name=path.stem,
        path=path,
        label_names=manifest.label_names,
        labels=read_only(labels),
        identity=read_only(np.concatenate([np.empty(0, np.int64), *(c[1].view(np.int64) for c in columns)])),
        image_shape=manifest.image_shape,
        dtype=dtype,
        views=tuple(c[0].view(dtype).reshape(-1, *manifest.image_shape) for c in columns),
        starts=np.cumsum(counts) - counts,
    )


def layout_problem(
    entry: SplitFile, size: int, sizes: Sequence[int], alignment: Sequence[int], image_shape: tuple[int, int, int]
) -> str | None:
    """Check the positions of the columns in a file of `size` bytes. Returns the problem, or None if there is none.

    sizes: bytes per row of each column; alignment: bytes, for the first columns.
    """
    if size != entry.bytes:
        return f"it has {size} bytes instead of {entry.bytes}"
    if min(image_shape) < 1 or (sizes[0] > size and entry.rows):
        return f"pictures of shape {image_shape}"
    if {len(batch) for batch in entry.batches} - {1 + len(sizes)}:
        return f"batches of {len(sizes)} columns"
    try:
        table = np.array(entry.batches, np.int64).reshape(-1, 1 + len(sizes))
    except OverflowError:
        return "a position beyond its end"
    rows, starts = table[:, :1], table[:, 1:]
    if (table < 0).any() or (table > size).any() or (rows == 0).any() or (rows * np.array(sizes, float) > size).any():
        return "a position or a length beyond its end"
    ends = starts + rows * np.array(sizes, np.int64)
    if (ends > size).any():
        return "a column that ends beyond its end"
    if (starts[:, : len(alignment)] % np.array(alignment) != 0).any():
        return "a column that is not aligned"
    order = np.argsort(starts, axis=None)
    if (starts.ravel()[order][1:] < ends.ravel()[order][:-1]).any():
        return "two columns that share bytes"
    if rows.sum() != entry.rows:
        return f"{entry.rows} rows, but its batches have {rows.sum()}"
    return None


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array

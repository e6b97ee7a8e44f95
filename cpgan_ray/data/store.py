"""The prepared store: one Arrow IPC file per split, memory-mapped, so that all processes of a node share one copy.

Columns: `image` (fixed-shape tensor, H x W x C: uint8 pictures or float32 signals), `identity` (int64), then one int8 column per
label: 0/1, or the number of a class. A `manifest.json` beside the files says what they hold, with their SHA-256: what is opened is,
byte for byte, what was written (`verify`). `build` writes a store shard by shard: an interrupted build goes on where it stopped,
and nothing has the final name before it is complete.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from cpgan_ray.errors import InputError

MANIFEST = "manifest.json"
FORMAT = 2
"""Version of the files; part of every digest, so that a new version never reads old files."""
SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
SHARD_ROWS = 1024
"""Rows of a shard and of a record batch, fewer where the pictures are large."""
SHARD_BYTES = 64 << 20
"""A shard holds no more picture bytes than this (but at least one row)."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What `build` makes a store of."""

    digest: str
    source: Mapping[str, Any]
    """Where the pictures came from and how they were treated: goes into the manifest as it is."""
    names: Sequence[str]
    """(N,) names of the pictures, for the record of those left out."""
    label_names: tuple[str, ...]
    labels: np.ndarray
    """(N, L) int8, 0 or 1, or the number of a class."""
    identity: np.ndarray
    """(N,) int64."""
    image_shape: tuple[int, int, int]
    rows: Mapping[str, np.ndarray]
    """Split name to the numbers of its rows, in the order they are stored."""
    fetch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Row numbers (n,) to pictures (n, H, W, C) and which of them count, bool (n,); the rest is left out."""
    missing: tuple[str, ...] = ()
    """Pictures that are left out from the start."""
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))
    """uint8 or float32."""
    nature: Nature = field(default_factory=Nature)


UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # not ours
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR),  # no place for a folder
)

# Reading


@dataclass(frozen=True)
class SplitFile:
    """What a manifest says of one file."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The fields of `manifest.json` that are read."""

    format: Literal[FORMAT]  # pyright: ignore[reportInvalidTypeForm]
    digest: str
    source: dict[str, Any]
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    nature: Nature
    splits: dict[Literal["train", "val", "test"], SplitFile]
    skipped: tuple[str, ...]


def open_store(folder: Path) -> Dataset:
    """The store in `folder`, memory-mapped, after a check of its files against its manifest.

    Raises:
        InputError: the store or one of its files is missing, truncated or damaged.
    """
    folder = folder.absolute()
    manifest = read_json(folder, MANIFEST, kind=Manifest)
    for name in SPLITS:
        path, told = folder / f"{name}.arrow", manifest.splits.get(name)
        if told is None or not path.is_file():
            raise damaged(folder, f"{path.name} is missing")
        if path.stat().st_size != told.bytes:
            raise damaged(folder, f"{path.name} has {path.stat().st_size} bytes instead of {told.bytes}")
    verify(folder, checksums(folder))
    splits = {}
    for name in SPLITS:
        path = folder / f"{name}.arrow"
        try:
            split = open_split(path)
        except Exception as e:  # whatever its content leads to
            raise damaged(folder, f"{path.name} cannot be read ({' '.join(str(e).split())[:200]})") from e
        told = (manifest.splits[name].rows, manifest.label_names, manifest.image_shape)
        if (len(split), split.label_names, split.image_shape) != told:
            raise damaged(folder, f"{path.name} does not hold what manifest.json says")
        splits[name] = split
    return Dataset(
        folder=folder,
        digest=manifest.digest,
        label_names=manifest.label_names,
        image_shape=manifest.image_shape,
        nature=manifest.nature,
        skipped=manifest.skipped,
        **splits,
    )


def checksums(folder: Path) -> dict[str, str]:
    """What the manifest in a folder tells of each file of the store: its SHA-256.

    Raises: InputError where the manifest is missing or damaged.
    """
    return {f"{name}.arrow": told.sha256 for name, told in read_json(folder, MANIFEST, kind=Manifest).splits.items()}


def open_split(path: Path) -> Split:
    """One file of a store, memory-mapped, unchecked."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    schema = reader.schema
    image_shape = tuple(schema.field("image").type.shape)
    label_names = tuple(schema.names[2:])
    labels = [np.stack([b[name].to_numpy() for name in label_names], axis=1) for b in batches]
    counts = np.array([len(b) for b in batches], np.int64)
    return Split(
        path=path,
        label_names=label_names,
        labels=_frozen(np.concatenate(labels) if labels else np.empty((0, len(label_names)), np.int8)),
        identity=_frozen(np.concatenate([b["identity"].to_numpy() for b in batches] or [np.empty(0, np.int64)])),
        image_shape=image_shape,
        dtype=np.dtype(schema.field("image").type.value_type.to_pandas_dtype()),
        views=tuple(b["image"].storage.flatten().to_numpy().reshape(-1, *image_shape) for b in batches),
        starts=np.cumsum(counts) - counts,
    )


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


class Damaged(InputError):
    """A prepared folder is not what was written."""

    what: str = ""


def damaged(folder: Path, what: str) -> Damaged:
    error = Damaged(f"prepared store {folder}: {what}: delete this folder, it is prepared again")
    error.what = what
    return error


K = TypeVar("K")


def read_json(folder: Path, name: str, *, kind: type[K]) -> K:
    """A JSON file of a prepared folder, whose values must be of the types that `kind` says.

    Raises: InputError where the file is missing, or holds something else.
    """
    try:
        if not (folder / name).is_file():
            raise damaged(folder, f"{name} is missing")
        return TypeAdapter(kind).validate_json((folder / name).read_bytes(), strict=True)
    except OSError as e:
        raise damaged(folder, f"{name} cannot be read ({e.strerror})") from e
    except ValidationError as e:
        first = e.errors()[0]
        if first["loc"] == ("format",) and first["type"] == "literal_error":
            raise damaged(folder, f"{name} has format {first['input']!r:.40}, this version reads {FORMAT}") from e
        where = " ".join(repr(part)[:40] for part in first["loc"])
        raise damaged(folder, f"{name} cannot be read ({where}{': ' if where else ''}{first['msg']})") from e


VERIFIED = "verified.json"
"""What `verify` remembers: the state of each file when its checksum was right."""


def verify(folder: Path, expected: Mapping[str, str]) -> None:
    """Make sure that the files in `folder` are those that were written, by their SHA-256.

    Each node does that once: hashing 7.5 GB (200,000 pictures of 112 x 112) takes 7 s of a core, too much for every actor. What was
    found right is remembered beside the files with their size, inode and times of change, of which whatever writes to a file
    alters one; for the next one that opens them that is 0.1 ms. Where nothing can be written, each process hashes. Nobody parses a
    file before: Arrow ends the process over some damaged ones.

    Raises: InputError naming the file that is another one.
    """
    if _is_verified(folder, expected):
        return
    with locked(folder) if os.access(folder.parent, os.W_OK) else contextlib.nullcontext():
        if _is_verified(folder, expected):  # by whoever held the lock
            return
        try:
            before = _states(folder, expected)
            wrong = next((name for name, told in expected.items() if checksum(folder / name) != told), None)
        except OSError as e:
            raise damaged(folder, f"{Path(e.filename).name} cannot be read ({e.strerror})") from e
        if wrong is not None:
            raise damaged(folder, f"{wrong} is damaged, its checksum is another one")
        with contextlib.suppress(OSError):
            _remember(folder, before)


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _states(folder: Path, checksums: Mapping[str, str]) -> list[list[str | int]]:
    stats = {name: (folder / name).stat() for name in checksums}
    return [[name, checksums[name], s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats.items()]


def _is_verified(folder: Path, checksums: Mapping[str, str]) -> bool:
    path = folder / VERIFIED
    try:
        return path.is_file() and json.loads(path.read_bytes()) == _states(folder, checksums)
    except (OSError, ValueError, RecursionError):
        return False


def _remember(folder: Path, states: Sequence[object]) -> None:
    with replacing(folder / VERIFIED) as beside:
        beside.write_text(json.dumps(states))


# Writing


def build(folder: Path, plan: Plan, *, progress: bool = True) -> None:
    """Write the store of `plan` to `folder`, which must not exist; the caller holds `locked(folder)`.

    Shards gather in `<folder>.partial`, which is kept when the process dies, so that the next call goes on from the last whole
    shard, and is removed when the input is at fault. Peak disk use is the store plus its largest split; memory holds one shard.

    Raises:
        InputError: raised by `plan.fetch`, or a split came out empty.
    """
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    total = sum(len(rows) for rows in plan.rows.values())
    try:
        with progress_bar(total, what=f"preparing {folder}", unit="pictures", show=progress) as advance:
            splits = {name: _write_split(partial, name, plan, advance=advance) for name in SPLITS}
        if empty := [name for name in SPLITS if len(splits[name]) == 0]:
            raise InputError(
                f"{plan.source.get('path', folder)}: no picture of the {empty[0]} split can be decoded: mend the pictures"
            )
    except InputError:
        shutil.rmtree(partial)
        raise
    skipped = [*plan.missing, *(name for split in SPLITS for name in _skipped(partial / f"{split}.arrow"))]
    found = {f"{name}.arrow": checksum(partial / f"{name}.arrow") for name in splits}
    manifest = {
        "format": FORMAT,
        "digest": plan.digest,
        "source": dict(plan.source),
        "label_names": plan.label_names,
        "image_shape": plan.image_shape,
        "nature": asdict(plan.nature),
        "splits": {
            name: {"rows": len(split), "bytes": (path := partial / f"{name}.arrow").stat().st_size, "sha256": found[path.name]}
            for name, split in splits.items()
        },
        "skipped": skipped,
    }
    with replacing(partial / MANIFEST) as beside:
        beside.write_text(json.dumps(manifest, indent=1) + "\n")
    _remember(partial, _states(partial, found))
    partial.rename(folder)
    _sync(folder.parent)
    if skipped:
        say(f"{len(skipped)} of {total + len(plan.missing)} pictures left out: missing or not decodable, first {skipped[0]!r}")


def _write_split(partial: Path, name: str, plan: Plan, *, advance: Callable[[int], None]) -> Split:
    """Write the shards of one split that are not there yet, join them and remove them."""
    final, rows = partial / f"{name}.arrow", plan.rows[name]
    per_shard = max(1, min(SHARD_ROWS, SHARD_BYTES // (plan.dtype.itemsize * int(np.prod(plan.image_shape)))))
    if not _whole(final, len(rows)):
        shards = []
        for start in range(0, len(rows), per_shard):
            shard, block = partial / f"{name}-{start:08d}.arrow", rows[start : start + per_shard]
            if not _whole(shard, len(block)):
                pictures, kept = plan.fetch(block)
                skipped = [plan.names[int(i)] for i in block[~kept]]
                schema = _schema(plan, skipped)
                _write(shard, schema, [_record_batch(schema, pictures[kept], plan=plan, rows=block[kept])])
            shards.append(shard)
            advance(len(block))
        skipped = [name for shard in shards for name in _skipped(shard)]
        _write(final, _schema(plan, skipped), (batch for shard in shards for batch in _record_batches(shard) if len(batch)))
    else:
        advance(len(rows))
    for shard in partial.glob(f"{name}-*.arrow"):
        shard.unlink()
    return open_split(final)


def _schema(plan: Plan, skipped: Sequence[str]) -> pa.Schema:
    image = pa.fixed_shape_tensor(pa.from_numpy_dtype(plan.dtype), plan.image_shape)
    fields = [("image", image), ("identity", pa.int64()), *((name, pa.int8()) for name in plan.label_names)]
    return pa.schema(fields, metadata={"skipped": json.dumps(skipped)})


def _record_batch(schema: pa.Schema, pictures: np.ndarray, *, plan: Plan, rows: np.ndarray) -> pa.RecordBatch:
    flat = pa.array(np.ascontiguousarray(pictures).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(plan.image_shape)))
    labels = np.asfortranarray(plan.labels[rows])
    columns = [pa.array(labels[:, i]) for i in range(labels.shape[1])]
    image = pa.ExtensionArray.from_storage(schema.field("image").type, storage)
    return pa.record_batch([image, pa.array(plan.identity[rows]), *columns], schema=schema)


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with replacing(path) as beside, pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def _record_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


def _skipped(path: Path) -> list[str]:
    with pa.memory_map(str(path)) as source:
        return json.loads(pa.ipc.open_file(source).schema.metadata[b"skipped"])


def _whole(path: Path, num_rows: int) -> bool:
    """Whether a shard or split file was written to its end and accounts for `num_rows` rows, stored or left out."""
    try:
        return path.is_file() and sum(len(b) for b in _record_batches(path)) + len(_skipped(path)) == num_rows
    except Exception:  # whatever a damaged one leads to
        return False


# What other writers of this floor share


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; synced and renamed to `path` when the block ends well."""
    beside = path.with_name(f".{path.name}.tmp")
    yield beside
    _sync(beside)
    beside.replace(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock that goes with `folder` (`<folder>.lock`), so that one process of the node makes it and the others wait.

    Raises:
        InputError: the place cannot be written to, then or in the block, or is full.
    """
    with _writable(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            say(f"waiting for another process that makes {folder}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in UNWRITABLE:
            raise
        reason = os.strerror(e.errno)
        raise InputError(f"prepared pictures cannot be kept in {folder} ({reason}): give another folder with --cache-dir") from e


@contextlib.contextmanager
def progress_bar(total: int, *, what: str, unit: str, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Call the function given with the number of things done since the last call: a bar on a terminal, else a line every 10 s."""
    start = said = time.monotonic()
    done = 0
    bar = tqdm(total=total, desc=what, unit=f" {unit}", disable=None if show else True)

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        bar.update(count)
        if bar.disable and show and time.monotonic() - said >= 10:
            said = time.monotonic()
            say(f"{what}: {done} of {total} {unit}, {said - start:.0f} s")

    try:
        yield advance
    finally:
        bar.close()


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

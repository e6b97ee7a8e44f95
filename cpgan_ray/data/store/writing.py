"""Writing a store, shard by shard."""

import itertools
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cpgan_ray.common.atomic_io import atomic_path, make_folder, sync, write_text
from cpgan_ray.common.ownership import SUFFIX, is_own, sign
from cpgan_ray.data.store.dataset import SPLITS
from cpgan_ray.data.store.files import checksum, progress_bar
from cpgan_ray.data.store.info import DatasetInfo
from cpgan_ray.data.store.manifest import FORMAT, MANIFEST, SplitFile, read_json, sealed
from cpgan_ray.data.store.reading import VERIFIED, remember, states
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

Describe = Callable[[Mapping[str, int], int], Iterable[str]]
SHARD_ROWS = 1024
"""Rows of a shard and of a record batch, fewer where the pictures are large."""
SHARD_BYTES = 64 << 20
"""A shard holds no more picture bytes than this (but at least one row)."""


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
    info: DatasetInfo = field(default_factory=DatasetInfo)
    remarks: Counter[str] = field(default_factory=Counter)
    """What is to be reported of pictures that are kept, kind to number; `fetch` may count more."""


def build(folder: Path, plan: Plan, *, progress: bool = True, describe: Describe = lambda remarks, total: ()) -> None:
    """Write the store of `plan` to `folder`, which must not exist; the caller holds `locked(folder)`.

    Shards gather in `<folder>.partial`, which is kept when the process dies, so that the next call goes on from the last whole
    shard, and is removed when the input is at fault. Peak disk use is the store plus its largest split; memory holds one shard.
    Shards that this user has not signed (common/ownership.py) are made again: they may have come with the data.

    describe: remarks and the number of pictures to the lines that report them.

    Raises:
        InputError: raised by `plan.fetch`, or a split came out empty.
    """
    partial = make_folder(folder.with_name(folder.name + ".partial"))
    _remove(partial.glob(".*.tmp"))  # of a process that was killed
    total = sum(len(rows) for rows in plan.rows.values())
    before = Counter(plan.remarks)
    try:
        with progress_bar(total, what=f"preparing {folder}", unit="pictures", show=progress) as advance:
            splits = {name: _write_split(partial, name, plan, advance=advance) for name in SPLITS}
        if empty := [name for name, split in splits.items() if split.file.rows == 0]:
            raise InputError(
                f"{plan.source.get('path', folder)}: no picture of the {empty[0]} split can be decoded: mend the pictures"
            )
    except InputError:
        shutil.rmtree(partial)
        raise
    skipped = [*plan.missing, *(name for split in splits.values() for name in split.skipped)]
    remarks = sum((Counter(split.remarks) for split in splits.values()), before)
    manifest = {
        "format": FORMAT,
        "digest": plan.digest,
        "source": dict(plan.source),
        "label_names": plan.label_names,
        "image_shape": plan.image_shape,
        "dtype": str(plan.dtype),
        "info": asdict(plan.info),
        "splits": {name: asdict(split.file) for name, split in splits.items()},
        "skipped": skipped,
        "remarks": dict(sorted(remarks.items())),
    }
    write_text(partial / MANIFEST, sealed(manifest))
    sign(partial / MANIFEST)
    remember(partial, states(partial, {f"{name}.arrow": split.file.sha256 for name, split in splits.items()}))
    kept = {f"{name}.arrow" for name in SPLITS} | {MANIFEST, MANIFEST + SUFFIX, VERIFIED}
    _remove(path for path in partial.iterdir() if path.name not in kept)
    partial.rename(folder)
    sync(folder.parent)
    if skipped:
        logger.info(
            f"{len(skipped)} of {total + len(plan.missing)} pictures left out: missing or not decodable, first {skipped[0]!r}"
        )
    for line in describe(remarks, sum(split.file.rows for split in splits.values())):
        logger.info(line)


@dataclass(frozen=True)
class Written:
    """A split that is complete: `<split>.json` in the partial folder, while the others are not."""

    file: SplitFile
    skipped: tuple[str, ...]
    remarks: dict[str, int]


def _write_split(partial: Path, name: str, plan: Plan, *, advance: Callable[[int], None]) -> Written:
    """Write the shards of one split that are not there yet, join them and remove them."""
    final, rows = partial / f"{name}.arrow", plan.rows[name]
    per_shard = max(1, min(SHARD_ROWS, SHARD_BYTES // (plan.dtype.itemsize * int(np.prod(plan.image_shape)))))
    if (written := _written(final, len(rows))) is not None:
        advance(len(rows))
        return written
    shards = []
    for start in range(0, len(rows), per_shard):
        shard, block = partial / f"{name}-{start:08d}.arrow", rows[start : start + per_shard]
        if not _whole(shard, len(block)):
            before = Counter(plan.remarks)
            pictures, kept = plan.fetch(block)
            schema = _schema(plan, [plan.names[int(i)] for i in block[~kept]], plan.remarks - before)
            _write(shard, schema, [_record_batch(schema, pictures[kept], plan=plan, rows=block[kept])])
            sign(shard)
        shards.append(shard)
        advance(len(block))
    skipped, remarks = zip(*map(_noted, shards), strict=True) if shards else ((), ())
    joined = (batch for shard in shards for batch in _record_batches(shard) if len(batch))
    _write(final, _schema(plan, [], Counter()), joined)
    batches = _positions(final)
    file = SplitFile(sum(batch[0] for batch in batches), final.stat().st_size, checksum(final), batches)
    written = Written(file, tuple(itertools.chain(*skipped)), dict(sum(remarks, Counter())))
    write_text(final.with_suffix(".json"), json.dumps(asdict(written)))
    sign(final.with_suffix(".json"))
    _remove(partial.glob(f"{name}-*.arrow*"))
    return written


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _schema(plan: Plan, skipped: Sequence[str], remarks: Mapping[str, int]) -> pa.Schema:
    image = pa.fixed_shape_tensor(pa.from_numpy_dtype(plan.dtype), plan.image_shape)
    fields = [("image", image), ("identity", pa.int64()), *((name, pa.int8()) for name in plan.label_names)]
    return pa.schema(fields, metadata={"skipped": json.dumps(list(skipped)), "remarks": json.dumps(dict(remarks))})


def _record_batch(schema: pa.Schema, pictures: np.ndarray, *, plan: Plan, rows: np.ndarray) -> pa.RecordBatch:
    flat = pa.array(np.ascontiguousarray(pictures).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(plan.image_shape)))
    labels = np.asfortranarray(plan.labels[rows])
    columns = [pa.array(labels[:, i]) for i in range(labels.shape[1])]
    image = pa.ExtensionArray.from_storage(schema.field("image").type, storage)
    return pa.record_batch([image, pa.array(plan.identity[rows]), *columns], schema=schema)


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with atomic_path(path) as beside, pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def _record_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


def _positions(path: Path) -> tuple[tuple[int, ...], ...]:
    """`SplitFile.batches` of a file that has just been written."""
    with pa.memory_map(str(path)) as source:
        content = source.read_buffer()
        reader = pa.ipc.open_file(content)
        found = []
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            buffers = [column.buffers()[-1] for column in batch.columns]
            found.append((len(batch), *(buffer.address - content.address for buffer in buffers if buffer is not None)))
    return tuple(found)


def _noted(path: Path) -> tuple[list[str], Counter[str]]:
    """The pictures that a shard leaves out, and the remarks on the others."""
    with pa.memory_map(str(path)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata
    return json.loads(metadata[b"skipped"]), Counter(json.loads(metadata[b"remarks"]))


def _whole(path: Path, num_rows: int) -> bool:
    """Whether a shard was written by this user, to its end, and accounts for `num_rows` rows, stored or left out."""
    if not (path.is_file() and is_own(path)):
        return False
    try:
        return sum(len(b) for b in _record_batches(path)) + len(_noted(path)[0]) == num_rows
    except Exception:  # whatever a damaged one leads to
        return False


def _written(final: Path, num_rows: int) -> Written | None:
    """A split that an earlier call has completed; None where there is none, or not one of this user's."""
    path = final.with_suffix(".json")
    if not (path.is_file() and final.is_file() and is_own(path)):
        return None
    try:
        written = read_json(path.parent, path.name, kind=Written)
        whole = written.file.rows + len(written.skipped) == num_rows and checksum(final) == written.file.sha256
    except (InputError, OSError):
        return None
    return written if whole else None

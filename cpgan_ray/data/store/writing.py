"""Write a store, shard by shard."""

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
from cpgan_ray.data.store.dataset import FILES, SPLITS
from cpgan_ray.data.store.files import checksum, progress_bar
from cpgan_ray.data.store.info import DatasetInfo
from cpgan_ray.data.store.manifest import FORMAT, MANIFEST, SplitFile, manifest_text, read_json
from cpgan_ray.data.store.reading import VERIFIED, file_states, record_verified
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

Describe = Callable[[Mapping[str, int], int], Iterable[str]]
SHARD_ROWS = 1024
"""Rows of a shard and of a record batch; fewer if the pictures are large."""
SHARD_BYTES = 64 << 20
"""Maximum picture bytes of a shard (a shard has at least one row)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The input of `build`: everything that a store is made from."""

    digest: str
    source: Mapping[str, Any]
    """Origin of the pictures and the settings of their processing; copied into the manifest."""
    names: Sequence[str]
    """(N,) names of the pictures, to record the skipped ones."""
    label_names: tuple[str, ...]
    labels: np.ndarray
    """(N, L) int8: 0 or 1, or the number of a class; `MISSING` if the answer is not known."""
    identity: np.ndarray
    """(N,) int64."""
    image_shape: tuple[int, int, int]
    rows: Mapping[str, np.ndarray]
    """Split name to its row numbers, in the order in which they are stored. Without `final` that split is empty."""
    fetch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Row numbers (n,) to pictures (n, H, W, C) and a mask of the valid ones, bool (n,); the others are skipped."""
    missing: tuple[str, ...] = ()
    """Pictures that are known to be missing before `build` starts."""
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))
    """uint8 or float32."""
    info: DatasetInfo = field(default_factory=DatasetInfo)
    remarks: Counter[str] = field(default_factory=Counter)
    """Remarks on pictures that are stored: kind to number. `fetch` may add more."""


def build(folder: Path, plan: Plan, *, progress: bool = True, describe: Describe = lambda remarks, total: ()) -> None:
    """Write the store of `plan` to `folder`, which must not exist; the caller holds `folder_lock(folder)`.

    Shards are collected in `<folder>.partial`. This folder stays if the process dies, so that the next call continues after the
    last complete shard; it is removed if the input is wrong. Peak disk use is the store plus its largest split; memory holds one
    shard. Shards that this user has not signed (common/ownership.py) may have come with the data: they are written again.

    describe: returns the log lines for the remarks and the number of pictures.

    Raises:
        InputError: raised by `plan.fetch`, or a split has no pictures.
    """
    partial = make_folder(folder.with_name(folder.name + ".partial"))
    _remove(partial.glob(".*.tmp"))  # left by a process that was killed
    total = sum(len(rows) for rows in plan.rows.values())
    before = Counter(plan.remarks)
    try:
        with progress_bar(total, what=f"preparing {folder}", unit="pictures", show=progress) as advance:
            splits = {name: _write_split(partial, name, plan, advance=advance) for name in FILES}
        if empty := [name for name in SPLITS if splits[name].file.rows == 0]:
            raise InputError(
                f"{plan.source.get('path', folder)}: no picture of the {empty[0]} split can be decoded: repair the pictures"
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
    write_text(partial / MANIFEST, manifest_text(manifest))
    sign(partial / MANIFEST)
    record_verified(partial, file_states(partial, {f"{name}.arrow": split.file.sha256 for name, split in splits.items()}))
    final_names = {f"{name}.arrow" for name in FILES} | {MANIFEST, MANIFEST + SUFFIX, VERIFIED}
    _remove(path for path in partial.iterdir() if path.name not in final_names)
    partial.rename(folder)
    sync(folder.parent)
    if skipped:
        logger.info(
            f"{len(skipped)} of {total + len(plan.missing)} pictures skipped (missing or not decodable), first {skipped[0]!r}"
        )
    for line in describe(remarks, sum(split.file.rows for split in splits.values())):
        logger.info(line)


@dataclass(frozen=True)
class WrittenSplit:
    """A complete split: the content of `<split>.json` in the partial folder."""

    file: SplitFile
    skipped: tuple[str, ...]
    remarks: dict[str, int]


def _write_split(partial: Path, name: str, plan: Plan, *, advance: Callable[[int], None]) -> WrittenSplit:
    """Write the missing shards of one split, join all of them and remove them."""
    final, rows = partial / f"{name}.arrow", plan.rows.get(name, np.empty(0, np.int64))
    per_shard = max(1, min(SHARD_ROWS, SHARD_BYTES // (plan.dtype.itemsize * int(np.prod(plan.image_shape)))))
    if (written := _read_complete_split(final, len(rows))) is not None:
        advance(len(rows))
        return written
    shards = []
    for start in range(0, len(rows), per_shard):
        shard, block = partial / f"{name}-{start:08d}.arrow", rows[start : start + per_shard]
        if not _is_complete_shard(shard, len(block)):
            before = Counter(plan.remarks)
            pictures, valid = plan.fetch(block)
            schema = _schema(plan, [plan.names[int(i)] for i in block[~valid]], plan.remarks - before)
            _write(shard, schema, [_record_batch(schema, pictures[valid], plan=plan, rows=block[valid])])
            sign(shard)
        shards.append(shard)
        advance(len(block))
    skipped, remarks = zip(*map(_skipped_and_remarks, shards), strict=True) if shards else ((), ())
    joined = (batch for shard in shards for batch in _record_batches(shard) if len(batch))
    _write(final, _schema(plan, [], Counter()), joined)
    batches = _positions(final)
    file = SplitFile(sum(batch[0] for batch in batches), final.stat().st_size, checksum(final), batches)
    written = WrittenSplit(file, tuple(itertools.chain(*skipped)), dict(sum(remarks, Counter())))
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
    with atomic_path(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def _record_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


def _positions(path: Path) -> tuple[tuple[int, ...], ...]:
    """`SplitFile.batches` for a file that has just been written."""
    with pa.memory_map(str(path)) as source:
        content = source.read_buffer()
        reader = pa.ipc.open_file(content)
        positions = []
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            buffers = [column.buffers()[-1] for column in batch.columns]
            positions.append((len(batch), *(buffer.address - content.address for buffer in buffers if buffer is not None)))
    return tuple(positions)


def _skipped_and_remarks(path: Path) -> tuple[list[str], Counter[str]]:
    """The pictures that a shard skips, and the remarks on the others."""
    with pa.memory_map(str(path)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata
    return json.loads(metadata[b"skipped"]), Counter(json.loads(metadata[b"remarks"]))


def _is_complete_shard(path: Path, num_rows: int) -> bool:
    """Whether a shard was written completely by this user, and has `num_rows` rows, stored or skipped."""
    if not (path.is_file() and is_own(path)):
        return False
    try:
        return sum(len(b) for b in _record_batches(path)) + len(_skipped_and_remarks(path)[0]) == num_rows
    except Exception:  # a damaged shard may raise any error
        return False


def _read_complete_split(final: Path, num_rows: int) -> WrittenSplit | None:
    """The split that an earlier call of this user has completed; None if absent or damaged."""
    path = final.with_suffix(".json")
    if not (path.is_file() and final.is_file() and is_own(path)):
        return None
    try:
        written = read_json(path.parent, path.name, kind=WrittenSplit)
        complete = written.file.rows + len(written.skipped) == num_rows and checksum(final) == written.file.sha256
    except (InputError, OSError):
        return None
    return written if complete else None

"""Writing a store, shard by shard."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cpgan_ray.data.store.dataset import SPLITS, Nature, Split, open_split
from cpgan_ray.data.store.files import checksum, progress_bar, replacing, say, sync
from cpgan_ray.data.store.reading import FORMAT, MANIFEST, remember, states
from cpgan_ray.errors import InputError

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
    nature: Nature = field(default_factory=Nature)


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
    remember(partial, states(partial, found))
    partial.rename(folder)
    sync(folder.parent)
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

"""Small folders of own pictures for tests."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import Dataset, load

SIDE = 16


def drawn(row: int, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """A smooth random picture."""
    rng = np.random.default_rng(row)
    return Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encoded(row: int, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    drawn(row).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def write_files(folder: Path, names: Sequence[str]) -> Path:
    """A picture for each name."""
    for row, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(row))
    return folder


def csv_text(columns: Mapping[str, Sequence[Any]], *, delimiter: str = ",", **options: Any) -> str:
    writer = csv.writer(buffer := io.StringIO(), delimiter=delimiter, **options)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue()


def write_table(folder: Path, columns: Mapping[str, Sequence[Any]], name: str = "labels.csv") -> Path:
    """A folder with a table and the pictures that its column `file` lists."""
    write_files(folder, columns["file"])
    (folder / name).write_text(csv_text(columns))
    return folder


def write_shard(
    path: Path, columns: Mapping[str, Sequence[Any]], *, rows: Sequence[int], metadata: Mapping[str, str] | None = None
):
    """A Parquet file with pictures inside, as Hugging Face writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": encoded(row), "path": f"{row:04d}.png"} for row in rows]
    table = pa.table({"image": pictures, **columns})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=7)


def configure(folder: Path | str, cache: Path, *, skip_corrupt: bool = False, **data: Any) -> Config:
    settings = {"image_size": SIDE, "final_fraction": 0.0, **data}
    return Config(data_dir=folder, cache_dir=cache, skip_corrupt=skip_corrupt, data=DataConfig(dataset="pictures", **settings))


def opened(folder: Path | str, cache: Path, **settings: Any) -> Dataset:
    return load(configure(folder, cache, **settings), progress=False)


def content(dataset: Dataset) -> dict[str, tuple[list, list, bytes]]:
    """Labels, identities and pixels of each split."""
    splits = {**dataset.splits, "final": dataset.final}
    return {
        name: (split.labels.tolist(), split.identity.tolist(), b"".join(x.tobytes() for x in split.iter_batches(100)))
        for name, split in splits.items()
    }

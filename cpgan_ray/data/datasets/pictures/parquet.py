"""Read pictures from Parquet files that contain them, several files together, as Hugging Face stores data sets.

The columns are read at once, the pictures only when they are decoded: row group by row group, a few rows at a time. Rows are asked
for in rising order, so a reader continues in its row group instead of starting again.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpgan_ray.config import DataConfig
from cpgan_ray.data.datasets.celeba_rows import display_name
from cpgan_ray.data.datasets.pictures.layout import Layout, image_columns, parquet_errors
from cpgan_ray.data.datasets.pictures.listing import Files, Listing
from cpgan_ray.data.datasets.pictures.splits import part_named
from cpgan_ray.data.datasets.pictures.tables import arrow_columns
from cpgan_ray.data.decoder_pool import PictureFile
from cpgan_ray.data.decoding import MAX_FILE_BYTES
from cpgan_ray.errors import InputError

BATCH_ROWS = 32
"""Pictures that are read at a time."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of one of the files."""

    path: Path
    number: int
    start: int  # row number of its first picture, over all files


def read_parquet(layout: Layout, data: DataConfig) -> Listing:
    """The pictures of all Parquet files, in the order of the files' names.

    Raises:
        InputError: a file cannot be read, has no column of pictures or several, or has other columns than the first.
    """
    paths = [layout.source / name for name in layout.shards]
    groups: list[RowGroup] = []
    tables: list[pa.Table] = []
    first: pa.Schema | None = None
    image, is_struct, num_rows = "", False, 0
    for path in paths:
        with parquet_errors(path), pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if first is None:
                first, image = schema, picture_column(schema, path, data)
                is_struct = pa.types.is_struct(schema.field(image).type)
            if not schema.equals(first):
                raise InputError(
                    f"{path} has other columns than {paths[0].name}: keep only the files of one data set in --data-dir"
                )
            others = [name for name in schema.names if name != image]
            named = is_struct and schema.field(image).type.get_field_index("path") >= 0
            table = file.read(columns=others + ([f"{image}.path"] if named else []), use_threads=False)
            table.validate(full=True)
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            if min(sizes, default=0) < 0 or sum(sizes) != len(table):
                raise ValueError("its row groups do not have the rows that it announces")
            for number, size in enumerate(sizes):
                groups.append(RowGroup(path, number, num_rows))
                num_rows += size
            tables.append(table)
    if not num_rows:
        raise InputError(f"{layout.source}: the Parquet files have no rows: give files with pictures")
    whole = pa.concat_tables(tables).replace_schema_metadata((first or schema).metadata)
    counts = [len(table) for table in tables]
    names, row_name = row_names(whole, image, layout.shards, counts)
    columns, unusable = arrow_columns(whole.drop_columns([image]) if image in whole.column_names else whole)
    parts = [part_named(name) for name in layout.shards]

    @contextlib.contextmanager
    def open_files() -> Iterator[Files]:
        reader = Reader(groups, num_rows, f"{image}.bytes" if is_struct else image)
        yield reader.read

    return Listing(
        origin=str(layout.source),
        names=names,
        columns=columns,
        unusable=unusable,
        parts=None if None in parts else np.repeat(np.array(parts, np.int64), counts),
        exists=np.ones(num_rows, bool),
        open=open_files,
        row_name=row_name,
    )


def picture_column(schema: pa.Schema, path: Path, data: DataConfig) -> str:
    """The column of pictures.

    Raises:
        InputError: there is none, or there are several and `data.path_column` names none of them.
    """
    found, shown = image_columns(schema), ", ".join(map(display_name, schema.names))
    if data.path_column:
        if data.path_column not in found:
            raise InputError(
                f"data.path_column: {path.name} has no pictures in a column {data.path_column!r}: choose from "
                f"{', '.join(found) or shown}"
            )
        return data.path_column
    if not found:
        raise InputError(
            f"{path} has no pictures inside, its columns are {shown}: if it lists picture files, name it with --data.table, "
            "otherwise move it to another folder"
        )
    if len(found) > 1:
        raise InputError(
            f"{path.name}: the columns {' and '.join(map(display_name, found))} all hold pictures: choose one with "
            "--data.path-column"
        )
    return found[0]


def row_names(whole: pa.Table, image: str, shards: list[str], counts: list[int]):
    """The name of each row, and a function from a row number to a name for messages. Rows have the names of their pictures, if
    these are all different; otherwise the names of the files, with the row."""
    starts = np.cumsum([0, *counts])

    def row_name(row: int) -> str:
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{display_name(shards[shard])}, row {row - int(starts[shard]) + 1}"

    if image in whole.column_names:
        names = whole.column(image).combine_chunks().field("path").to_pylist()
        if None not in names and len(set(names)) == len(names):
            return names, row_name
    return [f"{shard}:{row}" for shard, count in zip(shards, counts, strict=True) for row in range(count)], row_name


class Reader:
    """Reads the bytes of pictures."""

    def __init__(self, groups: list[RowGroup], num_rows: int, column: str) -> None:
        """column: the path of the column of bytes in the files."""
        self.groups, self.column = groups, column
        self.starts = np.array([group.start for group in groups], np.int64)
        self.open_group, self.next_row, self.rows = -1, num_rows, iter(())

    def read(self, rows: np.ndarray) -> Iterator[PictureFile]:
        """The files of the pictures in these rows (n,).

        Raises:
            InputError: a file cannot be read.
        """
        for row in rows.tolist():
            number = int(np.searchsorted(self.starts, row, side="right")) - 1
            group = self.groups[number]
            with parquet_errors(group.path):
                if number != self.open_group or row < self.next_row:
                    self.open_group, self.next_row, self.rows = number, group.start, self._rows(group)
                while self.next_row < row:
                    next(self.rows)
                    self.next_row += 1
                content = next(self.rows).as_py()
                self.next_row += 1
            content = content.get("bytes") if isinstance(content, dict) else content
            if content is None:
                yield "it has no bytes; a path to another file is not followed"
            elif len(content) > MAX_FILE_BYTES:
                yield f"the file is larger than {MAX_FILE_BYTES} bytes"
            else:
                yield content

    def _rows(self, group: RowGroup) -> Iterator[pa.Scalar]:
        """The cells of a row group, read a few at a time."""
        with pq.ParquetFile(group.path, memory_map=True, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group.number], columns=[self.column], use_threads=False):
                yield from batch.column(0)

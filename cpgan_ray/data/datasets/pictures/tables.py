"""Read a table of own pictures: text with any usual separator, or Parquet.

Text is parsed by Python's csv module in strict mode, which reports the line of a stray or open quote, and keeps only the distinct
values of each column in memory. The separator is the one that divides the first line into most fields, of comma, semicolon, tab and
bar. `csv.Sniffer` and its successors guess from the frequency of characters: this project's names of columns and decimal commas
misled them. A table has at least two columns, so the first line decides.
"""

import contextlib
import csv
import io
import json
from array import array
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cpgan_ray.config import DataConfig
from cpgan_ray.data.datasets.celeba_pictures import Pictures, match
from cpgan_ray.data.datasets.celeba_rows import display_name, quoted_short, read
from cpgan_ray.data.datasets.pictures.layout import PARQUET, Layout, parquet_errors
from cpgan_ray.data.datasets.pictures.listing import Column, Files, Listing
from cpgan_ray.errors import InputError

SEPARATORS = (",", ";", "\t", "|")
MIN_SHARE_OF_FILES = 0.5
"""A column is found to be the one of paths if at least this share of its values are existing files."""
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
"""Byte order marks -> encoding."""


def read_table(layout: Layout, data: DataConfig) -> Listing:
    """The pictures that a table lists, in its order.

    Raises:
        InputError: the table is malformed, has no column of paths or several, lists a picture twice, or a path leads out of the
            folder.
    """
    assert layout.table is not None
    path = layout.source / layout.table
    columns, unusable, lines = read_parquet_table(path) if path.suffix.lower() == PARQUET else read_text_table(path)
    pictures = Pictures(path=layout.source, stamps=layout.pictures)

    def row_name(row: int) -> str:
        return f"{layout.table}, {'row' if lines is None else 'line'} {row + 1 if lines is None else lines[row]}"

    name = path_column(columns, layout, data)
    listed = relative_paths(columns[name], layout, name, row_name)
    others = iter(match(pictures, [value for value in listed.values if value not in layout.pictures]))
    stored = [value if value in layout.pictures else next(others) for value in listed.values]
    codes = listed.codes.tolist()
    names = [listed.values[code] for code in codes]
    files = [stored[code] for code in codes]
    ensure_once(files, row_name, names)
    exists = np.array([file is not None for file in files], bool)

    @contextlib.contextmanager
    def open_files() -> Iterator[Files]:
        yield lambda rows: (layout.source / (files[int(row)] or "") for row in rows)

    return Listing(
        origin=layout.table,
        names=names,
        columns={key: column for key, column in columns.items() if key != name},
        unusable=unusable,
        exists=exists,
        renamed=sum(PurePosixPath(file or "").name != PurePosixPath(n).name for file, n in zip(files, names, strict=True) if file),
        open=open_files,
        row_name=row_name,
    )


# Text


def read_text_table(path: Path) -> tuple[dict[str, Column], dict[str, str], array]:
    """The columns of a text table, and the line number of each row.

    Raises:
        InputError: the encoding is not UTF-8 or UTF-16, a row has another number of fields than the first line, a quote is open, a
            name of a column is given twice, or there are no rows.
    """
    text = decode(path, read(path))
    separator = max(SEPARATORS, key=lambda mark: len(first_fields(path, text, mark)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    numbers: list[dict[str, int]] = []
    codes: list[array] = []
    lines = array("q")
    try:
        for fields in reader:
            if not fields:
                continue
            if not header:
                header = [field.strip() for field in fields]
                numbers, codes = [{} for _ in header], [array("i") for _ in header]
                continue
            if len(fields) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: expected {len(header)} fields as in the first line, got {len(fields)}, in "
                    f"{quoted_short(separator.join(fields))}: put a field that contains {separator!r} into quotes"
                )
            for field, known, column in zip(fields, numbers, codes, strict=True):
                column.append(known.setdefault(field.strip(), len(known)))
            lines.append(reader.line_num)
    except csv.Error as e:
        raise InputError(f"{path}, line {reader.line_num}: it is not CSV ({e}): repair the quotes in this line") from e
    if not lines:
        raise InputError(f"{path} has no rows after its first line: give a table with a line for each picture")
    columns = [Column(list(known), np.frombuffer(column, np.int32)) for known, column in zip(numbers, codes, strict=True)]
    return named_columns(path, header, columns), {}, lines


def decode(path: Path, content: bytes) -> str:
    """The text of a table in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        InputError: it has another encoding.
    """
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as e:
        what = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise InputError(f"{path} is not {what} text (byte {e.start} is 0x{content[e.start]:02x}): save it as UTF-8") from e
    if "\0" in text:
        raise InputError(f"{path} has a NUL character, so it is UTF-16 without its mark, or no text: save it as UTF-8")
    return text


def first_fields(path: Path, text: str, separator: str) -> list[str]:
    """The fields of the first line that is not empty."""
    try:
        return next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator)), [])
    except csv.Error as e:
        raise InputError(f"{path}, line 1: it is not CSV ({e}): repair this line") from e


def named_columns(path: Path, header: list[str], columns: list[Column]) -> dict[str, Column]:
    """The columns by name. Columns without a name, such as the index that pandas writes, are left out.

    Raises:
        InputError: a name is given twice.
    """
    named = [name for name in header if name]
    if repeated := [name for i, name in enumerate(named) if name in named[:i]]:
        raise InputError(f"{path}: two columns are named {quoted_short(repeated[0])}: rename one")
    return {name: column for name, column in zip(header, columns, strict=True) if name}


# Parquet


def read_parquet_table(path: Path) -> tuple[dict[str, Column], dict[str, str], None]:
    """The columns of a Parquet table, and the kinds of those that cannot be labels.

    Raises:
        InputError: the file cannot be read or has no rows.
    """
    with parquet_errors(path):
        table = pq.read_table(path, use_threads=False)
        table.validate(full=True)
    if not len(table):
        raise InputError(f"{path} has no rows: give a table with a row for each picture")
    return *arrow_columns(table), None


def arrow_columns(table: pa.Table) -> tuple[dict[str, Column], dict[str, str]]:
    """The columns of an Arrow table, and the kinds of those that hold lists, structs or bytes."""
    columns: dict[str, Column] = {}
    unusable: dict[str, str] = {}
    declared = declared_classes(table.schema)
    for name, values in zip(table.column_names, table.columns, strict=True):
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
            unusable[name] = str(kind) if len(str(kind)) < 40 else f"{str(kind)[:37]}..."
            continue
        coded = pc.call_function("utf8_trim_whitespace", [values.cast(kind).cast(pa.string()).combine_chunks()]).dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        columns[name] = Column(coded.dictionary.to_pylist(), codes, declared.get(name, ()))
    return columns, unusable


def declared_classes(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The class names that Hugging Face writes into the file's metadata, by column; empty if there are none."""
    try:
        features: dict[str, Any] = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        classes = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
        return {name: tuple(map(str, names)) for name, names in classes.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


# Paths


def path_column(columns: dict[str, Column], layout: Layout, data: DataConfig) -> str:
    """The column of paths.

    Raises:
        InputError: it does not exist, or it is not given and not exactly one column has paths of existing files.
    """
    shown = ", ".join(map(display_name, columns))
    if data.path_column:
        if data.path_column not in columns:
            raise InputError(f"data.path_column: {layout.table} has no column {data.path_column!r}: choose from {shown}")
        return data.path_column
    known = {*layout.pictures, *(name.rpartition("/")[2] for name in layout.pictures)}
    shares = {name: _share_of_files(column, known) for name, column in columns.items()}
    found = [name for name, share in shares.items() if share >= MIN_SHARE_OF_FILES]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{layout.table}: the columns {' and '.join(map(display_name, found))} both hold names of pictures: choose one with "
            "--data.path-column"
        )
    example = display_name(min(layout.pictures))
    raise InputError(
        f"{layout.table}: no column holds paths of pictures relative to {layout.source}, such as {example}: its columns are "
        f"{shown}; name one with --data.path-column"
    )


def _share_of_files(column: Column, known: set[str]) -> float:
    """The share of the distinct values that are names of existing files."""
    values = [value for value in column.values if value]
    return sum(clean(value) in known for value in values) / max(1, len(values))


def clean(path: str) -> str:
    """A path with slashes and without `./` in front."""
    return path.replace("\\", "/").removeprefix("./")


def relative_paths(column: Column, layout: Layout, name: str, row_name: Any) -> Column:
    """The column of paths, cleaned.

    Raises:
        InputError: a path is empty, absolute, or leads out of the folder.
    """
    if len(empty := column.empty_rows()):
        raise InputError(
            f"{row_name(int(empty[0]))}: column {display_name(name)} has no path ({len(empty)} such rows): give every row one"
        )
    values = [clean(value) for value in column.values]
    for code, value in enumerate(values):
        if value.startswith("/") or ".." in value.split("/") or value[1:3] == ":/":
            row = row_name(int(np.argmax(column.codes == code)))
            raise InputError(
                f"{row}: {quoted_short(value)} is absolute or leads out of {layout.source}: give paths relative to --data-dir"
            )
    return Column(values, column.codes)


def ensure_once(files: list[str | None], row_name: Any, names: list[str]) -> None:
    """Raises: InputError if two rows have the same file."""
    first: dict[str, int] = {}
    for row, file in enumerate(files):
        key = file or names[row]
        if (before := first.setdefault(key, row)) != row:
            repeated = len(files) - len({file or name for file, name in zip(files, names, strict=True)})
            raise InputError(
                f"{row_name(row)}: {display_name(key)} is listed twice, first in {row_name(before).partition(', ')[2]} "
                f"({repeated} such rows): keep one row for each picture"
            )

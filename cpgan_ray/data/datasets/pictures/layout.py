"""The files of a folder of own pictures, and which of the three layouts it has."""

import contextlib
import difflib
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from cpgan_ray.config import DataConfig
from cpgan_ray.data.datasets.celeba_pictures import EXTENSIONS, file_sizes
from cpgan_ray.data.datasets.celeba_rows import display_name, read
from cpgan_ray.errors import InputError

PARQUET = ".parquet"
TABLES = (".csv", ".tsv", ".tab", ".txt")
"""Extensions of text tables, for the hint that `--data.table` is missing."""
FIXED_SIZE = (".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff")
"""Extensions of formats in which other pixels need not change the size of the file: the digest includes a checksum of the
content."""
FOOTER_BYTES = 1 << 20
"""The end of a Parquet file has the statistics of all its columns; the digest includes it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The files of a source that are read."""

    source: Path
    table: str | None
    """The table in a layout with a table."""
    shards: list[str]
    """Parquet files with pictures inside, sorted; empty in the other layouts."""
    pictures: dict[str, int]
    """Picture files to their sizes; empty if the pictures are inside Parquet files."""


def is_visible(name: str) -> bool:
    """Whether no part of a relative path is hidden."""
    return not any(part.startswith(".") for part in name.split("/"))


def is_picture(name: str) -> bool:
    """Whether a name has the extension of a picture."""
    return PurePosixPath(name).suffix.lower().lstrip(".") in EXTENSIONS


def files_read(names: Iterable[str], data: DataConfig) -> tuple[list[str], list[str]]:
    """The Parquet files, or else the pictures, of all files in a folder; with a table only pictures."""
    visible = sorted(name for name in names if is_visible(name) and name != data.table)
    shards = [name for name in visible if name.lower().endswith(PARQUET)]
    pictures = [name for name in visible if is_picture(name)]
    return ([], pictures) if data.table or not shards else (shards, [])


def find_layout(source: Path, data: DataConfig) -> Layout:
    """The layout of the pictures in a folder.

    Raises:
        InputError: the folder, the table or pictures are missing, or two layouts contradict each other.
    """
    if not source.is_dir():
        raise InputError(
            f"data folder {source} does not exist or is not a folder: give the folder of your pictures with --data-dir"
        )
    sizes = {name: size for name, size in file_sizes(source) if is_visible(name)}
    table = table_name(source, data, sizes) if data.table else None
    shards, pictures = files_read(sizes, data)
    if table is not None and not pictures:
        inside = [name for name in sizes if name.lower().endswith(PARQUET) and has_pictures(source / name)]
        if inside:
            raise InputError(
                f"data.table is {data.table!r}, but the pictures are inside {display_name(inside[0])}, with its own columns: "
                "leave out --data.table"
            )
    elif table is not None and table.lower().endswith(PARQUET) and has_pictures(source / table):
        raise InputError(
            f"data.table is {data.table!r}, which has pictures inside, but {source} also has picture files: leave out "
            "--data.table, and keep one of the two"
        )
    if not shards and not pictures:
        raise InputError(
            f"{source} has no pictures ({', '.join(EXTENSIONS)}) and no Parquet files: give the folder of your pictures"
        )
    return Layout(source=source, table=table, shards=shards, pictures={name: sizes[name] for name in pictures})


def table_name(source: Path, data: DataConfig, names: Iterable[str]) -> str:
    """The table, which must be a file in the folder.

    Raises:
        InputError: it is not.
    """
    path = PurePosixPath(data.table)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"data.table is {data.table!r}, which is outside {source}: give its path relative to --data-dir")
    if data.table not in (known := set(names)):
        tables = [name for name in sorted(known) if PurePosixPath(name).suffix.lower() in (*TABLES, PARQUET)]
        closest = difflib.get_close_matches(data.table, tables, n=3, cutoff=0.4) or tables[:3]
        hint = f"there is {', '.join(map(display_name, closest))}" if tables else "there is no table in it"
        raise InputError(
            f"data.table is {data.table!r}, but {source} has no such file: {hint}; give its path relative to --data-dir"
        )
    return data.table


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns of pictures: bytes, or a struct with a field `bytes` (Hugging Face's Image)."""

    def is_bytes(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)

    return [
        column.name
        for column in schema
        if is_bytes(column.type)
        or (
            pa.types.is_struct(column.type)
            and (i := column.type.get_field_index("bytes")) >= 0
            and is_bytes(column.type.field(i).type)
        )
    ]


def read_schema(path: Path) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        InputError: it cannot be read.
    """
    with parquet_errors(path):
        return pq.read_schema(path)


@contextlib.contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn the errors of pyarrow for a damaged file, such as text that is not UTF-8, into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, pa.ArrowException, ValueError, StopIteration) as e:
        reason = " ".join(str(e).split())[:200] or "it ends too early"
        raise InputError(f"{path} cannot be read as Parquet ({reason}): repair the file, or download it again") from e


def has_pictures(path: Path) -> bool:
    """Whether a Parquet file has a column of pictures."""
    return bool(image_columns(read_schema(path)))


def digest_of(layout: Layout, *, settings: Sequence[object]) -> str:
    """A hash (16 hexadecimal digits) of everything that determines the store: settings, the table, names and sizes of the pictures;
    of formats without compression also their content."""
    total = hashlib.sha256(repr(settings).encode("utf-8", "surrogateescape"))
    if layout.table is not None:
        total.update(f"\n{hashlib.sha256(read(layout.source / layout.table)).hexdigest()}".encode())
    for name, size in sorted(layout.pictures.items()):
        fixed = PurePosixPath(name).suffix.lower() in FIXED_SIZE
        content = f" {zlib.crc32(read(layout.source / name))}" if fixed else ""
        total.update(f"\n{name} {size}{content}".encode("utf-8", "surrogateescape"))
    for name in layout.shards:
        with parquet_errors(layout.source / name), (layout.source / name).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - FOOTER_BYTES))
            total.update(f"\n{name} {size} {hashlib.sha256(file.read()).hexdigest()}".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:16]

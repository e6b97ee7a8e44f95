"""Read the rows of a table of the CelebA layout, as text or CSV. An error names the file and the line."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from cpgan_ray.errors import InputError

EXTENSION_INSIDE = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|p[bgnp]m|avif)\s", re.IGNORECASE)
"""An extension followed by a space inside a name: the name ends there, and the rest is something else."""
Rows = Iterator[tuple[int, list[str]]]
"""Line number, and the fields of the line: a name, then values."""


def attribute_rows(path: Path, content: bytes) -> tuple[list[str], Rows]:
    """The names of the attributes, and the rows of the table of attributes.

    Raises:
        InputError: the names, or later a row, are malformed.
    """
    return _csv_attributes(path, content) if path.suffix == ".csv" else _text_attributes(path, content)


def number_rows(path: Path, content: bytes, *, expected: str) -> Rows:
    """The rows of a table of names and numbers. expected: the meaning of a number, for messages.

    Raises:
        InputError: the first line of a CSV, or later a row, is malformed.
    """
    if path.suffix != ".csv":
        return _text_rows(path, _lines(path, content), start=1, expected=expected, width=1)
    rows = _csv_rows(path, content)
    _, first = next(rows, (1, []))
    if len(first) != 2 or is_number(first[1]):
        raise InputError(f"{path}, line 1: expected the names of two columns, got {quoted_short(','.join(first))}")
    return rows


def check_num_rows(path: Path, content: bytes, num_rows: int) -> None:
    """Check that the table of attributes has as many rows as it announces; a CSV announces none, but must have one.

    Raises:
        InputError: it has fewer or more.
    """
    if path.suffix == ".csv":
        if not num_rows:
            raise InputError(f"{path} has no rows after its first line: the file is truncated or was edited")
        return
    count = _lines(path, content)[0].strip()
    if int(count) != num_rows:
        raise InputError(
            f"{path}: line 1 announces {count} pictures, but {num_rows} lines follow: the file is truncated or was edited"
        )


def _text_attributes(path: Path, content: bytes) -> tuple[list[str], Rows]:
    lines = _lines(path, content)
    count, header = (lines[i].split() if i < len(lines) else [] for i in range(2))
    if len(count) != 1 or not is_number(count[0]):
        raise InputError(f"{path}, line 1: expected the number of pictures, got {quoted_short(' '.join(count))}")
    _check_header(path, header, line=2)
    return header, _text_rows(path, lines, start=3, expected=f"{len(header)} values", width=len(header))


def _text_rows(path: Path, lines: list[str], *, start: int, expected: str, width: int) -> Rows:
    """The rows of a text table. The values are the last words of a line; a name may have spaces, but not after its extension."""
    for number, line in enumerate(lines[start - 1 :], start):
        fields = line.strip().rsplit(None, width)
        if len(fields) != width + 1 or EXTENSION_INSIDE.search(fields[0]):
            raise InputError(f"{path}, line {number}: expected a name and {expected}, got {quoted_short(line)}")
        yield number, fields


def _csv_attributes(path: Path, content: bytes) -> tuple[list[str], Rows]:
    rows = _csv_rows(path, content)
    _, columns = next(rows, (1, []))
    header = columns[1:]
    _check_header(path, header, line=1)

    def checked_rows() -> Rows:
        for number, fields in rows:
            if len(fields) != len(columns):
                raise InputError(
                    f"{path}, line {number}: expected a name and {len(header)} values, got {quoted_short(','.join(fields))}"
                )
            yield number, fields

    return header, checked_rows()


def _csv_rows(path: Path, content: bytes) -> Rows:
    reader = csv.reader(io.StringIO(_text(path, content), newline=""), strict=True)
    try:
        for fields in reader:
            yield reader.line_num, [field.strip() for field in fields]
    except csv.Error as e:
        raise InputError(f"{path}, line {reader.line_num}: it is not CSV ({e}): download it again") from e


def _check_header(path: Path, header: list[str], *, line: int) -> None:
    if not header or "" in header or len(set(header)) < len(header) or {"image", "identity"} & set(header):
        raise InputError(
            f"{path}, line {line}: expected the names of the attributes, each once, got {quoted_short(' '.join(header))}"
        )


def read(path: Path) -> bytes:
    """The content of a table.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}): repair the file or its permissions") from e


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not UTF-8 text (byte {e.start} is 0x{e.object[e.start]:02x}): download it again") from e


def _lines(path: Path, content: bytes) -> list[str]:
    return _text(path, content).rstrip().split("\n")


def is_number(text: str) -> bool:
    """Whether a text is a whole number of at most 18 digits, which fits into int64."""
    return text.isascii() and text.isdecimal() and len(text) <= 18


def quoted_short(text: str) -> str:
    """The text on one line, shortened, in quotes."""
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def display_name(name: str) -> str:
    """A name as it is, or shortened and in quotes if it is long or not printable."""
    return name if name.isprintable() and len(name) <= 60 else quoted_short(name)

"""The tables of the CelebA layout: attributes, identities and partition, as text (official) or CSV (Kaggle's copy).

    list_attr_celeba.txt       number of pictures; names of the attributes; per picture: name, 1 or -1 each
    identity_CelebA.txt        per picture: name, number of the person
    list_eval_partition.txt    per picture: name, 0 train, 1 val or 2 test

    list_attr_celeba.csv       image_id and the names of the attributes; per picture the same as above
    list_eval_partition.csv    image_id,partition; per picture the same
    identity_CelebA.csv        image_id,identity; not part of Kaggle's copy, and not needed with its other files

The bounding boxes and landmarks that lie next to them are not read: the pictures of `img_align_celeba` are aligned and cut already.
"""

import csv
import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpgan_ray.config import DataConfig
from cpgan_ray.errors import InputError

ATTRIBUTES, IDENTITIES, PARTITION = "list_attr_celeba.txt", "identity_CelebA.txt", "list_eval_partition.txt"
"""Each table by its official name; as CSV it ends in .csv."""
PLACES = ("", "Anno/", "Eval/")
"""Folders that a table may lie in."""
SPELLINGS = {"1": 1, "-1": -1, "0": 0}
"""How an attribute's value may be written."""
EXTENSION_INSIDE = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|p[bgnp]m|avif)\s", re.IGNORECASE)
"""In what stands for a name: it ends there, and something else follows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """What the tables say, in the order of the attribute file."""

    names: list[str]
    label_names: tuple[str, ...]
    labels: np.ndarray
    """(N, L) int8, 0 or 1."""
    identity: np.ndarray
    """(N,) int64; the row's own number where nobody says who is on a picture."""
    partition: np.ndarray | None
    """(N,) int64: 0 train, 1 val, 2 test; None where the split does not need it."""
    anonymous: bool = False
    """Whether nobody says who is on a picture."""


def table_names(data: DataConfig) -> tuple[str, ...]:
    """The tables that are read, by their official names."""
    return (ATTRIBUTES, IDENTITIES, PARTITION) if data.split == "official" else (ATTRIBUTES, IDENTITIES)


def places(name: str) -> list[str]:
    """Where a table may lie below the data folder."""
    return [place + name.removesuffix(".txt") + end for end in (".txt", ".csv") for place in PLACES]


def find_tables(source: Path, data: DataConfig) -> dict[str, Path]:
    """The tables that are read, by their official names; without identities where Kaggle's copy has none.

    Raises: InputError where one is missing or there twice, or identities are needed.
    """
    found = {name: find_table(source, name) for name in table_names(data)}
    if (attributes := found[ATTRIBUTES]) is None:
        raise InputError(missing(source, ATTRIBUTES) + "it is part of the official CelebA download, and of Kaggle's as .csv")
    if found[IDENTITIES] is None and attributes.suffix == ".csv":
        if data.split == "identity":
            raise InputError(
                f"{source} has no {IDENTITIES}, so nobody knows who is on which picture: data.split 'identity' is not possible, "
                "leave --data.split out"
            )
        del found[IDENTITIES]
    for name, path in found.items():
        if path is None:
            need = "; it is not needed with --data.split identity" if name == PARTITION else ""
            raise InputError(missing(source, name) + f"it is part of the official CelebA download{need}")
    return {name: path for name, path in found.items() if path is not None}


def missing(source: Path, name: str) -> str:
    return f"{source / name} is missing (nor is it in Anno/ or Eval/, nor there as .csv): "


def find_table(source: Path, name: str) -> Path | None:
    """Raises: InputError where it is there both as text and as CSV."""
    there = {path.suffix: path for place in reversed(places(name)) if (path := source / place).is_file()}
    if len(there) > 1:
        raise InputError(f"{there['.txt']} and {there['.csv']} are both there and may differ: keep one")
    return next(iter(there.values()), None)


def read_annotations(files: Mapping[str, Path], *, labels: Sequence[str] = ()) -> Annotations:
    """Read and check the tables; `labels` are checked against the attributes before the rows are read.

    Raises:
        InputError: names the file, and where one line is at fault its number and what was expected there; an attribute has more
            than two values.
    """
    path = files[ATTRIBUTES]
    content = read(path)  # the one content: a file that is replaced meanwhile counts as it was
    header, rows = _csv_attributes(path, content) if path.suffix == ".csv" else _text_attributes(path, content)
    columns_of(header, labels)
    names: list[str] = []
    lines: list[int] = []
    values = bytearray()
    for line, fields in rows:
        name, *cells = fields
        try:
            values.extend(SPELLINGS[cell] & 0xFF for cell in cells)
        except KeyError as e:
            attribute = header[next(i for i, v in enumerate(cells) if v not in SPELLINGS)]
            raise InputError(f"{path}, line {line}: expected 1 or -1 for {attribute}, got {short(e.args[0])}") from e
        names.append(name)
        lines.append(line)
    _check_count(path, content, names)
    _check_unique(path, names, lines)
    written = np.frombuffer(bytes(values), np.int8).reshape(len(names), len(header))
    _check_two_values(path, header, written, lines)
    return Annotations(
        names=names,
        label_names=tuple(header),
        labels=(written == 1).astype(np.int8),
        identity=_numbers(files[IDENTITIES], names, path, expected="the number of a person")
        if IDENTITIES in files
        else np.arange(len(names), dtype=np.int64),
        partition=_numbers(files[PARTITION], names, path, expected="0, 1 or 2", below=3) if PARTITION in files else None,
        anonymous=IDENTITIES not in files,
    )


Rows = Iterator[tuple[int, list[str]]]
"""Line number, and the line's fields: a name, then values."""


def _text_attributes(path: Path, content: bytes) -> tuple[list[str], Rows]:
    lines = _lines(path, content)
    count, header = (lines[i].split() if i < len(lines) else [] for i in range(2))
    if len(count) != 1 or not _is_number(count[0]):
        raise InputError(f"{path}, line 1: expected the number of pictures, got {short(' '.join(count))}")
    _check_header(path, header, line=2)
    return header, _text_rows(path, lines, start=3, expected=f"{len(header)} values", width=len(header))


def _text_rows(path: Path, lines: list[str], *, start: int, expected: str, width: int) -> Rows:
    """The values are the last words of a line: a name may have spaces, but none after its extension."""
    for number, line in enumerate(lines[start - 1 :], start):
        fields = line.strip().rsplit(None, width)
        if len(fields) != width + 1 or EXTENSION_INSIDE.search(fields[0]):
            raise InputError(f"{path}, line {number}: expected a name and {expected}, got {short(line)}")
        yield number, fields


def _check_count(path: Path, content: bytes, names: list[str]) -> None:
    if path.suffix == ".csv":
        if not names:
            raise InputError(f"{path} has no rows after its first line: the file is cut or was edited")
        return
    count = _lines(path, content)[0].strip()
    if int(count) != len(names):
        raise InputError(f"{path}: line 1 promises {count} pictures, {len(names)} lines follow: the file is cut or was edited")


def _csv_attributes(path: Path, content: bytes) -> tuple[list[str], Rows]:
    rows = _csv_rows(path, content)
    _, first = next(rows, (1, []))
    header = first[1:]
    _check_header(path, header, line=1)

    def checked() -> Rows:
        for number, fields in rows:
            if len(fields) != len(first):
                raise InputError(f"{path}, line {number}: expected a name and {len(header)} values, got {short(','.join(fields))}")
            yield number, fields

    return header, checked()


def _csv_rows(path: Path, content: bytes) -> Rows:
    reader = csv.reader(io.StringIO(_text(path, content), newline=""), strict=True)
    try:
        for fields in reader:
            yield reader.line_num, [field.strip() for field in fields]
    except csv.Error as e:
        raise InputError(f"{path}, line {reader.line_num}: it is no CSV ({e}): download it again") from e


def _check_header(path: Path, header: list[str], *, line: int) -> None:
    if not header or "" in header or len(set(header)) < len(header) or {"image", "identity"} & set(header):
        raise InputError(f"{path}, line {line}: expected the names of the attributes, each once, got {short(' '.join(header))}")


def _check_two_values(path: Path, header: list[str], written: np.ndarray, lines: list[int]) -> None:
    """Raises: InputError where a column has both 0 and -1: 0 often stands for what nobody knows."""
    both = (written == 0).any(axis=0) & (written == -1).any(axis=0)
    if not both.any():
        return
    column = int(np.argmax(both))
    found = {value: np.flatnonzero(written[:, column] == value) for value in (-1, 0, 1)}
    told = ", ".join(f"{value} in {len(rows)}, first line {lines[rows[0]]}" for value, rows in found.items() if len(rows))
    more = f" ({both.sum()} attributes are like that)" if both.sum() > 1 else ""
    raise InputError(
        f"{path}: {named(header[column])} has the values {told}{more}: give two values, 1 and -1 or 1 and 0; 0 next to -1 "
        "often means unknown, which is not supported: leave those pictures or that attribute out of the file"
    )


def _numbers(path: Path, names: list[str], attributes: Path, *, expected: str, below: int = 2**63) -> np.ndarray:
    """The number that a two-column file has for each of `names`: (N,) int64."""
    content = read(path)
    if path.suffix == ".csv":
        rows = _csv_rows(path, content)
        line, first = next(rows, (1, []))
        if len(first) != 2 or _is_number(first[1]):
            raise InputError(f"{path}, line 1: expected the names of two columns, got {short(','.join(first))}")
    else:
        rows = _text_rows(path, _lines(path, content), start=1, expected=expected, width=1)
    found: list[str] = []
    numbers: list[int] = []
    lines: list[int] = []
    for line, fields in rows:
        if len(fields) != 2 or not _is_number(fields[1]) or int(fields[1]) >= below:
            raise InputError(f"{path}, line {line}: expected a name and {expected}, got {short(' '.join(fields))}")
        found.append(fields[0])
        numbers.append(int(fields[1]))
        lines.append(line)
    if found == names:
        return np.array(numbers, np.int64)
    _check_unique(path, found, lines)
    number_of = dict(zip(found, numbers, strict=True))
    if absent := [name for name in names if name not in number_of]:
        raise InputError(
            f"{path}: {len(absent)} pictures of {attributes.name} are not in it, the first is {named(absent[0])}: "
            "use matching files"
        )
    if extra := number_of.keys() - set(names):
        one = named(min(extra))
        raise InputError(f"{path}: {len(extra)} pictures are not in {attributes.name}, one is {one}: use matching files")
    return np.array([number_of[name] for name in names], np.int64)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}): mend the file or its permissions") from e


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not UTF-8 text (byte {e.start} is 0x{e.object[e.start]:02x}): download it again") from e


def _lines(path: Path, content: bytes) -> list[str]:
    return _text(path, content).rstrip().split("\n")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18


def short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def named(name: str) -> str:
    return name if name.isprintable() and len(name) <= 60 else short(name)


def _check_unique(path: Path, names: list[str], lines: list[int]) -> None:
    if len(set(names)) == len(names):
        return
    line_of: dict[str, int] = {}
    for line, name in zip(lines, names, strict=True):
        if line_of.setdefault(name, line) != line:
            raise InputError(
                f"{path}, line {line}: {named(name)} is listed twice, before in line {line_of[name]} "
                f"({len(names) - len(set(names))} such lines): keep one line each"
            )


def columns_of(label_names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Column numbers of `labels`, all columns where none are given: int64 (L,)

    Raises:
        InputError: a label does not exist (says which come near) or is given twice.
    """
    for i, label in enumerate(labels):
        if label not in label_names:
            near = difflib.get_close_matches(label, label_names, n=1, cutoff=0.5)
            hint = f": did you mean {near[0]}?" if near else ":"
            raise InputError(f"data.labels: there is no attribute {label!r}{hint} Choose from {', '.join(label_names)}")
        if label in labels[:i]:
            raise InputError(f"data.labels: {label!r} is given twice: give it once")
    return np.array([list(label_names).index(label) for label in labels or label_names], np.int64)

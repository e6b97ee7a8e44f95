"""Read the tables of the CelebA layout: attributes, identities and partition, as text (official) or CSV (Kaggle's copy).

    list_attr_celeba.txt       number of pictures; names of the attributes; per picture: name, then 1 or -1 for each attribute,
                               or 0 if it is not known
    identity_CelebA.txt        per picture: name, number of the person
    list_eval_partition.txt    per picture: name, 0 train, 1 val or 2 test

    list_attr_celeba.csv       image_id and the names of the attributes; per picture the same as above
    list_eval_partition.csv    image_id,partition; per picture the same
    identity_CelebA.csv        image_id,identity; not part of Kaggle's copy, and not needed with its other files

The tables of bounding boxes and landmarks are not read, because the pictures of `img_align_celeba` are already aligned and cropped.
"""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpgan_ray.config import DataConfig
from cpgan_ray.data.datasets.celeba_rows import (
    attribute_rows,
    check_num_rows,
    display_name,
    is_number,
    number_rows,
    quoted_short,
    read,
)
from cpgan_ray.data.store.info import MISSING
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

ATTRIBUTES, IDENTITIES, PARTITION = "list_attr_celeba.txt", "identity_CelebA.txt", "list_eval_partition.txt"
"""Official names of the tables; a CSV table ends in .csv instead."""
SUBFOLDERS = ("", "Anno/", "Eval/")
"""Subfolders that a table may be in."""
SPELLINGS = {"1": 1, "-1": -1, "0": 0}
"""Allowed values of an attribute."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """The content of the tables, in the order of the attribute file."""

    names: list[str]
    label_names: tuple[str, ...]
    labels: np.ndarray
    """(N, L) int8: 0, 1 or `MISSING`."""
    identity: np.ndarray
    """(N,) int64; the row number if identities are unknown."""
    partition: np.ndarray | None
    """(N,) int64: 0 train, 1 val, 2 test; None if the split does not need it."""
    anonymous: bool = False
    """Whether the identities are unknown."""


def table_names(data: DataConfig) -> tuple[str, ...]:
    """The tables that are read, by their official names."""
    return (ATTRIBUTES, IDENTITIES, PARTITION) if data.split == "official" else (ATTRIBUTES, IDENTITIES)


def candidate_paths(name: str) -> list[str]:
    """Paths in the data folder that a table may have."""
    return [folder + name.removesuffix(".txt") + end for end in (".txt", ".csv") for folder in SUBFOLDERS]


def find_tables(source: Path, data: DataConfig) -> dict[str, Path]:
    """The tables that are read, by their official names; without identities if Kaggle's copy has none.

    Raises:
        InputError: a table is missing or exists twice, or identities are needed but absent.
    """
    tables = {name: find_table(source, name) for name in table_names(data)}
    if (attributes := tables[ATTRIBUTES]) is None:
        raise InputError(missing_table(source, ATTRIBUTES) + "it is part of the official CelebA download, and of Kaggle's as .csv")
    if tables[IDENTITIES] is None and attributes.suffix == ".csv":
        if data.split == "identity":
            raise InputError(
                f"{source} has no {IDENTITIES}, so the identities are unknown: data.split 'identity' is not possible, leave "
                "--data.split out"
            )
        del tables[IDENTITIES]
    for name, path in tables.items():
        if path is None:
            hint = "; it is not needed with --data.split identity" if name == PARTITION else ""
            raise InputError(missing_table(source, name) + f"it is part of the official CelebA download{hint}")
    return {name: path for name, path in tables.items() if path is not None}


def missing_table(source: Path, name: str) -> str:
    """The beginning of the message for a missing table."""
    return f"{source / name} is missing (it is not in Anno/ or Eval/, and not there as .csv): "


def find_table(source: Path, name: str) -> Path | None:
    """The path of a table; None if absent.

    Raises:
        InputError: the table exists both as text and as CSV.
    """
    paths = {path.suffix: path for relative in reversed(candidate_paths(name)) if (path := source / relative).is_file()}
    if len(paths) > 1:
        raise InputError(f"{paths['.txt']} and {paths['.csv']} both exist and may differ: keep one")
    return next(iter(paths.values()), None)


def read_annotations(files: Mapping[str, Path], *, labels: Sequence[str] = ()) -> Annotations:
    """Read and check the tables; `labels` are checked against the attributes before the rows are read.

    Raises:
        InputError: a table is malformed or contradicts another (the message names the file, and the line if there is one).
    """
    path = files[ATTRIBUTES]
    content = read(path)  # read once, so that a file that is replaced in the meantime does no harm
    header, rows = attribute_rows(path, content)
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
            raise InputError(f"{path}, line {line}: expected 1 or -1 for {attribute}, got {quoted_short(e.args[0])}") from e
        names.append(name)
        lines.append(line)
    check_num_rows(path, content, len(names))
    _check_unique(path, names, lines)
    raw_labels = np.frombuffer(bytes(values), np.int8).reshape(len(names), len(header))
    return Annotations(
        names=names,
        label_names=tuple(header),
        labels=_answers(path, header, raw_labels),
        identity=_numbers(files[IDENTITIES], names, path, expected="the number of a person")
        if IDENTITIES in files
        else np.arange(len(names), dtype=np.int64),
        partition=_numbers(files[PARTITION], names, path, expected="0, 1 or 2", below=3) if PARTITION in files else None,
        anonymous=IDENTITIES not in files,
    )


def _answers(path: Path, header: Sequence[str], values: np.ndarray) -> np.ndarray:
    """The labels (N, L) int8 of the values -1, 0 and 1. In a column that has -1, a 0 is a missing answer; in others it means no.

    Logs how many answers are missing.
    """
    missing = (values == 0) & (values == -1).any(axis=0)
    if missing.any():
        counts = missing.sum(axis=0)
        first = ", ".join(f"{counts[i]} of {display_name(header[int(i)])}" for i in np.flatnonzero(counts)[:3])
        more = f" and of {n} further attributes" if (n := int((counts > 0).sum()) - 3) > 0 else ""
        logger.info(f"{path}: 0 next to -1 is read as a missing answer: {first}{more}")
    return np.where(missing, MISSING, values == 1).astype(np.int8)


def _numbers(path: Path, names: list[str], attributes: Path, *, expected: str, below: int = 2**63) -> np.ndarray:
    """The numbers that a two-column file assigns to `names`: (N,) int64."""
    listed: list[str] = []
    numbers: list[int] = []
    lines: list[int] = []
    for line, fields in number_rows(path, read(path), expected=expected):
        if len(fields) != 2 or not is_number(fields[1]) or int(fields[1]) >= below:
            raise InputError(f"{path}, line {line}: expected a name and {expected}, got {quoted_short(' '.join(fields))}")
        listed.append(fields[0])
        numbers.append(int(fields[1]))
        lines.append(line)
    if listed == names:
        return np.array(numbers, np.int64)
    _check_unique(path, listed, lines)
    number_of = dict(zip(listed, numbers, strict=True))
    if missing_names := [name for name in names if name not in number_of]:
        raise InputError(
            f"{path}: {len(missing_names)} pictures of {attributes.name} are missing in it, first "
            f"{display_name(missing_names[0])}: use matching files"
        )
    if extra := number_of.keys() - set(names):
        example = display_name(min(extra))
        raise InputError(f"{path}: {len(extra)} pictures are not in {attributes.name}, for example {example}: use matching files")
    return np.array([number_of[name] for name in names], np.int64)


def _check_unique(path: Path, names: list[str], lines: list[int]) -> None:
    if len(set(names)) == len(names):
        return
    line_of: dict[str, int] = {}
    for line, name in zip(lines, names, strict=True):
        if line_of.setdefault(name, line) != line:
            raise InputError(
                f"{path}, line {line}: {display_name(name)} is listed twice, first in line {line_of[name]} "
                f"({len(names) - len(set(names))} such lines): keep one line for each name"
            )


def columns_of(label_names: Sequence[str], labels: Sequence[str], *, field: str = "data.labels") -> np.ndarray:
    """Column numbers of `labels`; all columns if `labels` is empty: int64 (L,). field: of the configuration, which names them.

    Raises:
        InputError: a label does not exist (the message names the closest one) or is given twice.
    """
    for i, label in enumerate(labels):
        if label not in label_names:
            matches = difflib.get_close_matches(label, label_names, n=1, cutoff=0.5)
            hint = f": did you mean {matches[0]}?" if matches else ":"
            raise InputError(f"{field}: there is no attribute {label!r}{hint} Choose from {', '.join(label_names)}")
        if label in labels[:i]:
            raise InputError(f"{field}: {label!r} is given twice: give it once")
    return np.array([list(label_names).index(label) for label in labels or label_names], np.int64)

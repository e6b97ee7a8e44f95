"""The split of each of your own pictures: from a column, from the names of folders or files, or drawn."""

import re

import numpy as np

from cpgan_ray.data.datasets.celeba_rows import display_name, quoted_short
from cpgan_ray.data.datasets.pictures.listing import Column, Listing
from cpgan_ray.data.drawn_splits import drawn_parts
from cpgan_ray.data.store import SPLITS
from cpgan_ray.errors import InputError

SPELLINGS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2}
"""Names of the splits, in lower case."""
NUMBERS = {"0": 0, "1": 1, "2": 2}
"""CelebA's numbers of the splits."""


def part_named(text: str) -> int | None:
    """The split that a file or folder is named after, such as `train-00000-of-00002`; None if it is named after none, or
    several."""
    named = {SPELLINGS[word] for word in re.split(r"[^a-z]+", text.lower()) if word in SPELLINGS}
    return named.pop() if len(named) == 1 else None


def row_parts(listing: Listing, *, column: str, drawn: bool, identity: np.ndarray, anonymous: bool) -> np.ndarray:
    """The split of each row: (N,) int64, 0 train, 1 val, 2 test.

    If a column, folders or file names give splits, a split that they do not have is drawn from the training pictures: a tenth of
    their identities. Otherwise all splits are drawn (`drawn_parts`).

    column: name of the split column, or empty; drawn: draw all splits in any case; identity: (N,) int64, or numbers of the pictures
    if the identities are unknown (`anonymous`).

    Raises:
        InputError: a value is not the name of a split, no picture is in the training split, or an identity is in two splits.
    """
    given = parts_of_column(column, listing) if column else listing.parts
    if drawn or given is None:
        return drawn_parts(identity)
    if not (given == 0).any():
        named = f"column {display_name(column)}" if column else "the names of files and folders"
        raise InputError(
            f"{listing.origin}: {named} put no picture into the training split: draw splits with --data.split identity"
        )
    parts = given.copy()
    for part in (1, 2):
        if not (given == part).any():
            parts[(given == 0) & (drawn_parts(identity) == part)] = part
    if not anonymous:
        _ensure_apart(parts, identity, listing, column)
    return parts


def parts_of_column(name: str, listing: Listing) -> np.ndarray:
    """The split of each row by a column: (N,) int64."""
    column = listing.columns[name]
    texts = _class_texts(column)
    spellings = NUMBERS if set(texts) <= set(NUMBERS) else SPELLINGS
    if invalid := [value for value, text in zip(column.values, texts, strict=True) if text not in spellings]:
        row = int(np.argmax(column.codes == column.code_of(invalid[0])))
        raise InputError(
            f"{listing.row_name(row)}: column {display_name(name)} has {quoted_short(invalid[0])}, it must be train, val or test: "
            "repair it, or draw splits with --data.split identity"
        )
    if (column.codes < 0).any():
        row = int(np.argmax(column.codes < 0))
        raise InputError(f"{listing.row_name(row)}: column {display_name(name)} is empty, it must be train, val or test: repair it")
    return np.array([spellings[text] for text in texts], np.int64)[column.codes]


def _class_texts(column: Column) -> list[str]:
    """The values in lower case; of declared classes their names."""
    names = column.class_names
    return [
        (names[int(value)] if names and value.isdecimal() and int(value) < len(names) else value).lower() for value in column.values
    ]


def _ensure_apart(parts: np.ndarray, identity: np.ndarray, listing: Listing, column: str) -> None:
    """Raises: InputError if an identity is in two splits."""
    numbers, index = np.unique(identity, return_inverse=True)
    in_split = np.zeros((len(numbers), 3), bool)
    in_split[index, parts] = True
    if not len(repeated := np.flatnonzero(in_split.sum(axis=1) > 1)):
        return
    names = " and ".join(name for name, present in zip(SPLITS, in_split[repeated[0]], strict=True) if present)
    row = int(np.argmax(index == repeated[0]))
    source = f"column {display_name(column)}" if column else "the names of files and folders"
    raise InputError(
        f"{listing.origin}: {source} put {len(repeated)} identities into more than one split, that of {listing.row_name(row)} into "
        f"{names}: split by identity with --data.split identity"
    )

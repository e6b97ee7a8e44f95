"""Read a column as identities: numbers stay as they are, other values become numbers by a hash."""

import hashlib
import re

import numpy as np

from cpgan_ray.data.datasets.celeba_rows import display_name
from cpgan_ray.data.datasets.pictures.labels import MISSING
from cpgan_ray.data.datasets.pictures.listing import Column, Listing
from cpgan_ray.errors import InputError

CANONICAL = re.compile(r"0|-?[1-9]\d{0,17}")
"""A whole number in its only spelling; it fits into int64."""
INTEGRAL = re.compile(r"(-?\d+)\.0+")
"""A whole number as other programs write it if the column has missing values."""


def identity_numbers(name: str, listing: Listing) -> np.ndarray:
    """The identity number of each row: (N,) int64. The same value has the same number in every table.

    Raises:
        InputError: a row has no identity.
    """
    column = listing.columns[name]
    absent = np.array([*(value.lower() in MISSING for value in column.values), True], bool)[column.codes]
    if absent.any():
        first = listing.row_name(int(np.argmax(absent)))
        raise InputError(
            f"{first}: column {display_name(name)} has no identity ({int(absent.sum())} such rows): give every picture one, or "
            "leave out --data.identity-column"
        )
    numbers = _numbers(column)
    if len(set(numbers.tolist())) < len(column.values):
        raise InputError(f"column {display_name(name)} has two identities that cannot be distinguished: write them in one way")
    return numbers[column.codes]


def _numbers(column: Column) -> np.ndarray:
    """A number for each distinct value: (V,) int64."""
    values = [match[1] if (match := INTEGRAL.fullmatch(value)) else value for value in column.values]
    if all(CANONICAL.fullmatch(value) for value in values):
        return np.array([int(value) for value in values], np.int64)
    return hashed_numbers(values)


def hashed_numbers(values: list[str]) -> np.ndarray:
    """A number for each text: (V,) int64, not negative, the first 63 bits of its SHA-256."""
    digests = (hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest() for value in values)
    return np.array([int.from_bytes(digest[:8]) >> 1 for digest in digests], np.int64)

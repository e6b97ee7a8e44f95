"""Read a column as a label: two values, classes, or a number that is put into classes; some rows may have no value."""

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from cpgan_ray.data.datasets.celeba_rows import display_name, quoted_short
from cpgan_ray.data.datasets.pictures.listing import Column
from cpgan_ray.errors import InputError

MISSING = frozenset(("", "na", "n/a", "nan", "null"))
"""Values that always stand for a missing label, in lower case."""
PAIRS = (("0", "1"), ("-1", "1"), ("false", "true"), ("no", "yes"))
"""Pairs of values of a plain 0/1 label, in lower case."""
MAX_CLASSES = 127
"""A store holds the number of a class in 8 bits."""
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
WHOLE = re.compile(r"([-+]?\d{1,15})(\.0*)?")
"""A whole number; other programs write `1.0` if the column has missing values."""


@dataclass(frozen=True, eq=False)
class Label:
    """A column that was read as a label."""

    name: str
    classes: tuple[str, ...]
    """Names of the classes, by number; empty for a plain 0/1 label."""
    numbers: np.ndarray
    """(N,) int8: the class of each row; -1 if it is missing."""


def read_label(name: str, column: Column, *, missing: Collection[str] = (), bounds: Sequence[float] = ()) -> Label:
    """The label in a column.

    Two values of `PAIRS` are 0 and 1. Two other values, or more, are classes: whole numbers by size, texts by the alphabet; or by
    their number if the file declares class names.

    missing: further values that stand for a missing label; bounds: of the classes that numbers are put into.

    Raises:
        InputError: the values are not a label, see the messages; each names the column and the remedy.
    """
    absent = np.array([value.lower() in MISSING or value in missing for value in column.values], bool)
    present = [value for value, gone in zip(column.values, absent, strict=True) if not gone]
    if bounds:
        classes, number_of = _binned(name, present, bounds)
    elif column.class_names:
        classes, number_of = _declared(name, present, column.class_names)
    else:
        classes, number_of = _classes(name, present)
    if len(set(number_of.values()) - {-1}) < 2:
        value = f"only the value {quoted_short(present[0])}" if present else "no value"
        remedy = "give other bounds" if bounds else "leave it out, with --data.labels and the other columns"
        raise InputError(f"column {display_name(name)} has {value}, nothing can be learnt: {remedy}")
    numbers = np.array([*(number_of.get(value, -1) for value in column.values), -1], np.int8)
    return Label(name, classes, numbers[column.codes])


def _classes(name: str, present: list[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of the classes, and the number of each value."""
    wholes = {value: int(match[1]) for value in present if (match := WHOLE.fullmatch(value))}
    if len(wholes) == len(present):
        order = sorted(set(wholes.values()))
        if -1 in order and order != [-1, 1] and len(order) > 1:
            others = ", ".join(str(number) for number in order if number != -1)
            raise InputError(
                f"column {display_name(name)} has the value -1 next to {_short(others)}, which often means unknown: add "
                "--data.missing "
                f"{quoted_argument(name)}=-1 (or =0 if that stands for unknown), or use names in place of numbers"
            )
        texts = {value: str(number) for value, number in wholes.items()}
    elif all(NUMBER.fullmatch(value) or DECIMAL_COMMA.fullmatch(value) for value in present):
        example = next(value for value in present if value not in wholes)
        raise InputError(
            f"column {display_name(name)} has decimal numbers, such as {quoted_short(example)}: make classes of it, such as "
            f"--data.bins {quoted_argument(name)}=10,20,40, or leave it out, with --data.labels and the other columns"
        )
    else:
        texts = {value: value for value in present}
        order = sorted(set(texts.values()))
        lower = {value: value.lower() for value in present}
        if any(set(lower.values()) <= set(pair) for pair in PAIRS):
            order, texts = sorted(set(lower.values())), lower
    names = tuple(map(str, order))
    if len(names) > MAX_CLASSES:
        numeric = len(wholes) == len(present)
        bins = f"if they are numbers, make classes, such as --data.bins {quoted_argument(name)}=10,20,40; " if numeric else ""
        raise InputError(
            f"column {display_name(name)} has {len(names)} values, a label has at most {MAX_CLASSES}: if they are people, use it "
            f"as --data.identity-column; {bins}or leave it out, with --data.labels and the other columns"
        )
    number_of = {value: names.index(text) for value, text in texts.items()}
    return () if names in PAIRS else names, number_of


def _binned(name: str, present: list[str], bounds: Sequence[float]) -> tuple[tuple[str, ...], dict[str, int]]:
    if text := next((value for value in present if not NUMBER.fullmatch(value)), None):
        raise InputError(
            f"column {display_name(name)} has the value {quoted_short(text)}, which is no number: data.bins needs a column of "
            "numbers with a decimal point; repair it, or name it in --data.missing"
        )
    number_of = {value: bisect_right(bounds, float(value)) for value in present}
    inner = (f"{low:g} to {high:g}" for low, high in zip(bounds, bounds[1:], strict=False))
    return (f"below {bounds[0]:g}", *inner, f"{bounds[-1]:g} and above"), number_of


def _declared(name: str, present: list[str], classes: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Numbers of classes whose names the file declares; -1 stands for a missing label."""
    wholes = {value: int(match[1]) if (match := WHOLE.fullmatch(value)) else -2 for value in present}
    for value, number in wholes.items():
        if not -1 <= number < len(classes):
            raise InputError(
                f"column {display_name(name)} has the value {quoted_short(value)}, but declares {len(classes)} classes: repair "
                "the file"
            )
    if len(classes) > MAX_CLASSES:
        raise InputError(
            f"column {display_name(name)} declares {len(classes)} classes, a label has at most {MAX_CLASSES}: leave it out, with "
            "--data.labels and the other columns"
        )
    return classes, wholes


def missing_of(name: str, missing: Sequence[str]) -> frozenset[str]:
    """The values of `data.missing` that hold for a column: those without a column, and those after `<name>=`."""
    everywhere = {value for value in missing if "=" not in value}
    return frozenset(everywhere | {value[len(name) + 1 :] for value in missing if value.startswith(f"{name}=")})


def quoted_argument(name: str) -> str:
    """The name of a column as part of a command."""
    return name if re.fullmatch(r"[\w.-]+", name) else repr(name)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."

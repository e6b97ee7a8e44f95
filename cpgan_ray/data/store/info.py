"""Properties of a data set's values and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cpgan_ray.errors import InputError

MISSING = -1
"""The value of a label whose true answer is not known."""
MAX_CLASSES = 128
"""The largest number of values of a label: they are stored as int8."""
Landmarks = tuple[tuple[float, float], ...]
"""Positions (x, y) of both eyes, the tip of the nose and both corners of the mouth on every picture, from the left to the right, as
fractions of the picture's sides."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Properties of a data set's values and labels."""

    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Label to the names of its values 0, 1, ... A label with two names is binary, like a label without names, whose values are 0
    and 1; a label with more names has several classes."""
    mirrored: bool = True
    """Whether a mirror image is a valid sample (faces) or not (digits, signals)."""
    unit: float = 127.5
    """Size of 1 in the networks' input, in the unit of the data set: 127.5 grey levels for uint8 pictures in [-1, 1]."""
    face: tuple[float, float, float, float] | None = None
    """Top, left, bottom and right edge of the face region, as fractions of the picture's sides; None if the pictures have none at a
    fixed position."""
    anonymous: bool = False
    """Whether the pictures show people whose identity is unknown: one person may be in several splits, and each picture has its own
    identity number."""

    def __post_init__(self) -> None:
        for label, names in self.classes.items():
            if not 2 <= len(names) <= MAX_CLASSES:
                raise InputError(f"label {label!r} has {len(names)} class names: give it 2 to {MAX_CLASSES}, or none")
            if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
                raise InputError(f"label {label!r} has two classes named {repeated[0]!r}: give each a name of its own")

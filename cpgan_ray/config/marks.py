"""What a field declares in addition to its type: where a search looks, and whether another user's folder may set it."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Range:
    """Where a search looks for the value of a field: between two bounds, or on a grid."""

    low: float
    high: float
    grid: tuple[float, ...]
    """The values that a grid search tries."""
    log: bool = True
    """Whether to sample on a logarithmic scale."""


@dataclass(frozen=True)
class Choices:
    """The values among which a search looks for the value of a field, if not all of them fit any data set."""

    values: tuple[str, ...]


class Origin(Enum):
    """Whether a field is read from a folder that another user has written. Every field that may hold a text or a path has one of
    the two marks."""

    LOCAL = "where something is, runs or is tracked"
    """Read from this user's flags and environment only: from another user's folder, it would send this user's credentials and
    writes to a location of that user's choice."""
    PORTABLE = "what is trained"


LOCAL, PORTABLE = Origin.LOCAL, Origin.PORTABLE

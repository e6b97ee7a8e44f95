"""What the values and labels of a data set are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What the values and labels of a data set are."""

    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Label to the names of its classes, for labels that are not 0/1."""
    mirrored: bool = True
    """Whether a mirror image is a sample of the same kind (faces), or is not (digits, signals)."""
    unit: float = 127.5
    """What 1 of the values that networks see is in the data set's own unit: 127.5 grey levels for uint8 pictures in [-1, 1]."""
    anonymous: bool = False
    """Whether these are pictures of people of whom nobody says who they are: one person may be in several splits, and each picture
    has an identity of its own."""

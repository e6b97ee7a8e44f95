"""What a reader makes of a small data set."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    values: np.ndarray
    labels: np.ndarray
    label_name: str
    classes: tuple[str, ...]
    identity: np.ndarray
    rows: Mapping[str, np.ndarray]
    scale: float = 1.0
    offset: tuple[float, ...] = ()

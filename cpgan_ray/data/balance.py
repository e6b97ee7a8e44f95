"""Equally many samples of both values of a label (`data.balanced`), so that the majority guess is 0.5 wherever a number is made."""

from collections.abc import Mapping

import numpy as np

from cpgan_ray.common.rng import stream
from cpgan_ray.config import DataConfig
from cpgan_ray.errors import InputError


def settings(data: DataConfig) -> dict[str, object]:
    """What a store depends on where it is balanced; nothing where it is not."""
    return {"balanced": [*data.labels], "balanced_seed": data.balanced_seed} if data.balanced else {}


def balanced(rows: Mapping[str, np.ndarray], values: np.ndarray, *, label: str, data: DataConfig) -> dict[str, np.ndarray]:
    """Of each split's row numbers, in their order, all of the rarer value and as many of the other, drawn by `data.balanced_seed`.
    A row stays in its split, so that no identity changes sides.

    values: (N,) of 0/1, of the label.

    Raises:
        InputError: one of the two values does not occur in a split.
    """
    kept = {}
    for split, members in rows.items():
        sides = [members[values[members] == value] for value in (0, 1)]
        fewest = min(map(len, sides))
        if fewest == 0:
            absent = int(len(sides[1]) == 0)
            raise InputError(
                f"data.balanced is True, but no sample of the {split} split has the value {absent} of {label}: give another label "
                "with --data.labels, or set --data.no-balanced"
            )
        rng = stream(data.balanced_seed, "balanced", split)
        kept[split] = members[np.isin(members, [rng.choice(side, fewest, replace=False) for side in sides])]
    return kept

"""Keep equally many samples of both values of a label (`data.balanced`), so that the majority guess is right for half of them."""

from collections.abc import Mapping

import numpy as np

from cpgan_ray.common.rng import stream
from cpgan_ray.config import DataConfig
from cpgan_ray.data.final import FINAL
from cpgan_ray.errors import InputError


def settings(data: DataConfig) -> dict[str, object]:
    """The settings that a balanced store depends on; empty if it is not balanced."""
    return {"balanced": [*data.labels], "balanced_seed": data.balanced_seed} if data.balanced else {}


def balance_rows(rows: Mapping[str, np.ndarray], values: np.ndarray, *, label: str, data: DataConfig) -> dict[str, np.ndarray]:
    """Keep, in each split, all rows with the rarer value of a label and equally many with the other value, drawn by
    `data.balanced_seed`. Rows without a value are left out. The others keep their order and their split, so no identity changes its
    split.

    values: (N,), the label's value (0, 1 or `MISSING`) of each row.

    Raises:
        InputError: one of the two values does not occur in a split, or the label has more than two values.
    """
    if values.max(initial=0) > 1:
        raise InputError(f"data.balanced is True, but {label} has more than two values: set --data.no-balanced")
    selected = {}
    for split, members in rows.items():
        rows_by_value = [members[values[members] == value] for value in (0, 1)]
        fewest = min(map(len, rows_by_value))
        if fewest == 0 and split == FINAL:
            selected[split] = members[:0]
            continue
        if fewest == 0:
            missing_value = int(len(rows_by_value[1]) == 0)
            raise InputError(
                f"data.balanced is True, but no sample of the {split} split has the value {missing_value} of {label}: give another "
                "label with --data.labels, or set --data.no-balanced"
            )
        rng = stream(data.balanced_seed, "balanced", split)
        selected[split] = members[np.isin(members, [rng.choice(group, fewest, replace=False) for group in rows_by_value])]
    return selected

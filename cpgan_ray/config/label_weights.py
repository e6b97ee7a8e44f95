"""The weights of labels in a configuration, NAME=WEIGHT."""

import math
from collections.abc import Sequence
from typing import Annotated

from cpgan_ray.config.constraints import text_like
from cpgan_ray.errors import InputError

LabelWeight = Annotated[
    str, text_like(r"^.+=(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?$", "a label, = and a positive number, such as Blond_Hair=0.2")
]
"""The weight of a label."""


def weights_by_name(entries: Sequence[str]) -> dict[str, float]:
    """The weight of each label, of entries NAME=WEIGHT.

    Raises: InputError if a weight is not positive and finite, or a label is given twice.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        name, _, number = entry.rpartition("=")
        if not 0 < float(number) < math.inf:
            raise InputError(
                f"utility.label_weights is {entry!r}; a weight must be positive and finite, such as {name}=0.02: without any "
                "weight Bob's answer would be arbitrary"
            )
        if name in weights:
            raise InputError(f"utility.label_weights: {name!r} is given twice: give it once")
        weights[name] = float(number)
    return weights

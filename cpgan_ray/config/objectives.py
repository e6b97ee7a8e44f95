"""What fronts trade off: a utility against R2, and if wanted the bits on the wire."""

from collections.abc import Sequence
from typing import Literal

from cpgan_ray.errors import InputError

SearchObjective = Literal["accuracy", "balanced_accuracy", "r2", "bits"]
"""What a front may trade off."""
Objective = Literal["accuracy", "balanced_accuracy"]
"""The measure of utility: mean accuracy over the labels, or the mean recall over the classes of each label."""


def check_objectives(objectives: Sequence[SearchObjective]) -> None:
    """Raises: InputError if they are not a utility, `r2` and if wanted `bits`."""
    utilities, others = objectives[:1], sorted(objectives[1:])
    if not set(utilities) < {"accuracy", "balanced_accuracy"} or not utilities or others not in (["r2"], ["bits", "r2"]):
        raise InputError(
            f"objectives is {' '.join(objectives)!r}, but they are accuracy or balanced_accuracy, then r2, and if wanted bits, in "
            "this order: give --objectives accuracy r2 bits"
        )


def utility_of(objectives: Sequence[SearchObjective]) -> Objective:
    """The utility among objectives."""
    return "balanced_accuracy" if objectives[0] == "balanced_accuracy" else "accuracy"

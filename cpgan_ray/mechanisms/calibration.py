"""The rule by which a comparison chooses the settings of every mechanism's knob: the same targets of accuracy, the same number of
pilot trainings, the same search.

Mechanisms are compared as fronts of accuracy and privacy. A mechanism whose settings cover a wider range of accuracy has the larger
hypervolume, whatever its codes are worth. The targets are therefore fixed numbers between the majority guess and the undefended
accuracy (`target_accuracies`), and each mechanism gets the settings that come closest to them on the validation split.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

TOLERANCE = 0.05
"""A target is reached if the accuracy of its setting differs by at most this share of the range from the majority guess to the
undefended accuracy."""
MARGIN = 0.25
"""A pilot splits the gap between two earlier ones where a straight line reaches the target, but leaves at least this share of the
gap on each side."""


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """A training that only helps to choose settings."""

    setting: float
    val_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting of a grid, and the target that it was chosen for; a setting that was fixed by hand has no target."""

    setting: float
    target: float | None = None
    val_accuracy: float | None = None
    reached: bool | None = None
    """Whether its accuracy is near the target (`TOLERANCE`). If not, the target is beyond the range of the mechanism and this is
    its extreme setting, or no free pilot came nearer."""


def target_accuracies(majority: float, undefended: float, *, count: int) -> tuple[float, ...]:
    """`count` accuracies in equal steps from the undefended accuracy down towards the majority guess, which is not one of them."""
    return tuple(majority + (undefended - majority) * (count - i) / count for i in range(count))


def run_pilots(
    accuracy: Callable[[float], float],
    *,
    ends: tuple[float, float],
    targets: Sequence[float],
    num_pilots: int,
    canonical: Callable[[float], float],
) -> list[Pilot]:
    """Search a knob for settings whose accuracies are near the targets, on a logarithmic scale.

    The first two pilots are the ends of the knob's range. Each further one serves the target that is farthest from being reached,
    divided by one plus the number of pilots it has had. It splits the first gap, from the accurate end on, between neighbouring
    settings whose accuracies enclose the target (regula falsi with a margin). If no gap encloses a target, it splits the widest
    gap. The accuracy need not be monotone.

    accuracy: trains with a setting and returns the validation accuracy; called at most `num_pilots` times.
    ends: the most accurate and the most private setting, both above 0.
    canonical: maps a setting to the one that stands for it, if several are the same (code lengths).

    Returns: the pilots from the accurate end on; fewer than `num_pilots` if the knob has no other settings.
    """
    falling = ends[0] > ends[1]
    tried = {canonical(end): Pilot(setting=canonical(end), val_accuracy=accuracy(canonical(end))) for end in ends[:num_pilots]}
    served = dict.fromkeys(targets, 0)
    while len(tried) < num_pilots:
        ordered = [tried[setting] for setting in sorted(tried, reverse=falling)]
        candidate = next_setting(ordered, served, canonical=canonical)
        if candidate is None:
            break
        setting, target = candidate
        if target is not None:
            served[target] += 1
        tried[setting] = Pilot(setting=setting, val_accuracy=accuracy(setting))
    return [tried[setting] for setting in sorted(tried, reverse=falling)]


def next_setting(
    pilots: Sequence[Pilot], served: dict[float, int], *, canonical: Callable[[float], float]
) -> tuple[float, float | None] | None:
    """The next setting to try and the target that it serves (None: none); None if every gap is too narrow for another setting."""
    known = {pilot.setting for pilot in pilots}
    gaps = [(a, b) for a, b in zip(pilots, pilots[1:], strict=False) if split_gap(a, b, 0.5, canonical) not in known]

    def need(target: float) -> float:
        return min(abs(pilot.val_accuracy - target) for pilot in pilots) / (1 + served[target])

    for target in sorted(served, key=need, reverse=True):
        for a, b in gaps:
            if min(a.val_accuracy, b.val_accuracy) <= target <= max(a.val_accuracy, b.val_accuracy):
                rise = b.val_accuracy - a.val_accuracy
                share = 0.5 if rise == 0 else min(max((target - a.val_accuracy) / rise, MARGIN), 1 - MARGIN)
                setting = split_gap(a, b, share, canonical)
                return (setting if setting not in known else split_gap(a, b, 0.5, canonical)), target
    if not gaps:
        return None
    a, b = max(gaps, key=lambda gap: abs(math.log(gap[0].setting / gap[1].setting)))
    return split_gap(a, b, 0.5, canonical), None


def split_gap(a: Pilot, b: Pilot, share: float, canonical: Callable[[float], float]) -> float:
    """The setting at this share of the way from a to b, on a logarithmic scale."""
    return canonical(a.setting * (b.setting / a.setting) ** share)


def choose(pilots: Sequence[Pilot], targets: Sequence[float], *, tolerance: float) -> tuple[Choice, ...]:
    """A setting for each target, all different, in the order of the targets.

    Targets get the assignment with the smallest sum of squared distances between accuracy and target. But a target above or below
    the accuracies of all pilots, by more than the tolerance, gets the extreme setting of the knob: the most accurate or the most
    private end that is free. (Where a curve is flat, the nearest accuracy would be chosen by noise.) With fewer pilots than
    targets, some targets get none.

    pilots: from the accurate end on; targets: falling; tolerance: largest distance at which a target counts as reached.
    """
    accuracies = [pilot.val_accuracy for pilot in pilots]
    above = [target for target in targets if target > max(accuracies) + tolerance]
    below = [target for target in targets if target < min(accuracies) - tolerance]
    inside = [target for target in targets if target not in (*above, *below)]
    rows, columns = linear_sum_assignment(np.square(np.subtract.outer(np.array(inside), np.array(accuracies))))
    chosen: dict[float, int] = {inside[row]: column for row, column in zip(rows.tolist(), columns.tolist(), strict=True)}
    free = [i for i in range(len(pilots)) if i not in chosen.values()]
    for target in above[: len(free)]:
        chosen[target] = free.pop(0)
    for target in below[::-1][: len(free)]:
        chosen[target] = free.pop()
    return tuple(
        Choice(
            setting=pilots[chosen[target]].setting,
            target=target,
            val_accuracy=accuracies[chosen[target]],
            reached=abs(accuracies[chosen[target]] - target) <= tolerance,
        )
        for target in targets
        if target in chosen
    )

"""Choice of the recommended setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpgan_ray.analysis.fronts.trials import Point
from cpgan_ray.config import Objective

NAMES: Mapping[Objective, str] = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The recommended setting."""

    point: Point
    rule: str
    """The rule that chose it, in words."""


def recommend(
    points: Sequence[Point],
    *,
    max_r2: float | None = None,
    min_accuracy: float | None = None,
    max_multiply_adds: float | None = None,
) -> Recommendation | None:
    """The recommended setting, and the rule that chose it; None if no setting qualifies (`explain_no_choice` gives the reason).

    Only numbers of the validation split choose, so that the test numbers of the choice are not the luckiest of many. All points are
    candidates, not only those on the front, because the front belongs to the test split. `meets_bounds` then says whether the
    choice meets the bounds on the test split.

        max_r2           the largest utility among settings with strongest R2 <= max_r2
        min_accuracy     the smallest R2 among settings with utility >= min_accuracy
        both             the largest utility among settings that meet both
        neither          the largest max(utility - utility of the guess, 0) * (1 - max(R2, 0));
                         among equals the smallest R2

    A setting whose code is degenerate is never recommended, nor one whose client spends more than `max_multiply_adds`.
    """
    points = affordable(points, max_multiply_adds)
    by_r2 = min_accuracy is not None and max_r2 is None
    bounds = [] if max_r2 is None else [f"validation R2 <= {max_r2:g}"]
    name = NAMES[points[0].objective] if points else ""
    bounds += [] if min_accuracy is None else [f"validation {name} >= {min_accuracy:g}"]

    def rank(p: Point) -> tuple[float, float]:
        utility, r2 = value_or(p.val_utility, -math.inf), value_or(p.val_r2, math.inf)
        if not bounds:
            return max(utility - value_or(p.guess, 0), 0) * (1 - max(r2, 0)), -r2
        return (-r2, utility) if by_r2 else (utility, -r2)

    candidates = qualified(points, max_r2, min_accuracy)
    if not candidates:
        return None
    best = max(candidates, key=rank)
    if not bounds:
        rule = f"largest (validation {name} - {value_or(best.guess, 0):.3f}) * (1 - validation R2)"
    else:
        rule = f"{'smallest validation R2' if by_r2 else f'largest validation {name}'} among settings with {' and '.join(bounds)}"
    if max_multiply_adds is not None:
        rule += f", at most {max_multiply_adds:,.0f} multiply-adds for the client"
    return Recommendation(point=best, rule=rule)


def value_or(value: float | None, default: float) -> float:
    return default if value is None else value


def qualified(points: Sequence[Point], max_r2: float | None, min_accuracy: float | None) -> list[Point]:
    """The points with validation numbers that meet both bounds; a degenerate code never qualifies."""
    return [
        p
        for p in points
        if not p.degenerate
        and p.val_r2 is not None
        and p.val_utility is not None
        and (max_r2 is None or p.val_r2 <= max_r2)
        and (min_accuracy is None or p.val_utility >= min_accuracy)
    ]


def affordable(points: Sequence[Point], max_multiply_adds: float | None) -> list[Point]:
    """The points whose client is known to spend at most so many multiply-adds; None: all points."""
    if max_multiply_adds is None:
        return list(points)
    return [p for p in points if p.multiply_adds is not None and p.multiply_adds <= max_multiply_adds]


def meets_bounds(point: Point, *, max_r2: float | None = None, min_accuracy: float | None = None) -> bool | None:
    """Whether a point meets the bounds on the test split with its whole 95 % intervals: the upper end of its R2 is at most
    `max_r2`, the lower end of its utility at least `min_accuracy`. None without a bound, or if the intervals are unknown."""
    ends = [
        (bound, end) for bound, end in ((max_r2, point.strongest_r2_high), (min_accuracy, point.utility_low)) if bound is not None
    ]
    if not ends or any(end is None for _, end in ends):
        return None
    r2_met = max_r2 is None or value_or(point.strongest_r2_high, math.inf) <= max_r2
    return r2_met and (min_accuracy is None or value_or(point.utility_low, -math.inf) >= min_accuracy)


def explain_no_choice(
    points: Sequence[Point],
    *,
    max_r2: float | None = None,
    min_accuracy: float | None = None,
    max_multiply_adds: float | None = None,
) -> str:
    """Why no setting is recommended, and which setting is closest to qualifying."""
    if not points:
        return "no trial has finished with a utility and an attack's R2"
    if max_multiply_adds is not None and not affordable(points, max_multiply_adds):
        known = [p for p in points if p.multiply_adds is not None]
        if not known:
            return "of no setting the client's multiply-adds are known: its runs were made by an earlier version"
        cheapest = min(known, key=lambda p: value_or(p.multiply_adds, math.inf))
        return (
            f"no setting has a client of at most {max_multiply_adds:,.0f} multiply-adds; the smallest has "
            f"{cheapest.multiply_adds:,.0f} at {label(cheapest)}"
        )
    points = affordable(points, max_multiply_adds)
    points = [p for p in points if not p.degenerate]
    if not points:
        return "the codes of all settings are degenerate: constant, or no better than the majority guess"
    points = qualified(points, None, None)
    if not points:
        return "no setting has the validation numbers that choose it"
    name = NAMES[points[0].objective]
    private, useful = qualified(points, max_r2, None), qualified(points, None, min_accuracy)
    if not private:
        lowest = min(points, key=lambda p: value_or(p.val_r2, math.inf))
        return f"no setting has validation R2 <= {max_r2:g}; the lowest is {lowest.val_r2:.4f} at {label(lowest)}"
    if not useful:
        highest = max(points, key=lambda p: value_or(p.val_utility, -math.inf))
        return f"no setting has validation {name} >= {min_accuracy:g}; the highest is {highest.val_utility:.4f} at {label(highest)}"
    best = max(private, key=lambda p: value_or(p.val_utility, -math.inf))
    return (
        f"no setting has both validation R2 <= {max_r2:g} and validation {name} >= {min_accuracy:g}; "
        f"the highest {name} among settings with that R2 is {best.val_utility:.4f} at {label(best)}"
    )


def label(point: Point) -> str:
    """A point's setting in one line."""
    values = [f"{name}={short(value)}" for name, value in point.setting.items()]
    return " ".join(([point.method] if point.method else []) + values)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Choice of the recommended setting."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpgan_ray.analysis.fronts.trials import Point


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The recommended setting."""

    point: Point
    rule: str
    """The rule that chose it, in words."""


def recommend(points: Sequence[Point], *, max_r2: float | None = None, min_accuracy: float | None = None) -> Recommendation | None:
    """The recommended setting, and the rule that chose it; None if no setting qualifies (`explain_no_choice` gives the reason).

    A bound is a gate on the reported number, which is measured on the test split. The settings that pass are *ranked on the
    validation split*, so that the test number of the choice is not the luckiest of many. All points are candidates, not only those
    on the front: whether a point is on the front also depends on luck on the test split.

        max_r2           the largest validation accuracy among settings with strongest R2 <= max_r2
        min_accuracy     the smallest validation R2 among settings with accuracy >= min_accuracy
        both             the largest validation accuracy among settings that pass both
        neither          the largest max(validation accuracy - majority accuracy, 0) * (1 - max(validation R2, 0));
                         among equals the smallest validation R2

    A setting whose code is degenerate is never recommended.
    """
    by_r2 = min_accuracy is not None and max_r2 is None
    gates = [] if max_r2 is None else [f"strongest R2 <= {max_r2:g}"]
    gates += [] if min_accuracy is None else [f"accuracy >= {min_accuracy:g}"]
    ungated = not gates

    def rank(p: Point) -> tuple[float, float]:
        accuracy, r2 = value_or(p.val_accuracy, -math.inf), value_or(p.val_r2, math.inf)
        if ungated:
            return max(accuracy - value_or(p.majority_accuracy, 0), 0) * (1 - max(r2, 0)), -r2
        return (-r2, accuracy) if by_r2 else (accuracy, -r2)

    needed = ("val_accuracy", "val_r2") if ungated else ("val_r2",) if by_r2 else ("val_accuracy",)
    candidates = [p for p in qualified(points, max_r2, min_accuracy) if all(getattr(p, name) is not None for name in needed)]
    if not candidates:
        return None
    best = max(candidates, key=rank)
    if ungated:
        rule = f"largest (validation accuracy - {value_or(best.majority_accuracy, 0):.3f}) * (1 - validation R2)"
    else:
        rule = f"{'smallest validation R2' if by_r2 else 'largest validation accuracy'} among settings with {' and '.join(gates)}"
    return Recommendation(point=best, rule=rule)


def value_or(value: float | None, default: float) -> float:
    return default if value is None else value


def qualified(points: Sequence[Point], max_r2: float | None, min_accuracy: float | None) -> list[Point]:
    """The points that pass both gates; a degenerate code passes no gate."""
    return [
        p
        for p in points
        if not p.degenerate
        and (max_r2 is None or p.strongest_r2 <= max_r2)
        and (min_accuracy is None or p.accuracy >= min_accuracy)
    ]


def explain_no_choice(points: Sequence[Point], *, max_r2: float | None = None, min_accuracy: float | None = None) -> str:
    """Why no setting is recommended, and which setting is closest to qualifying."""
    if not points:
        return "no trial has finished with an accuracy and an attack's R2"
    points = [p for p in points if not p.degenerate]
    if not points:
        return "the codes of all settings are degenerate: constant, or no better than the majority guess"
    lowest = min(points, key=lambda p: p.strongest_r2)
    highest = max(points, key=lambda p: p.accuracy)
    if max_r2 is not None and lowest.strongest_r2 > max_r2:
        return f"no setting has strongest R2 <= {max_r2:g}; the lowest is {lowest.strongest_r2:.4f} at {label(lowest)}"
    if min_accuracy is not None and highest.accuracy < min_accuracy:
        return f"no setting has accuracy >= {min_accuracy:g}; the highest is {highest.accuracy:.4f} at {label(highest)}"
    if max_r2 is not None and min_accuracy is not None and not qualified(points, max_r2, min_accuracy):
        best = max(qualified(points, max_r2, None), key=lambda p: p.accuracy)
        return (
            f"no setting has both strongest R2 <= {max_r2:g} and accuracy >= {min_accuracy:g}; "
            f"the highest accuracy among settings with that R2 is {best.accuracy:.4f} at {label(best)}"
        )
    return "no qualified setting has the validation numbers that the ranking needs"


def label(point: Point) -> str:
    """A point's setting in one line."""
    values = [f"{name}={short(value)}" for name, value in point.setting.items()]
    return " ".join(([point.method] if point.method else []) + values)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

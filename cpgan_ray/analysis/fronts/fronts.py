"""The front of points that no other point beats, and its hypervolume."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import moocore
import numpy as np

from cpgan_ray.analysis.fronts.trials import Point, Trial, group_key, mean_point, scored, setting_key
from cpgan_ray.errors import InputError

MAXIMISE = [True, False]
"""Whether accuracy and R2 are maximised. Everywhere in this order."""


class Reference(NamedTuple):
    """The reference point of hypervolumes, the worst outcome that counts: accuracy of the majority guess on the test split, R2 of
    1."""

    accuracy: float
    strongest_r2: float = 1.0


def front(points: Sequence[Point]) -> list[Point]:
    """The nondominated points, sorted by R2, the most private first. A point is dominated if another is at least as good in both
    numbers and better in one.

    Points that are equal in both numbers do not dominate each other: all of them stay. Degenerate codes are left out.
    """
    points = [p for p in points if not p.degenerate]
    if not points:
        return []
    nondominated = moocore.is_nondominated(outcomes(points), maximise=MAXIMISE, keep_weakly=True)
    best = [p for p, keep in zip(points, nondominated, strict=True) if keep]
    return sorted(best, key=lambda p: (p.strongest_r2, setting_key(p.setting)))


def outcomes(points: Sequence[Point]) -> np.ndarray:
    """Accuracy and R2, (N, 2)."""
    return np.array([(p.accuracy, p.strongest_r2) for p in points], dtype=np.float64).reshape(-1, 2)


def reference_point(trials: Sequence[Trial]) -> Reference | None:
    """The largest majority accuracy that any trial reports; None if no trial reports it."""
    values = [t.majority_accuracy for t in trials if t.majority_accuracy is not None and math.isfinite(t.majority_accuracy)]
    return Reference(max(values)) if values else None


def hypervolume(points: Sequence[Point], reference: Reference) -> float:
    """Area of the outcomes that some point dominates or equals and that are not worse than the reference; 0 without points.
    Degenerate codes do not count.

    E. Zitzler and L. Thiele, Multiobjective optimization using evolutionary algorithms, PPSN 1998; computed by moocore.
    """
    points = [p for p in points if not p.degenerate]
    return float(moocore.hypervolume(outcomes(points), ref=list(reference), maximise=MAXIMISE)) if points else 0.0


def hypervolume_history(trials: Sequence[Trial], reference: Reference) -> list[float]:
    """The hypervolume after each finished trial, in the given order.

    The seeds of a setting are averaged as in `points`: a second seed with a worse result can lower the hypervolume.
    """
    history: list[float] = []
    groups: dict[tuple[str, str], list[Trial]] = {}
    points: dict[tuple[str, str], Point] = {}
    for trial in trials:
        if scored(trial) and not trial.control:
            key = group_key(trial)
            group = groups.setdefault(key, [])
            group.append(trial)
            points[key] = mean_point(group)
            history.append(hypervolume(list(points.values()), reference))
    return history


def ensure_comparable(trials: Sequence[Trial]) -> None:
    """Check that all finished trials can be on one front.

    Raises: InputError if they were scored on different data sets or tasks.
    """
    for field, what in (("data", "data sets (digests)"), ("majority_accuracy", "tasks (majority accuracies)")):
        first: dict[Any, Trial] = {}
        for trial in trials:
            value = getattr(trial, field)
            if scored(trial) and value is not None:
                first.setdefault(round(value, 6) if isinstance(value, float) else value, trial)
        if len(first) > 1:
            runs = "; ".join(f"{value} in {'/'.join(filter(None, (t.method, t.name)))}" for value, t in first.items())
            raise InputError(f"these runs have different {what} and no common front: {runs}; give runs on one test set and task")

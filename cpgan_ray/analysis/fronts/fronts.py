"""Points that no other beats, and the area that they enclose."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import moocore
import numpy as np

from cpgan_ray.analysis.fronts.trials import Point, Trial, grouped, identity, place, scored
from cpgan_ray.errors import InputError

MAXIMISE = [True, False]
"""Of accuracy and R2, in this order everywhere."""


class Reference(NamedTuple):
    """The worst that counts, from which hypervolumes are measured: the majority guess on the test split, everything recovered."""

    accuracy: float
    strongest_r2: float = 1.0


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none is at least as good in both numbers and better in one. By R2, the most private first.

    Points that are equal in both numbers do not beat each other: all of them stay. Degenerate codes are left out.
    """
    points = [p for p in points if not p.degenerate]
    if not points:
        return []
    kept = moocore.is_nondominated(plane(points), maximise=MAXIMISE, keep_weakly=True)
    return sorted((p for p, keep in zip(points, kept, strict=True) if keep), key=lambda p: (p.strongest_r2, identity(p.setting)))


def plane(points: Sequence[Point]) -> np.ndarray:
    """Accuracy and R2, (N, 2)."""
    return np.array([(p.accuracy, p.strongest_r2) for p in points], dtype=np.float64).reshape(-1, 2)


def reference_point(trials: Sequence[Trial]) -> Reference | None:
    """The majority guess that the trials tell, the largest where they differ; None where none tells it."""
    told = [t.majority_accuracy for t in trials if t.majority_accuracy is not None and math.isfinite(t.majority_accuracy)]
    return Reference(max(told)) if told else None


def hypervolume(points: Sequence[Point], reference: Reference) -> float:
    """Area of the outcomes that some point is at least as good as and that are no worse than the reference; 0 without points, of
    which degenerate codes are none.

    E. Zitzler and L. Thiele, Multiobjective optimization using evolutionary algorithms, PPSN 1998; computed by moocore.
    """
    points = [p for p in points if not p.degenerate]
    return float(moocore.hypervolume(plane(points), ref=list(reference), maximise=MAXIMISE)) if points else 0.0


def hypervolume_history(trials: Sequence[Trial], reference: Reference) -> list[float]:
    """The hypervolume after each finished trial, in the order given.

    Each time, seeds of one setting are averaged as in `points`: a second seed that turns out worse lowers it.
    """
    history: list[float] = []
    groups: dict[tuple[str, str], list[Trial]] = {}
    found: dict[tuple[str, str], Point] = {}
    for trial in trials:
        if scored(trial) and not trial.control:
            group = groups.setdefault(place(trial), [])
            group.append(trial)
            found[place(trial)] = grouped(group)
            history.append(hypervolume(list(found.values()), reference))
    return history


def comparable(trials: Sequence[Trial]) -> None:
    """Raises: InputError where finished trials were scored on different data sets or tasks: their numbers make no common front."""
    done = [trial for trial in trials if scored(trial)]
    for told, of in (("data", "data set digest"), ("majority_accuracy", "majority accuracy, so another task,")):
        first: dict[Any, Trial] = {}
        for trial in done:
            value = getattr(trial, told)
            if value is not None:
                first.setdefault(round(value, 6) if isinstance(value, float) else value, trial)
        if len(first) > 1:
            runs = "; ".join(f"{value} in {'/'.join(filter(None, (t.method, t.name)))}" for value, t in first.items())
            raise InputError(f"these runs have no common front, each has its own {of} {runs}: give runs on one test set and task")

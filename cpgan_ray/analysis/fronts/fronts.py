"""The front: the convex hull of the outcomes of all points and of sending nothing; its hypervolume and its R2 at fixed utilities.

**What everybody attains.** Take two mechanisms with codes z_1 and z_2, and a coin b, independent of pictures and labels, that is
1 with probability p. Alice releases (b, z_1) if b = 1, else (b, z_2). Bob sees b and uses the head that belongs to the code.

* Each label is answered rightly with probability p a_1 + (1 - p) a_2, where a_i is the accuracy on z_i; the same holds within the
  pictures of one class, and so for every recall. Accuracy and balanced accuracy interpolate linearly.
* Eve sees b too. The squared error E |x - f(b, z)|^2 = p E |x - f(1, z_1)|^2 + (1 - p) E |x - f(2, z_2)|^2 separates, so the best f
  takes the best attack on each code, and the smallest error is p e_1 + (1 - p) e_2. The error of the mean picture does not depend
  on b. R2 = 1 - error / error of the mean picture therefore interpolates linearly as well.

The second mechanism may send nothing: Bob guesses (accuracy of the majority guess), and Eve's best reconstruction is the mean
picture (R2 = 0). Every mechanism thus attains every point on the lines between its outcomes and (majority guess, R2 = 0) without
any training, and a front that leaves them out rewards those who turn their knob farther or more densely. Worse outcomes are
attained too (answers may be spoilt, and a code may be given away in addition), so the attained region is everything below and to
the right of the upper left hull. All this is for one release of each picture, as are all numbers here. An attack with R2 < 0 is
worse than the mean picture, which every attacker has: it counts as R2 = 0.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cpgan_ray.analysis.fronts.solid import solid
from cpgan_ray.analysis.fronts.trials import Point, Trial, group_key, mean_point, scored, setting_key
from cpgan_ray.config import Objective
from cpgan_ray.errors import InputError

SHARES = (0.25, 0.5, 0.75, 0.9)
"""The fixed utilities of `r2_levels`, as shares of the way from the guess to the undefended control."""


class Reference(NamedTuple):
    """The worst outcome that counts: the utility of the guess on the test split (see `guess_utility`), and R2 of 1; with bits as an
    objective also the longest code."""

    utility: float
    strongest_r2: float = 1.0
    bits: float | None = None


def guess_utility(trial: Trial, objective: Objective) -> float | None:
    """Utility of always guessing each label's most common training value; for balanced accuracy this is the mean of 1 / number of
    classes over the labels."""
    return trial.majority_accuracy if objective == "accuracy" else trial.majority_balanced_accuracy


def reference_point(trials: Sequence[Trial], objective: Objective = "accuracy", *, bits: bool = False) -> Reference | None:
    """The largest utility of the guess that any trial reports; None if no trial reports it. bits: whether bits on the wire are an
    objective, with the longest code of any trial as the reference."""
    values = [value for t in trials if (value := guess_utility(t, objective)) is not None and math.isfinite(value)]
    lengths = [t.bits for t in trials if bits and t.bits is not None]
    return Reference(max(values), bits=max(lengths, default=None)) if values else None


def outcomes(points: Sequence[Point]) -> np.ndarray:
    """R2 and utility of the points, (N, 2) float64. Degenerate codes are left out."""
    values = [(p.strongest_r2, p.utility) for p in points if not p.degenerate]
    return np.array(values, dtype=np.float64).reshape(-1, 2)


def hull(outcomes: np.ndarray, reference: Reference) -> tuple[np.ndarray, float]:
    """Vertices of the upper left hull of the outcomes and (R2 0, guess), sorted by R2 and utility, (V, 2) float64; and the area
    between the hull and the reference: the mean gain of utility over the guess, over all bounds on R2 from 0 to 1.

    outcomes: (N, 2), R2 and utility; those that are no better than the reference change nothing.

    With the corners (0, guess), (1, guess) and (1, largest utility), the hull of all points is bounded from above by the concave
    envelope, which never decreases because the largest utility is also at R2 = 1. Its area is that of the convex polygon
    (C. B. Barber, D. P. Dobkin and H. Huhdanpaa, The quickhull algorithm for convex hulls, ACM TOMS 22, 1996; by scipy).
    """
    from scipy.spatial import ConvexHull  # takes 0.2 s

    guess, worst = reference.utility, reference.strongest_r2
    r2, utility = np.clip(outcomes[:, 0], 0, None) / worst, outcomes[:, 1] - guess
    better = (utility > 0) & (r2 <= 1)
    nothing = np.array([[0.0, guess]])
    if not better.any():
        return nothing, 0.0
    r2, gain = r2[better], utility[better].max()
    corners = np.array([[0, 0], [1, 0], [1, 1]], dtype=np.float64)
    polygon = ConvexHull(np.concatenate([np.column_stack([r2, utility[better] / gain]), corners]))
    vertices = polygon.points[polygon.vertices]
    left = vertices[vertices[:, 1] > 0]
    left = left[np.lexsort((left[:, 1], left[:, 0]))]
    left = left[: left[:, 1].argmax() + 1]  # the corner (1, 1) is no outcome, except if a point is there
    scaled = np.column_stack([left[:, 0] * worst, guess + left[:, 1] * gain])
    return np.concatenate([nothing, scaled]), float(polygon.volume * gain * worst)


def front(points: Sequence[Point], reference: Reference | None) -> list[Point]:
    """The points that are vertices of the hull (in three dimensions with bits as an objective), sorted by R2, the most private
    first; empty without a reference.

    Points with equal outcomes are all on the front. Degenerate codes are left out.
    """
    if reference is None:
        return []
    if reference.bits is not None:
        best = solid(points, guess=reference.utility, bits=reference.bits)[0]
        return sorted(best, key=lambda p: (max(p.strongest_r2, 0), p.utility, setting_key(p.setting)))
    vertices = hull(outcomes(points), reference)[0][1:]
    best = [
        p
        for p in points
        if not p.degenerate and np.isclose(vertices, (max(p.strongest_r2, 0), p.utility), rtol=0, atol=1e-12).all(axis=1).any()
    ]
    return sorted(best, key=lambda p: (max(p.strongest_r2, 0), p.utility, setting_key(p.setting)))


def hypervolume(points: Sequence[Point], reference: Reference) -> float:
    """Area between the hull and the reference, with bits as an objective the volume; 0 without points."""
    if reference.bits is not None:
        return solid(points, guess=reference.utility, bits=reference.bits)[1]
    return hull(outcomes(points), reference)[1]


def r2_at(vertices: np.ndarray, utility: float) -> float | None:
    """The smallest R2 at which the hull reaches a utility; None if it does not.

    vertices: (V, 2), see `hull`.
    """
    if utility > vertices[-1, 1]:
        return None
    return float(np.interp(utility, vertices[:, 1], vertices[:, 0]))


def utility_levels(reference: Reference, control_utility: float | None) -> dict[float, float]:
    """Share -> utility at which hulls are compared: guess + share * (undefended control - guess). The rule depends on no mechanism
    that is compared. Empty without a control that is better than the guess."""
    if control_utility is None or control_utility <= reference.utility:
        return {}
    return {share: reference.utility + share * (control_utility - reference.utility) for share in SHARES}


def r2_levels(points: Sequence[Point], reference: Reference, levels: dict[float, float]) -> dict[float, float | None]:
    """Share -> R2 of the hull at the utility of `utility_levels`."""
    vertices, _ = hull(outcomes(points), reference)
    return {share: r2_at(vertices, utility) for share, utility in levels.items()}


def hypervolume_history(trials: Sequence[Trial], reference: Reference, objective: Objective = "accuracy") -> list[float]:
    """The hypervolume after each finished trial, in the given order.

    The seeds of a setting are averaged as in `points`: a second seed with a worse result can lower the hypervolume.
    """
    history: list[float] = []
    groups: dict[tuple[str, str], list[Trial]] = {}
    points: dict[tuple[str, str], Point] = {}
    for trial in trials:
        if scored(trial, objective) and not trial.control:
            key = group_key(trial)
            group = groups.setdefault(key, [])
            group.append(trial)
            points[key] = mean_point(group, objective)
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

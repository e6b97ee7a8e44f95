"""Intervals and tests that cross the seeds of the trainings and the people of the test split, from the row errors of each training.

The mean over S seeds of a number that is measured on G people varies for two reasons: other seeds, and other people. With the model
"person + seed + their interaction", the variance of the mean is V_people / G + V_seeds / S + V_both / (G S). The jackknife over
people (leave out a person in all trainings) estimates V_p = V_people / G + V_both / (G S), the jackknife over seeds (leave out a
training) V_s = V_seeds / S + V_both / (G S). Each of the two has its own Student's interval, and their half-widths are added in
squares (MOVER):

    mean +- sqrt(t(0.975, G - 1)^2 V_p + t(0.975, S - 1)^2 V_s)

Its coverage is 0.95 if one of the two reasons dominates, and larger if both matter. Student's t with Satterthwaite's degrees of
freedom for V_p + V_s would be narrower, but covers as little as 0.92 with three seeds.

The jackknife needs only the statistic itself, so it also holds for hypervolumes and for differences of two mechanisms, which are
paired: the same person, or seed, is left out on both sides. Numbers that depend on no mechanism (the reference, the fixed
utilities) stay fixed.

Sources: B. Efron and C. Stein, The jackknife estimate of variance, Annals of Statistics 9, 1981. J. G. MacKinnon, M. O. Nielsen and
M. D. Webb, Cluster-robust inference: a guide to empirical practice, Journal of Econometrics 232, 2023 (the jackknife with few
clusters). G. Y. Zou and A. Donner, Construction of confidence limits about effect measures, Statistics in Medicine 27, 2008
(MOVER). S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from cpgan_ray.common.rng import stream
from cpgan_ray.config import Objective
from cpgan_ray.data.store import MISSING
from cpgan_ray.evaluation.scoring import RowErrors, mean_where
from cpgan_ray.evaluation.utility import Answers

MAX_GROUPS = 100
"""More people than this are left out by groups of people, drawn at random (delete-a-group jackknife)."""

MIN_TAIL = 1e-9
"""Half of the smallest p-value that is given."""


class CrossedEstimate(NamedTuple):
    """A number with its 95 % interval over seeds and people, and the two-sided p-value of the hypothesis that it is 0."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """None with a single seed: its interval then covers only other people."""


@dataclass(frozen=True, eq=False)
class Replicates:
    """A statistic of several trainings, and its values with a part of the data left out."""

    value: float
    without_people: np.ndarray  # (G,), without one group of people
    without_seed: np.ndarray  # (S,), without one training; empty if there is only one

    def __sub__(self, other: "Replicates") -> "Replicates":
        """The difference, paired over people and seeds. Both must have the same seeds, in the same order."""
        return Replicates(
            self.value - other.value, self.without_people - other.without_people, self.without_seed - other.without_seed
        )


def estimate(replicates: Replicates, *, level: float = 0.95) -> CrossedEstimate:
    """The interval of the module's docstring, and the p-value that belongs to it: 1 - the largest level whose interval excludes 0.
    Both are None if the statistic does not exist without some part."""
    value, parts = replicates.value, [part for part in (replicates.without_people, replicates.without_seed) if len(part) > 1]
    if not math.isfinite(value):
        return CrossedEstimate(None)
    if not parts or not all(np.isfinite(part).all() for part in parts):
        return CrossedEstimate(value)
    errors = [math.sqrt(jackknife_variance(part)) for part in parts]

    def half_width(tail: float) -> float:
        return math.hypot(*(-special.stdtrit(len(part) - 1, tail) * error for part, error in zip(parts, errors, strict=True)))

    half = half_width((1 - level) / 2)
    p = p_value(value, half_width) if len(replicates.without_seed) > 1 else None
    return CrossedEstimate(value, value - half, value + half, p)


def p_value(value: float, half_width: Callable[[float], float]) -> float:
    """Two-sided p-value: twice the tail at which half the interval is as wide as the value. half_width: decreasing function of the
    probability beyond one end of the interval."""
    if half_width(0.5 - 1e-12) >= abs(value):
        return 1.0
    if half_width(MIN_TAIL) <= abs(value):
        return 2 * MIN_TAIL
    from scipy.optimize import brentq  # takes 0.2 s

    tail: Any = brentq(lambda tail: half_width(tail) - abs(value), MIN_TAIL, 0.5)
    return 2 * float(tail)


def jackknife_variance(replicates: np.ndarray) -> float:
    """(n - 1) / n times the sum of squares around the mean; for a mean of n values this is their variance / n."""
    return float((len(replicates) - 1) / len(replicates) * np.square(replicates - replicates.mean()).sum())


def people_groups(identity: np.ndarray) -> np.ndarray:
    """The number of each row's group, (N,) of 0..G-1: a group for each person, or groups of equally many people."""
    people, person = np.unique(identity, return_inverse=True)
    if len(people) <= MAX_GROUPS:
        return person
    return (stream(0, "jackknife").permutation(len(people)) % MAX_GROUPS)[person]


def outcomes_without_people(rows: RowErrors, answers: Answers, *, objective: Objective) -> np.ndarray:
    """R2 and utility of a training, (G + 1, 2): first on all rows, then without each group of people."""
    group = people_groups(rows.identity)
    errors, mean_errors = (totals(np.bincount(group, weights=values)) for values in (rows.errors, rows.mean_errors))
    return np.stack([1 - errors / mean_errors, utilities(answers, group, objective=objective)], axis=1)


def totals(sums: np.ndarray) -> np.ndarray:
    """From the sums of each group, (G, ...), the sum over all groups, and over all but each, (G + 1, ...)."""
    return np.concatenate([sums.sum(axis=0, keepdims=True), sums.sum(axis=0) - sums])


def utilities(answers: Answers, group: np.ndarray, *, objective: Objective) -> np.ndarray:
    """Accuracy or balanced accuracy on all rows and without each group, (G + 1,): the mean over the labels that have answers.

    Labels of which only one value occurs do not count in the balanced accuracy, except if there are no others. A value, or a label,
    that is absent without a group does not count there.
    """
    occurring = [np.unique(column[column != MISSING]) for column in answers.labels.T]
    counted = [i for i, values in enumerate(occurring) if len(values) > 1]
    balanced = objective == "balanced_accuracy" and bool(counted)
    columns = []
    for i in counted if balanced else [i for i, values in enumerate(occurring) if len(values)]:
        column = answers.labels[:, i]
        parts = [column == value for value in occurring[i]] if balanced else [column != MISSING]
        hits, sizes = (
            np.stack([totals(np.bincount(group, weights=flags * part)) for part in parts], axis=1)
            for flags in (answers.right[:, i], np.ones(len(group)))
        )
        columns.append(mean_where(np.divide(hits, sizes, out=np.zeros_like(hits), where=sizes > 0.5), sizes > 0.5))
    of_label = np.stack(columns, axis=1)
    return mean_where(of_label, ~np.isnan(of_label))


def replicates(statistic: Callable[[np.ndarray], float], outcomes: np.ndarray) -> Replicates:
    """The replicates of a statistic of points.

    statistic: function of the mean over seeds of R2 and utility of P settings, (P, 2); outcomes: (S, G + 1, P, 2), of S trainings
    of each setting, see `outcomes_without_people`.
    """
    mean = outcomes.mean(axis=0)
    seeds = range(len(outcomes)) if len(outcomes) > 1 else ()
    return Replicates(
        statistic(mean[0]),
        np.array([statistic(points) for points in mean[1:]]),
        np.array([statistic(np.delete(outcomes[:, 0], s, axis=0).mean(axis=0)) for s in seeds]),
    )


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: with m hypotheses sorted by p, max over j <= i of min(1, (m - j + 1) p_j). To reject all hypotheses
    with an adjusted p-value below 0.05 makes any false rejection at most 5 % probable, whatever the dependence."""
    names = sorted(p, key=lambda name: p[name])
    steps = [min(1.0, (len(names) - i) * p[name]) for i, name in enumerate(names)]
    return dict(zip(names, np.maximum.accumulate(steps).tolist(), strict=True))


def verdicts(differences: Mapping[str, CrossedEstimate], *, alpha: float = 0.05) -> dict[str, tuple[float, str]]:
    """Name -> Holm's adjusted p-value, and `better`, `worse` or `not separated`. All statements together are wrong somewhere with a
    probability of at most `alpha`. Differences without a p-value are left out."""
    adjusted = holm({name: d.p for name, d in differences.items() if d.p is not None})

    def wording(name: str) -> str:
        if adjusted[name] >= alpha:
            return "not separated"
        return "better" if (differences[name].value or 0.0) > 0 else "worse"

    return {name: (p, wording(name)) for name, p in adjusted.items()}


def stack(trainings: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """(S, G + 1, P, 2) from `outcomes_without_people` of S seeds of P settings."""
    return np.stack([np.stack(of_seed, axis=1) for of_seed in trainings])

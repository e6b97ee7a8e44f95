"""How R2 grows with the number of the attacker's pictures, for the code and for the true answers, and where that may end.

An attacker may have more pictures than the data set: any pictures of the same kind that she encodes herself. The strongest R2 of a
report is therefore not the end of the curve. The curve is R2(n) = a - b n^(-c) with b >= 0, the usual power law of learning curves
(Viering and Loog, The shape of learning curves, IEEE TPAMI 45(6), 2023). What it says beyond the last measured size is a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cpgan_ray.evaluation.scoring import RowErrors, interval_ends, resampled_r2

EXPONENTS = np.geomspace(0.1, 2.0, 40)
MIN_SIZES = 4
"""Three sizes always fit exactly."""
FACTOR = 10
"""The curve is extended to this multiple of the attacker's pictures."""


@dataclass(frozen=True)
class LearningCurve:
    """R2 of the strongest attack, by its tuning rows, on each number of pictures; and the curve's R2 at FACTOR times as many, with
    a 95 % interval over people."""

    pictures: tuple[int, ...]
    r2: tuple[float, ...]
    extended: float
    low: float
    high: float


def fit_power_law(sizes: Sequence[int], r2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares fit of a - b n^(-c) with b >= 0 to R2 (..., n) at the sizes (n,): a, b and c, (...) each. For every exponent
    on a grid a and b are linear; the best exponent counts."""
    sizes_ = np.asarray(sizes, np.float64) / max(sizes)
    best_error = np.full(r2.shape[:-1], np.inf)
    a, b, c = (np.zeros(r2.shape[:-1]) for _ in range(3))
    for exponent in EXPONENTS:
        power = -(sizes_**-exponent)
        centred = power - power.mean()
        slope = np.maximum((r2 * centred).sum(axis=-1) / np.square(centred).sum(), 0)
        level = r2.mean(axis=-1) - slope * power.mean()
        error = np.square(level[..., None] + slope[..., None] * power - r2).sum(axis=-1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        a, b, c = np.where(better, level, a), np.where(better, slope, b), np.where(better, exponent, c)
    return a, b * max(sizes) ** c, c


def learning_curves(attacks: Mapping[str, Mapping[int, RowErrors]], *, seed: int) -> dict[str, LearningCurve]:
    """The curve of each group of attacks, which are given by the number of pictures and were scored on the same rows; without
    groups that have fewer than MIN_SIZES sizes."""
    curves = {}
    for name, group in attacks.items():
        if (extended := extend(group, seed=seed)) is not None:
            value, samples = extended
            low, high = np.quantile(samples, interval_ends(next(iter(group.values())).identity))
            sizes = sorted(group)
            curves[name] = LearningCurve(tuple(sizes), tuple(group[n].r2 for n in sizes), value, float(low), float(high))
    return curves


def extended_difference(a: Mapping[int, RowErrors], b: Mapping[int, RowErrors], *, seed: int) -> tuple[float, float, float] | None:
    """R2 of the extended curve of `a` less that of `b`, with its 95 % interval over people, who are the same in both; None if one
    of them has fewer than MIN_SIZES sizes."""
    first, second = extend(a, seed=seed), extend(b, seed=seed)
    if first is None or second is None:
        return None
    low, high = np.quantile(first[1] - second[1], interval_ends(next(iter(a.values())).identity))
    return first[0] - second[0], float(low), float(high)


def extend(attacks: Mapping[int, RowErrors], *, seed: int) -> tuple[float, np.ndarray] | None:
    """R2 of the curve at FACTOR times the largest size, and the same in each bootstrap sample of people; None if there are fewer
    than MIN_SIZES sizes."""
    sizes = sorted(attacks)
    if len(sizes) < MIN_SIZES:
        return None
    measured = np.array([attacks[n].r2 for n in sizes])
    samples = np.stack([resampled_r2(attacks[n], seed=seed) for n in sizes], axis=-1)

    def at_end(r2: np.ndarray) -> np.ndarray:
        a, b, c = fit_power_law(sizes, r2)
        return a - b * (FACTOR * sizes[-1]) ** -c

    return float(at_end(measured[None])[0]), at_end(samples)

"""Tests of learning curves: the fit against scipy, and the extension of known curves."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from cpgan_ray.evaluation.learning_curve import FACTOR, extended_difference, fit_power_law, learning_curves
from cpgan_ray.evaluation.scoring import RowErrors

SIZES = (1000, 2000, 4000, 8000)


def power_law(n, a, b, c):
    return a - b * np.asarray(n, float) ** -c


@pytest.mark.parametrize(("a", "b", "c"), [(0.08, 2.0, 0.6), (0.4, 10.0, 1.0), (0.05, 0.0, 0.5)])
def test_fit_power_law_finds_exact_curves(a, b, c):
    fitted = fit_power_law(SIZES, power_law(SIZES, a, b, c)[None])
    end = FACTOR * SIZES[-1]
    assert power_law(end, *(float(v[0]) for v in fitted)) == pytest.approx(power_law(end, a, b, c), abs=1e-3)


def test_fit_power_law_is_as_close_as_scipy():
    rng = np.random.default_rng(0)
    r2 = power_law(SIZES, 0.08, 2.0, 0.6) + 0.001 * rng.normal(size=(20, 4))
    a, b, c = fit_power_law(SIZES, r2)
    for row, own in zip(r2, zip(a, b, c, strict=True), strict=True):
        scaled = np.array(SIZES) / 8000
        found, _ = curve_fit(power_law, scaled, row, p0=(0.1, 0.01, 0.6), bounds=([-1, 0, 0.1], [1, 1, 2]), max_nfev=10_000)
        error = np.square(power_law(SIZES, *own) - row).sum()
        assert error < np.square(power_law(scaled, *found) - row).sum() + 1e-7


def rows(r2: float, *, seed: int, spread: float = 0.02) -> RowErrors:
    """Errors of 300 people with this R2, up to noise that is the same for equal seeds."""
    rng = np.random.default_rng(seed)
    return RowErrors(1 - r2 + spread * rng.normal(size=300), np.ones(300), np.arange(300))


def test_learning_curves_extend_with_interval_and_difference():
    code = {n: rows(power_law(n, 0.08, 2.0, 0.6), seed=2) for n in SIZES}
    labels = {n: rows(power_law(n, 0.07, 1.0, 0.6), seed=2) for n in SIZES}
    curves = learning_curves({"code": code, "labels": labels}, seed=0)
    assert curves["code"].pictures == SIZES
    assert list(curves["code"].r2) == sorted(curves["code"].r2)
    end = FACTOR * SIZES[-1]
    assert curves["code"].low < power_law(end, 0.08, 2.0, 0.6) < curves["code"].high
    difference = extended_difference(code, labels, seed=0)
    assert difference is not None
    value, low, high = difference
    assert low < value < high
    assert value == pytest.approx(power_law(end, 0.08, 2.0, 0.6) - power_law(end, 0.07, 1.0, 0.6), abs=2e-3)
    assert high - low < curves["code"].high - curves["code"].low, "what is common to both cancels"


def test_learning_curves_of_three_sizes_are_left_out():
    code = {n: rows(0.1, seed=n) for n in SIZES[:3]}
    assert learning_curves({"code": code, "labels": {}}, seed=0) == {}
    assert extended_difference(code, code, seed=0) is None

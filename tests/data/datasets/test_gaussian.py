"""Tests of the Gaussian mixture: the reference data of seed 9, and other seeds."""

import random

import numpy as np
import pytest

from cpgan_ray.data.datasets.gaussian import mixture
from cpgan_ray.errors import InputError


def test_mixture_with_seed_9_is_the_reference_data():
    m = mixture()
    assert (m.x.shape, m.x.dtype, m.y.dtype, m.test.dtype) == ((22_000, 32), np.float64, np.int8, bool)
    assert [int(m.test[m.y == y].sum()) for y in (1, -1)] == [1_000, 1_000]
    assert 4 * m.mean @ np.linalg.solve(m.covariance, m.mean) == pytest.approx(18.715, abs=5e-4)
    within = np.mean([np.cov(m.x[m.test & (m.y == y)].T, ddof=0) for y in (1, -1)], axis=0)
    assert 4 * m.mean @ np.linalg.solve(within, m.mean) == pytest.approx(18.518, abs=5e-4)
    assert np.trace(np.cov(m.x[m.test].T, ddof=0)) / 32 == pytest.approx(14.558, abs=5e-4)


def test_mixture_rows_have_its_moments():
    m = mixture(3, dimension=4, num_per_class=50_000)
    for y in (1, -1):
        assert m.x[m.y == y].mean(axis=0) == pytest.approx(y * m.mean, abs=0.05)
        assert np.cov(m.x[m.y == y].T) == pytest.approx(m.covariance, rel=0.05)


def test_mixture_depends_on_the_seed():
    first, repeated, different = (mixture(seed, num_per_class=20, num_test_per_class=5) for seed in (1, 1, 2))
    assert (first.x == repeated.x).all() and (first.test == repeated.test).all()
    assert (first.covariance != different.covariance).any() and (first.test != different.test).any()


def test_mixture_does_not_change_the_global_generators():
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    mixture(1, num_per_class=20, num_test_per_class=5)
    assert (np.random.get_state()[1] == before[0]).all() and random.getstate() == before[1]  # noqa: NPY002


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"dimension": 0}, "dimension is 0"),
        ({"num_per_class": 10, "num_test_per_class": 10}, "num_test_per_class is 10"),
    ],
)
def test_mixture_with_a_bad_size_or_seed_raises(sizes, expected):
    with pytest.raises(InputError, match=expected):
        mixture(**sizes)

"""Tests of the quick fresh attack."""

import numpy as np
import pytest

from cpgan_ray.data import load
from cpgan_ray.data.batching import consecutive_batch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection, targets
from cpgan_ray.evaluation.quick import quick_r2


@pytest.fixture(scope="module")
def dataset(tiny_config):
    return load(tiny_config)


def codes(dataset, make):
    rows = {name: np.arange(len(getattr(dataset, name))) for name in ("train", "val")}
    return {name: (r, make(name, r).astype(np.float32)) for name, r in rows.items()}


def coordinates(dataset, name, rows):
    basis = projection(dataset, components=DEFAULT_COMPONENTS)
    return targets(basis, getattr(dataset, name), consecutive_batch(0, len(rows)))[0]


def test_quick_r2_of_linear_code_is_high(dataset):
    leaky = codes(dataset, lambda name, rows: coordinates(dataset, name, rows)[:, :12])
    basis = projection(dataset, components=DEFAULT_COMPONENTS)
    values, residual = targets(basis, dataset.val, consecutive_batch(0, len(dataset.val)))
    expected = 1 - (np.sum(values[:, 12:] ** 2) + residual.sum()) / (np.sum(values**2) + residual.sum())
    assert quick_r2(leaky, dataset, seed=0) == pytest.approx(expected, abs=0.03)


def test_quick_r2_of_noise_and_constant_is_zero(dataset):
    rng = np.random.default_rng(0)
    assert abs(quick_r2(codes(dataset, lambda name, rows: rng.standard_normal((len(rows), 6))), dataset, seed=0)) < 0.03
    assert abs(quick_r2(codes(dataset, lambda name, rows: np.ones((len(rows), 6))), dataset, seed=0)) < 0.03


def test_quick_r2_uses_only_given_rows(dataset):
    some = codes(dataset, lambda name, rows: coordinates(dataset, name, rows)[:, :12])
    half = {name: (rows[::2], z[::2]) for name, (rows, z) in some.items()}
    torn = {name: (rows, np.roll(z, 1, axis=0)) for name, (rows, z) in half.items()}
    assert quick_r2(half, dataset, seed=0) > 0.5
    assert quick_r2(torn, dataset, seed=0) < 0.1

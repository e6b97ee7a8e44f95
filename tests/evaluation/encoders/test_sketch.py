"""Tests that long codes keep what they show in fewer numbers."""

import numpy as np
import pytest

from cpgan_ray.evaluation.encoders.sketch import Sketch


def linear_r2(z: np.ndarray, x: np.ndarray) -> float:
    """R2 of ridge regression on the second half of the rows, fitted on the first."""
    half = len(z) // 2
    z = z - z[:half].mean(0)
    x = x - x[:half].mean(0)
    weight = np.linalg.solve(z[:half].T @ z[:half] + 1e-3 * len(z) * np.eye(z.shape[1]), z[:half].T @ x[:half])
    return float(1 - np.square(x[half:] - z[half:] @ weight).sum() / np.square(x[half:]).sum())


def test_sketch_keeps_what_few_directions_of_a_long_code_show():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 5))
    codes = (x @ rng.normal(size=(5, 3000)) * rng.uniform(1e-3, 1e3, 3000)).astype(np.float32)
    sketch = Sketch(codes[:250], numbers=64)
    assert sketch(codes).shape == (2000, 64)
    assert sketch(codes).dtype == np.float32
    assert linear_r2(sketch(codes), x) > 0.99, "numbers of every scale count"


def test_sketch_of_a_row_is_the_same_in_any_batch_and_any_process():
    codes = np.random.default_rng(1).normal(size=(50, 400)).astype(np.float32)
    first, second = Sketch(codes, numbers=16), Sketch(codes, numbers=16)
    np.testing.assert_array_equal(first(codes), second(codes))
    np.testing.assert_allclose(first(codes)[7:8], first(codes[7:8]), rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_sketch_leaves_out_numbers_that_do_not_vary(constant):
    codes = np.full((20, 40), constant, np.float32)
    codes[:, 3] = np.arange(20)
    z = Sketch(codes, numbers=4)(codes)
    assert np.isfinite(z).all()
    assert (z.std(axis=0) > 0).sum() == 1

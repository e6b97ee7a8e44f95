"""Tests of the rule that ends the raising of a budget."""

import dataclasses

import numpy as np
import pytest
import torch

from cpgan_ray.evaluation.attacks.base import half_width
from cpgan_ray.evaluation.attacks.saturation import is_saturated, is_useless
from cpgan_ray.evaluation.scoring import RowErrors, interval


@pytest.mark.parametrize(
    ("gain", "r2", "half_width", "useless"),
    [
        (0.0013, 0.07, 0.008, True),  # below 2 % of R2 and below a quarter of the half-width
        (0.0016, 0.07, 0.008, False),  # above 2 % of R2
        (0.0013, 0.07, 0.004, False),  # above a quarter of the half-width
        (0.0035, 0.0611, 0.008, False),  # the gain of a kernel attack that an absolute 0.005 took for useless
        (0.0003, 0.012, 0.004, False),  # small in all, but 2.5 % of what there is to find
        (0.00019, 0.0, 0.001, True),  # nothing to find
        (-0.01, 0.5, 0.01, True),
    ],
)
def test_is_useless_compares_gain_with_r2_and_interval(gain, r2, half_width, useless):
    assert is_useless(gain, r2=r2, half_width=half_width) is useless


@pytest.mark.parametrize(
    ("r2", "saturated"),
    [
        ([0.07], False),
        ([0.07, 0.07], False),
        ([0.07, 0.0705, 0.0709], True),
        ([0.0576, 0.0611, 0.0634], False),
        ([0.07, 0.0705, 0.09, 0.0905], False),  # two useless doublings, but not in a row
        ([0.07, 0.06, 0.05], True),
        ([0.07, 0.05, 0.0715, 0.0735], False),  # a worse budget in between: gains count from the best so far
    ],
)
def test_is_saturated_after_two_useless_doublings_in_a_row(r2, saturated):
    assert is_saturated(r2, half_width=0.008) is saturated


def test_half_width_matches_bootstrap_over_people(data_of):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 8)) * rng.uniform(0.5, 2, size=(3000, 1))
    tune = data_of(x[:, :3], x).tune
    tune = dataclasses.replace(tune, identity=rng.integers(150, size=len(tune)))
    first_value = torch.eye(8)[0]
    squares = np.square(tune.target.values.numpy().astype(np.float64))
    rows = RowErrors(squares[:, 1:].sum(axis=1) / 8, squares.mean(axis=1), tune.identity)
    low, high = interval(rows, seed=0)
    width = half_width(tune, lambda z: tune.target.values[: len(z)] * first_value, space="components")
    assert width == pytest.approx((high - low) / 2, rel=0.1)
    assert half_width(tune, lambda z: tune.target.values[: len(z)] / 2, space="components") == pytest.approx(0, abs=1e-6), (
        "a reconstruction that recovers the same share of every picture has no uncertainty"
    )

"""Tests of the bit budget: Gaussian channels with known information, and guesses that reach the bounds."""

import math

import numpy as np
import pytest

from cpgan_ray.evaluation.bounds.bits import (
    clipped_information,
    divergence,
    gaussian_information,
    gaussian_r2,
    largest_success,
    success_by_leakage,
)


@pytest.mark.parametrize("snr", [0.1, 1.0, 30.0])
def test_scalar_gaussian_channel_reaches_the_best_r2(snr):
    y = np.random.default_rng(0).standard_normal((200_000, 1))
    z = y + snr**-0.5 * np.random.default_rng(1).standard_normal(y.shape)
    information = gaussian_information(y, noise=snr**-0.5)
    assert information == pytest.approx(0.5 * math.log2(1 + snr), rel=0.01)
    assert gaussian_r2(information) == pytest.approx(np.corrcoef(y[:, 0], z[:, 0])[0, 1] ** 2, abs=0.01)


def test_gaussian_information_of_independent_numbers_adds_up():
    y = np.random.default_rng(0).standard_normal((50_000, 3)) * [1, 2, 4]
    expected = sum(0.5 * math.log2(1 + scale**2 / 0.25) for scale in (1, 2, 4))
    assert gaussian_information(y, noise=0.5) == pytest.approx(expected, abs=0.02)


def test_clipped_information_is_above_that_of_any_clipped_code():
    y = np.clip(np.random.default_rng(0).standard_normal((10_000, 4)) * 9, -2, 2)
    assert gaussian_information(y, noise=1.0) < clipped_information(4, clip=2.0, noise=1.0) == 2 * math.log2(5)


def test_largest_success_of_no_information_is_the_prior():
    assert largest_success(0.0, prior=0.25) == pytest.approx(0.25, abs=1e-6)


def test_largest_success_solves_the_divergence():
    success = largest_success(1.5, prior=1 / 64)
    assert 1 / 64 < success < 1
    assert divergence(success, 1 / 64) == pytest.approx(1.5, abs=1e-9)


def test_largest_success_of_enough_bits_is_certainty():
    assert largest_success(6.0, prior=1 / 64) == 1.0


@pytest.mark.parametrize("correct", [0.3, 0.7, 0.95])
def test_largest_success_is_above_that_of_a_symmetric_channel(correct):
    n = 16  # z is the number of the picture with probability `correct`, else one of the other 15
    information = math.log2(n) + correct * math.log2(correct) + (1 - correct) * math.log2((1 - correct) / (n - 1))
    assert largest_success(information, prior=1 / n) == pytest.approx(correct, abs=1e-6)


def test_success_by_leakage_of_distinct_codes_grows_with_their_number():
    assert success_by_leakage(3.0, prior=1 / 64) == 1 / 8
    assert success_by_leakage(5000.0, prior=1 / 64) == 1.0

"""Tests of the gallery bound on channels whose best attacker is known, and of the check that no attack is above it."""

import math

import numpy as np
import pytest
import torch

from cpgan_ray.evaluation.bounds import gallery as module
from cpgan_ray.evaluation.bounds.channel import Channel
from cpgan_ray.evaluation.bounds.gallery import bound_of, draw_galleries, exceeds
from cpgan_ray.evaluation.bounds.measure import DISTINCT, FEW_PEOPLE, UNKNOWN_NOISE, BoundExceededError, ensure_below, galleries_of
from cpgan_ray.evaluation.scoring import RowErrors


def drawn(x: np.ndarray, y: np.ndarray, *, n: int, noise: float = 0.0):
    galleries = draw_galleries(lambda rows: torch.from_numpy(x[rows]), y, np.arange(len(x)), n=n, noise=noise, seed=0)
    assert galleries is not None
    return galleries


@pytest.fixture
def many(monkeypatch):
    """Without the limits on the number of galleries."""
    monkeypatch.setattr(module, "MAX_PICTURES", 20_000)
    monkeypatch.setattr(module, "MAX_GALLERIES", 3000)


def test_gaussian_channel_has_the_caps_of_the_best_attacker(many):
    deviations = np.arange(1, 33) ** -0.75  # the channel carries 0.90 bits, and its best attacker reaches R2 0.219
    noise = 1.2597
    x = np.random.default_rng(0).standard_normal((8000, 32)) * deviations
    bits = sum(0.5 * math.log2(1 + (d / noise) ** 2) for d in deviations)
    best = float((deviations**4 / (deviations**2 + noise**2)).sum() / (deviations**2).sum())
    assert (bits, best) == (pytest.approx(0.90, abs=0.005), pytest.approx(0.219, abs=0.001))
    caps = {n: bound_of(drawn(x, x, n=n, noise=noise)) for n in (2, 8, 32, 128, 512)}
    for (n, cap), expected in zip(caps.items(), (0.765, 0.416, 0.285, 0.233, 0.219), strict=True):
        assert cap.r2 == pytest.approx(expected, abs=0.025), n
        assert cap.high > best, n


def test_sign_of_a_normal_number_has_the_variance_of_two_candidates(many):
    x = np.random.default_rng(0).standard_normal((6000, 1))
    galleries = drawn(x, np.sign(x), n=2)
    same = galleries.largest[:, 0] == 0.5
    assert same.mean() == pytest.approx(0.5, abs=0.04)
    # of two candidates with the same sign the mean is (|a| - |b|) / 2 away: (1 - 2 / pi) / 2 of the variance
    assert galleries.variances[same].mean() == pytest.approx((1 - 2 / math.pi) / 2, abs=0.02)


def test_sign_of_a_normal_number_tends_to_the_best_attacker(many):
    x = np.random.default_rng(0).standard_normal((6000, 1))  # the best attacker of a sign reaches R2 2 / pi
    assert bound_of(drawn(x, np.sign(x), n=512)).r2 == pytest.approx(2 / math.pi, abs=0.01)


def test_identification_of_equal_codes_is_one_of_the_number(many):
    x = np.random.default_rng(0).standard_normal((64, 3))
    bound = bound_of(drawn(x, np.zeros((64, 1)), n=8))
    assert bound.identification == pytest.approx(1 / 8)
    assert bound.r2 == pytest.approx(0, abs=0.3)


def test_galleries_have_one_picture_of_each_person():
    identity = np.repeat(np.arange(40), 5)
    x = np.random.default_rng(0).standard_normal((200, 2))
    galleries = draw_galleries(lambda rows: torch.from_numpy(x[rows]), x, identity, n=8, noise=1.0, seed=0)
    assert galleries is not None
    assert len(np.unique(identity[galleries.rows])) == galleries.rows.size == 40


def channel_data(data_of, y: np.ndarray):
    x = np.random.default_rng(0).standard_normal((len(y), 6))
    return data_of(y, x)


def test_distinct_codes_without_noise_have_no_bound(data_of):
    y = np.random.default_rng(1).standard_normal((100, 2))
    assert galleries_of(channel_data(data_of, y), Channel()) == ([], DISTINCT)


def test_unknown_noise_has_no_bound(data_of):
    assert galleries_of(channel_data(data_of, np.zeros((100, 2))), Channel(random=True)) == ([], UNKNOWN_NOISE)


def test_few_people_have_no_bound(data_of):
    assert galleries_of(channel_data(data_of, np.zeros((15, 2))), Channel()) == ([], FEW_PEOPLE)


def test_equal_codes_without_noise_have_a_bound(data_of):
    galleries, reason = galleries_of(channel_data(data_of, np.zeros((200, 2))), Channel(step=1.0))
    assert reason is None
    assert [part.rows.shape[1] for part in galleries] == [2, 8]


def planted(share: float):
    """Galleries of a noisy code, and an attack that makes this share of the smallest possible errors."""
    x = np.random.default_rng(0).standard_normal((1000, 8))
    galleries = drawn(x, x[:, :1], n=8, noise=1.0)
    errors = np.zeros(len(x))
    errors[galleries.rows] = share * galleries.variances.mean()
    return galleries, RowErrors(errors, np.square(x).mean(axis=1), np.arange(len(x)))


def test_attack_that_knows_the_pictures_is_above_the_bound():
    galleries, attack = planted(0.5)
    assert exceeds(attack.errors, galleries)
    with pytest.raises(BoundExceededError, match=r"attack ridge \(leaked\) recovers R2 0\.\d+ .* no attack can recover more"):
        ensure_below({"ridge (leaked)": attack}, [galleries])


def test_attack_as_good_as_the_bound_is_not_above_it():
    galleries, attack = planted(1.0)
    ensure_below({"ridge": attack}, [galleries])

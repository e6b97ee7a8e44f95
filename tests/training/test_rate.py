"""Tests of the rate term: lengths in bits against entropies, slopes against changed levels, and its effect on a game."""

import numpy as np
import pytest
import torch

from cpgan_ray.common.codec import PRECISION, codec_of, level_range
from cpgan_ray.common.types import Metrics
from cpgan_ray.training.game import play_in_process
from cpgan_ray.training.players import PrivatizerWorker
from cpgan_ray.training.rate import rate_term

FINITE = {"privatizer.levels": 3, "privatizer.quantization_step": 1.0}


def finite_codes(levels: int, *, step: float = 0.5, rows: int = 200, k: int = 7) -> np.ndarray:
    """Codes of which low levels are frequent."""
    rng, shares = np.random.default_rng(levels), np.arange(levels, 0, -1) ** 2.0
    return ((rng.choice(levels, (rows, k), p=shares / shares.sum()) + level_range(levels)[0]) * step).astype(np.float32)


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_rate_is_the_mean_length_under_the_codec_of_the_batch(levels):
    z = finite_codes(levels)
    bits, _ = rate_term(z, step=0.5, levels=levels)
    codec = codec_of(z, step=0.5, levels=levels)
    assert bits == pytest.approx(codec.information(z).mean(), rel=1e-4)
    assert sum(codec.frequencies) == 1 << PRECISION
    _, counts = np.unique(z, return_counts=True)
    entropy = -7 * float((counts / z.size * np.log2(counts / z.size)).sum())
    assert entropy <= bits <= entropy * 1.01, "no code is shorter than the entropy"
    assert bits < 7 * np.log2(levels)


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_slope_is_the_mean_change_of_length_to_the_neighbours(levels):
    """With the table kept, moving one number by one level changes the mean length by one or the other difference."""
    z, (lowest, highest) = finite_codes(levels), level_range(levels)
    codec = codec_of(z, step=0.5, levels=levels)
    bits = PRECISION - np.log2(codec.frequencies)
    _, slopes = rate_term(z, step=0.5, levels=levels)
    for row, column in ((0, 0), (3, 2), (11, 6), (50, 1)):
        n = int(np.rint(z[row, column] / 0.5))
        changes = [sign * (bits[n + sign - lowest] - bits[n - lowest]) for sign in (-1, 1) if lowest <= n + sign <= highest]
        assert slopes[row, column] * 0.5 * len(z) == pytest.approx(np.mean(changes), rel=1e-3, abs=1e-5)


def test_level_that_does_not_occur_has_a_finite_length():
    bits, slopes = rate_term(np.zeros((10, 4), np.float32), step=1.0, levels=5)
    assert 0 < bits < 4
    assert np.isfinite(slopes).all()


def test_update_adds_the_weighted_slope_of_the_rate(tiny):
    """Without adversaries the gradient at the codes is dL_U / dz + rate_weight * dR / dz."""
    privatizer = PrivatizerWorker(tiny(privacy_weight=0, changes=FINITE | {"game.rate_weight": 0.02}), threads=1)
    release = privatizer.release(0)
    privatizer.utility(release)
    (pending,) = privatizer.defender.pending
    code, utility_grad = pending.code, pending.grad
    code.retain_grad()
    metrics = privatizer.update(release, [])
    bits, slopes = rate_term(release.z, step=1.0, levels=3)
    assert metrics["code/training_bits"] == bits
    assert code.grad is not None
    assert utility_grad is not None
    torch.testing.assert_close(code.grad, utility_grad + 0.02 * torch.from_numpy(slopes))


def test_rate_weight_rises_with_the_privacy_weight(tiny, differing):
    """In the first round of the warm-up it counts nothing."""
    config = tiny("ridge", changes=FINITE | {"game.warmup_epochs": 1.0})
    first = play_in_process(config, threads=1)
    second = play_in_process(tiny("ridge", changes=FINITE | {"game.warmup_epochs": 1.0, "game.rate_weight": 0.1}), threads=1)
    for game in (first, second):
        game.play(1)
    assert differing(first.weights(), second.weights()) == []
    for game in (first, second):
        game.play(1)
    assert differing(first.weights(), second.weights())


def test_game_with_a_rate_weight_has_shorter_codes(tiny):
    last: dict[float, Metrics] = {}
    for weight in (0.0, 0.3):
        game = play_in_process(tiny("ridge", epochs=6, changes=FINITE | {"game.rate_weight": weight}), threads=1)
        while game.round < game.total_rounds:
            last[weight] = game.play(100)[-1]
    assert last[0.3]["code/training_bits"] < 0.9 * last[0.0]["code/training_bits"]

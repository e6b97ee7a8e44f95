"""Tests of the parts of the generative attack: predictions, controls, selection and judgement."""

import dataclasses

import numpy as np
import pytest
import torch

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import CodeMap, r2_score
from cpgan_ray.evaluation.attacks.kernel import kernel_attack
from cpgan_ray.evaluation.generative.controls import CONTROLS, nearest_pictures, of_other_people
from cpgan_ray.evaluation.generative.judging import SAMPLE, judge_kinds
from cpgan_ray.evaluation.generative.selection import Recoder, closest, true_distances
from cpgan_ray.evaluation.generative.starts import KernelSettings, fit_rows, kernel_settings, predicted_rows
from cpgan_ray.evaluation.similarity import similarity

torch.set_num_threads(1)

SHAPE = (12, 12, 1)


@pytest.fixture(scope="module")
def noise(data_of):
    """Codes that say nothing about the pictures."""
    rng = np.random.default_rng(0)
    return data_of(rng.normal(size=(500, 6)), rng.normal(size=(500, 8)))


@pytest.fixture(scope="module")
def pictures(data_of):
    """Pictures of twelve by twelve pixels; the code is the first four of their principal components, with noise."""
    rng = np.random.default_rng(1)
    x = np.clip(0.15 * rng.normal(size=(300, 8)) @ rng.normal(size=(8, 144)), -0.8, 0.8)
    data = data_of(x[:, :4], x, components=8, image_shape=SHAPE)
    z = {name: getattr(data, name).target.values[:, :4] for name in ("fit", "tune", "score")}
    sets = {name: dataclasses.replace(getattr(data, name), z=codes) for name, codes in z.items()}
    low = torch.full((144,), -1.0)
    return dataclasses.replace(data, **sets, pictures=True, bounds=(low, low + 2))


def test_predictions_are_not_fitted_on_their_own_rows(noise):
    overfitted = KernelSettings("standardised", "rbf", 0.35, 1e-3)
    own = fit_rows(noise, overfitted, np.arange(len(noise.fit)))
    assert r2_score(noise.fit, own, space="components") > 0.9
    fit, tune = predicted_rows(noise, None)
    for rows in (fit, tune):
        assert 1 - float((rows.x - rows.start).square().sum() / rows.x.square().sum()) < 0.02
    assert len(fit) == len(noise.fit) and torch.equal(fit.x, noise.fit.target.values)


def test_settings_of_a_fitted_kernel_attack_hold_for_fewer_rows(noise):
    fitted = kernel_attack(noise, AttackConfig())
    settings = kernel_settings(noise, fitted)
    penalty = fitted.settings["penalty"]
    assert isinstance(penalty, float)
    assert settings.ridge == pytest.approx(penalty * len(noise.fit), rel=1e-3)
    assert fit_rows(noise, settings, np.arange(100))(noise.score.z).shape == noise.score.target.values.shape


def test_shuffled_rows_are_a_permutation_among_other_people():
    identity = np.random.default_rng(2).integers(30, size=200)
    rows = of_other_people(identity, seed=0)
    assert np.array_equal(np.sort(rows), np.arange(200))
    assert not (identity[rows] == identity).any()


def test_nearest_picture_is_that_of_the_nearest_standardised_code(pictures):
    prepare = CodeMap(pictures.fit.z, how="standardised")
    distance = torch.cdist(prepare(pictures.score.z).double(), prepare(pictures.fit.z).double())
    expected = pictures.fit.target.values[distance.argmin(1)]
    assert torch.equal(nearest_pictures(pictures, pictures.score.z), expected)


def test_selection_finds_the_draw_with_the_right_code(pictures):
    mean = np.zeros(144, np.float32)
    components = pictures.components.numpy()

    def encode(x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.uint8 and x.shape[1:] == (1, 12, 12)
        return ((x.reshape(len(x), -1).astype(np.float32) / 127.5 - 1) @ components.T)[:, :4]

    truth, z = pictures.score.target.values, pictures.score.z
    others = torch.stack([truth.roll(shift, 0) for shift in (1, 2)])
    draws = torch.stack([others[0], truth, others[1]])
    distances = Recoder(encode, pictures, mean).distances(draws, z)
    assert torch.equal(closest(draws, distances), truth)
    assert float(distances[1].max()) < 0.1 < float(distances[0].median())
    assert torch.equal(closest(draws, true_distances(draws, truth)), truth)


def test_judgement_pairs_attack_and_controls(pictures):
    truth = pictures.score.target.values
    kinds = {SAMPLE: 0.8 * truth} | {name: truth.roll(i + 1, 0) for i, name in enumerate(CONTROLS)}
    judgement = judge_kinds(pictures, pictures.score, kinds, judge=None)
    assert judgement.judge is None and judgement.sample.likeness is None
    ssim = {kind.name: kind.ssim.mean for kind in judgement.kinds if kind.ssim is not None}
    x = pictures.score.pixels[slice(None)]
    unit = [
        ((values.view(-1, *SHAPE).permute(0, 3, 1, 2) + 1) / 2).clamp(0, 1) for values in (0.8 * truth @ pictures.components, x)
    ]
    assert ssim[SAMPLE] == pytest.approx(float(similarity(*unit)["ssim"].mean()), abs=1e-6)
    for gain, control in zip(judgement.gains, CONTROLS, strict=True):
        assert gain.control == control and gain.ssim is not None
        assert gain.ssim.mean == pytest.approx(ssim[SAMPLE] - ssim[control])
        assert 0 < gain.ssim.low < gain.ssim.mean < gain.ssim.high

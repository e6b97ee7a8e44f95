"""Tests of the attacks: they recover leaky codes, find nothing in useless codes, and do not use the score rows."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from cpgan_ray.config import AttackConfig, NeuralConfig
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, Mean, Pairs, half_width, predict, r2_score, to_pixels
from cpgan_ray.evaluation.attacks.closed_form import RIDGE_PENALTIES
from cpgan_ray.evaluation.attacks.neural import Candidate, train_candidates
from cpgan_ray.evaluation.attacks.saturation import is_saturated
from cpgan_ray.training.adversaries.base import Target

torch.set_num_threads(1)

ROWS, SHAPE = 1000, (8, 8, 3)
D, P = 192, 10
SETTINGS = AttackConfig(mlp_widths=(64,), decoder_width=2, kernel_features=256, epochs=1, max_budget_doublings=3)
VECTOR_ATTACKS = ("ridge", "kernel", "mlp", "nearest")
DataOf = Callable[..., AttackData]


def pictures(*, factors: int = P, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Latent factors (rows, factors) and pictures (rows, D) that are a linear function of them, smooth over the picture."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(rows, factors))
    down, right = np.mgrid[:8, :8] / 7 * np.pi
    waves = [np.cos(i * down) * np.cos(j * right) for i in range(4) for j in range(4)][1 : factors + 1]
    shades = np.stack([np.multiply.outer(wave, rng.normal(size=3)).ravel() for wave in waves])
    shades /= np.linalg.norm(shades, axis=1, keepdims=True)
    return latent, latent @ shades * np.sqrt(D / factors) + 2


@pytest.fixture(scope="module")
def leaky(data_of: DataOf) -> AttackData:
    """z is an invertible affine map of the picture's factors, with a little noise."""
    latent, x = pictures()
    rng = np.random.default_rng(1)
    mixing = np.linalg.qr(rng.normal(size=(P, P)))[0] * np.linspace(0.3, 2, P)
    return data_of(latent @ mixing + 5 + 1e-3 * rng.normal(size=latent.shape), x, components=P, image_shape=SHAPE)


@pytest.fixture(scope="module")
def curved(data_of: DataOf) -> AttackData:
    """z is a random two-layer tanh network of the picture's two factors."""
    latent, x = pictures(factors=2)
    rng = np.random.default_rng(2)
    hidden = np.tanh(3 * latent @ rng.normal(size=(2, 12)) + rng.normal(size=12))
    return data_of(np.tanh(hidden @ rng.normal(size=(12, 6))), x, components=P, image_shape=SHAPE)


@pytest.fixture(scope="module")
def noisy(data_of: DataOf) -> AttackData:
    """z is a random tanh layer of the picture's two factors, with noise: there is a limit to what can be recovered."""
    latent, x = pictures(factors=2)
    rng = np.random.default_rng(8)
    z = np.tanh(3 * latent @ rng.normal(size=(2, 12)) + rng.normal(size=12))
    return data_of(z + 0.3 * rng.normal(size=z.shape), x, components=P)


@pytest.fixture(scope="module")
def series(data_of: DataOf) -> AttackData:
    """Three smooth signals whose length is not a power of two; z is a random tanh network of their two factors."""
    latent, _ = pictures(factors=2, rows=2000)
    rng = np.random.default_rng(10)
    steps = np.arange(50)[:, None] / 50 * 2 * np.pi
    waves = np.sin(latent[:, :1, None] + steps + np.arange(3)) + latent[:, 1:, None] * np.cos(2 * steps)
    z = np.tanh(latent @ rng.normal(size=(2, 12)) + rng.normal(size=12)) @ rng.normal(size=(12, 6))
    return data_of(z, waves.reshape(len(latent), -1), components=P, image_shape=(50, 1, 3))


def r2(data: AttackData, fitted: Fitted) -> float:
    """Share of the pixel variance that is recovered on the score rows, in numpy."""
    x = data.score.pixels[slice(None)].numpy().astype(np.float64)
    x_hat = to_pixels(data, fitted, data.score.z).numpy()
    return 1 - np.square(x_hat - x).sum() / np.square(x).sum()


def run(name: str, data: AttackData) -> Fitted:
    return ATTACKS[name](data, SETTINGS)


def answers(fitted: Fitted, data: AttackData) -> torch.Tensor:
    return predict(fitted.reconstruct, data.score.z)


@pytest.fixture(scope="module")
def on_curved(curved: AttackData) -> dict[str, Fitted]:
    return {name: run(name, curved) for name in ATTACKS}


def test_ridge_attack_recovers_leaky_code(leaky):
    assert r2(leaky, run("ridge", leaky)) > 0.98


@pytest.mark.parametrize("name", ["kernel", "mlp", "decoder", "resnet_decoder"])
def test_every_attack_recovers_leaky_code(name, leaky):
    assert r2(leaky, run(name, leaky)) > 0.9


def test_nearest_attack_recovers_leaky_code(leaky):
    assert r2(leaky, run("nearest", leaky)) > 0.4


@pytest.mark.parametrize("ratio", [1e-2, 1e-3, 1e-4])
def test_attacks_find_picture_in_low_variance_directions(ratio, data_of):
    """The whole picture lies in z, but in the differences of loud coordinates of unit variance, at `ratio` of their deviation:
    float32 codes have room for it, and Bob reads off the picture by subtracting coordinates."""
    latent, x = pictures()
    loud = np.random.default_rng(5).normal(size=latent.shape)
    data = data_of(np.column_stack([loud, loud + ratio * latent]), x, components=P)
    quiet = (data.score.z[:, P:].double() - data.score.z[:, :P]) / ratio
    assert (quiet.numpy() - latent[-ROWS // 5 :]).std() < 0.01, "the picture is in the code"
    assert r2(data, run("ridge", data)) > 0.9


def test_neural_attack_inverts_deep_random_network(data_of):
    """Three random layers with more units than factors lose no information, and a perceptron inverts them."""
    rng = np.random.default_rng(4)
    latent, x = pictures(factors=3, rows=4000)
    h = latent
    for inputs, outputs in ((3, 24), (24, 24), (24, 16)):
        h = np.tanh(1.5 * h @ rng.normal(size=(inputs, outputs)) / np.sqrt(inputs) + 0.5 * rng.normal(size=outputs))
    data = data_of(h, x, components=P)
    assert max(r2(data, run(name, data)) for name in ("mlp", "kernel")) > 0.8


def test_attacks_find_single_leaking_component(data_of):
    rng = np.random.default_rng(6)
    scales = np.array([3, 2, 1.5, 1, 1, 0.8, 0.5, 0.5, 0.3, 0.2])
    latent = rng.normal(size=(4000, P)) * scales
    x = latent @ np.linalg.qr(rng.normal(size=(D, P)))[0].T
    data = data_of(np.column_stack([latent[:, 2], rng.normal(size=(len(x), 3))]), x, components=P)
    r2_of = {name: r2(data, run(name, data)) for name in ("ridge", "kernel", "mlp")}
    share = scales[2] ** 2 / np.square(scales).sum()
    assert max(r2_of.values()) == pytest.approx(share, abs=0.01)


def test_ridge_attack_finds_leak_outside_components(data_of):
    """The components are the directions of large variance; z leaks a direction of small variance."""
    rng = np.random.default_rng(7)
    scales = np.repeat([1.0, 0.3], [P, 1])
    latent = rng.normal(size=(2000, P + 1)) * scales
    x = latent @ np.linalg.qr(rng.normal(size=(D, P + 1)))[0].T
    data = data_of(latent[:, P:], x, components=P)
    assert r2(data, run("ridge", data)) == pytest.approx(0.09 / np.square(scales).sum(), abs=0.003)


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_on_constant_code_recovers_nothing(name, value, data_of):
    _, x = pictures()
    data = data_of(np.full((len(x), 6), value), x, components=P, image_shape=SHAPE)
    assert abs(r2(data, run(name, data))) < 0.01


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_on_shuffled_codes_recovers_nothing(name, data_of):
    latent, x = pictures(rows=3000)
    data = data_of(np.random.default_rng(3).permutation(latent)[:, :4], x, components=P, image_shape=SHAPE)
    assert abs(r2(data, run(name, data))) < 0.01


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_ignores_constant_coordinates(name, data_of):
    """Three of eight coordinates are constant; the other five contain the whole picture."""
    latent, x = pictures(factors=5)
    dead = np.tile([0.0, 1.0, -3.0], (len(x), 1))
    data = data_of(np.column_stack([latent, dead]), x, components=P, image_shape=SHAPE)
    assert r2(data, run(name, data)) > (0.6 if name == "nearest" else 0.9)


def test_nonlinear_attacks_beat_ridge_on_curved_code(curved, on_curved):
    r2_of = {name: r2(curved, on_curved[name]) for name in ATTACKS}
    for name in ("kernel", "mlp", "decoder", "resnet_decoder", "nearest"):
        assert r2_of[name] > r2_of["ridge"] + 0.02, r2_of


@pytest.mark.parametrize("name", ["decoder", "resnet_decoder"])
def test_decoder_attacks_beat_ridge_on_smooth_series(name, series):
    fitted = run(name, series)
    assert fitted.space == "pixels"
    assert answers(fitted, series).shape == series.score.pixels[slice(None)].shape
    assert r2(series, fitted) > r2(series, run("ridge", series)) + 0.05


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_does_not_read_score_rows(name, curved, on_curved):
    """With other score rows, the reconstructions of given codes are bit-identical and the settings equal."""
    score = Pairs(torch.randn(50, 6), Target(torch.randn(50, P), torch.ones(50), D), torch.randn(50, D), np.arange(50))
    again = run(name, dataclasses.replace(curved, score=score))
    assert torch.equal(answers(again, curved), answers(on_curved[name], curved))
    assert again.settings == on_curved[name].settings


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_with_same_seed_is_repeatable(name, curved, on_curved):
    torch.manual_seed(12345)
    np.random.default_rng(1).random(7)
    assert torch.equal(answers(run(name, curved), curved), answers(on_curved[name], curved))


@pytest.mark.parametrize("name", ["kernel", "mlp", "decoder"])
def test_attack_with_other_seed_has_similar_strength(name, curved):
    settings = dataclasses.replace(SETTINGS, kernel_rows=100)  # so that the kernel attack draws random features
    first, other = (ATTACKS[name](dataclasses.replace(curved, seed=seed), settings) for seed in (0, 1))
    assert not torch.equal(answers(other, curved), answers(first, curved))
    assert r2(curved, other) == pytest.approx(r2(curved, first), abs=0.1)


def test_ridge_attack_matches_scikit_learn_with_best_tuning_penalty(curved, on_curved):
    raw, x = curved.fit.z.numpy().astype(np.float64), curved.fit.pixels[slice(None)].numpy().astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(raw.T))
    z, tune, score = (
        (codes - raw.mean(axis=0)) @ vectors / np.sqrt(values) for codes in (raw, curved.tune.z.numpy(), curved.score.z.numpy())
    )
    tuned: dict[float, tuple[float, Ridge]] = {}
    for penalty in RIDGE_PENALTIES:
        model = Ridge(alpha=len(z) * penalty).fit(z, x)
        tuned[penalty] = np.square(model.predict(tune) - curved.tune.pixels[slice(None)].numpy()).sum(), model
    best = min(tuned, key=lambda penalty: tuned[penalty][0])
    assert on_curved["ridge"].settings == {"penalty": best}
    before = on_curved["ridge"].before_refit
    assert before is not None
    assert predict(before, curved.score.z).numpy() == pytest.approx(tuned[best][1].predict(score), abs=1e-4)
    all_z, all_x = np.concatenate([z, tune]), np.concatenate([x, curved.tune.pixels[slice(None)].numpy()])
    refitted = Ridge(alpha=len(all_z) * best).fit(all_z, all_x)
    assert answers(on_curved["ridge"], curved).numpy() == pytest.approx(refitted.predict(score), abs=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_chooses_settings_on_tuning_rows(name, curved, on_curved):
    """If all tuning pictures are the mean picture, the most cautious settings are best, and reconstructions are closer to the
    mean."""
    rows = len(curved.tune)
    flat = Target(torch.zeros_like(curved.tune.target.values), torch.ones(rows), D)
    tune = dataclasses.replace(curved.tune, target=flat, pixels=torch.full((rows, D), 1e-3))
    cautious = run(name, dataclasses.replace(curved, tune=tune))
    assert answers(cautious, curved).std() < 0.97 * answers(on_curved[name], curved).std()


@pytest.mark.parametrize("name", ["mlp", "decoder", "resnet_decoder"])
def test_neural_attack_is_at_least_as_strong_as_ridge_on_tuning_rows(name, leaky, curved, on_curved):
    for data, fitted in ((leaky, run(name, leaky)), (curved, on_curved[name])):
        assert fitted.tune_r2 >= run("ridge", data).tune_r2 - 1e-3


def test_train_candidates_doubles_budget_until_saturated(noisy):
    settings = dataclasses.replace(SETTINGS, epochs=1, restarts=1)
    short, long = (ATTACKS["mlp"](noisy, dataclasses.replace(settings, max_budget_doublings=n)) for n in (0, 8))
    assert (short.budgets[0][0], len(short.budgets), short.saturated) == (1, 1, False)
    budgets, r2_of_budgets = zip(*long.budgets, strict=True)
    assert list(budgets) == [2**i for i in range(len(budgets))]
    assert len(budgets) > 2
    assert len(long.curve) == long.settings["epochs"] == budgets[-1]
    assert [long.curve[budget - 1] for budget in budgets] == list(r2_of_budgets), "all budgets belong to the same network"
    assert run("ridge", noisy).curve == ()
    assert long.before_refit is not None
    width = half_width(noisy.tune, long.before_refit, space="components")
    assert is_saturated(r2_of_budgets, half_width=width)
    assert not is_saturated(r2_of_budgets[:-1], half_width=width), "the budget is doubled only while R2 rises"
    assert long.saturated
    assert r2(noisy, long) > r2(noisy, short) + 0.005


@pytest.mark.parametrize("seed", [8, 9])
def test_train_candidates_averages_restarts_only_if_better(seed, data_of):
    """The code is noisy, and each restart fits the noise differently."""
    rng = np.random.default_rng(seed)
    latent, x = pictures(factors=2)
    z = np.tanh(3 * latent @ rng.normal(size=(2, 12)) + rng.normal(size=12))
    data = data_of(z + 0.3 * rng.normal(size=z.shape), x, components=P)
    fitted = ATTACKS["mlp"](data, dataclasses.replace(SETTINGS, restarts=3))
    alone = fitted.settings["restarts_r2"]
    assert isinstance(alone, list)
    assert len(set(alone)) == 3
    averaged = "averaged" in fitted.settings
    assert isinstance(fitted.reconstruct, Mean) == averaged
    assert (round(fitted.tune_r2, 4) > max(alone)) if averaged else (round(fitted.tune_r2, 4) == max(alone))
    assert fitted.averaged == averaged
    assert fitted.before_refit is not None
    assert fitted.tune_r2 == r2_score(data.tune, fitted.before_refit, space="components")


@pytest.mark.parametrize(("against", "other"), [((), "upsample"), (("upsample",), "conv"), (("conv", "mlp"), "upsample")])
def test_decoder_attack_uses_architecture_not_trained_against(against, other, curved):
    fitted = ATTACKS["decoder"](
        dataclasses.replace(curved, trained_against=against), dataclasses.replace(SETTINGS, max_budget_doublings=0)
    )
    assert fitted.settings["architecture"] == other


def test_train_candidates_compares_on_tuning_rows(curved):
    narrow, wide = (Candidate(NeuralConfig(architecture="mlp", width=width), "standardised") for width in (2, 64))
    fitted = train_candidates(curved, SETTINGS, [narrow, wide], space="components")
    assert fitted.settings["width"] == 64


def test_r2_score_includes_error_outside_components(curved):
    flat = dataclasses.replace(curved.tune.target, residual=torch.full((len(curved.tune),), 100.0))
    pairs = dataclasses.replace(curved.tune, target=flat)
    values = flat.values.double().square().sum(1)
    expected = 1 - (values * 0.25 + 100).sum() / (values + 100).sum()
    halved = lambda z: flat.values[: len(z)] / 2  # noqa: E731
    assert r2_score(pairs, halved, space="components") == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("how", ["standardised", "whitened"])
def test_code_map_uses_statistics_of_fitted_codes(how, leaky):
    fit, new = leaky.fit.z, leaky.score.z
    prepare = CodeMap(fit, how=how)
    inside = prepare(fit).double()
    assert inside.mean(0).abs().max() < 1e-3
    if how == "whitened":
        assert torch.allclose(torch.cov(inside.T), torch.eye(P, dtype=torch.float64), atol=1e-3)
    else:
        assert inside.std(0).numpy() == pytest.approx(np.ones(P), abs=1e-3)
        by_hand = (new.numpy() - fit.numpy().mean(axis=0)) / fit.numpy().std(axis=0, ddof=1)
        assert prepare(new).numpy() == pytest.approx(by_hand, abs=1e-3)

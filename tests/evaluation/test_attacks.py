"""The attacks break what is leaky, find nothing where nothing is, and never look at the rows they are scored on."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from cpgan_ray.config import AttackConfig, NeuralConfig
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import GAIN, AttackData, CodeMap, Fitted, Mean, Pairs, predict, r2_score, to_pixels
from cpgan_ray.evaluation.attacks.closed_form import RIDGE_PENALTIES
from cpgan_ray.evaluation.attacks.neural import Candidate, train_candidates
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
    """z is an invertible affine map of what varies in the picture; a little noise keeps the fit honest."""
    latent, x = pictures()
    rng = np.random.default_rng(1)
    mixing = np.linalg.qr(rng.normal(size=(P, P)))[0] * np.linspace(0.3, 2, P)
    return data_of(latent @ mixing + 5 + 1e-3 * rng.normal(size=latent.shape), x, components=P, image_shape=SHAPE)


@pytest.fixture(scope="module")
def curved(data_of: DataOf) -> AttackData:
    """z is a random two-layer tanh network of the two factors behind the picture."""
    latent, x = pictures(factors=2)
    rng = np.random.default_rng(2)
    hidden = np.tanh(3 * latent @ rng.normal(size=(2, 12)) + rng.normal(size=12))
    return data_of(np.tanh(hidden @ rng.normal(size=(12, 6))), x, components=P, image_shape=SHAPE)


@pytest.fixture(scope="module")
def series(data_of: DataOf) -> AttackData:
    """Three smooth signals, of a length that is no power of two; z is a random tanh network of the two factors behind them."""
    latent, _ = pictures(factors=2, rows=2000)
    rng = np.random.default_rng(10)
    steps = np.arange(50)[:, None] / 50 * 2 * np.pi
    waves = np.sin(latent[:, :1, None] + steps + np.arange(3)) + latent[:, 1:, None] * np.cos(2 * steps)
    z = np.tanh(latent @ rng.normal(size=(2, 12)) + rng.normal(size=12)) @ rng.normal(size=(12, 6))
    return data_of(z, waves.reshape(len(latent), -1), components=P, image_shape=(50, 1, 3))


def r2(data: AttackData, fitted: Fitted) -> float:
    """Share of variance recovered on the score rows, of the pixels, in numpy."""
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


def test_a_leaky_code_is_broken_by_ridge(leaky):
    assert r2(leaky, run("ridge", leaky)) > 0.98


@pytest.mark.parametrize("name", ["kernel", "mlp", "decoder", "resnet_decoder"])
def test_a_leaky_code_does_not_withstand_the_other_attacks_either(name, leaky):
    assert r2(leaky, run(name, leaky)) > 0.9


def test_the_nearest_neighbours_code_gives_its_picture_away(leaky):
    assert r2(leaky, run("nearest", leaky)) > 0.4


@pytest.mark.parametrize("ratio", [1e-2, 1e-3, 1e-4])
def test_a_picture_hidden_in_directions_of_tiny_variance_is_found(ratio, data_of):
    """The whole picture lies in z, but in the differences of loud coordinates of unit variance, at `ratio` of their deviation:
    float32 codes have room for it, and Bob reads off the picture by subtracting coordinates."""
    latent, x = pictures()
    loud = np.random.default_rng(5).normal(size=latent.shape)
    data = data_of(np.column_stack([loud, loud + ratio * latent]), x, components=P)
    quiet = (data.score.z[:, P:].double() - data.score.z[:, :P]) / ratio
    assert (quiet.numpy() - latent[-ROWS // 5 :]).std() < 0.01, "the picture is there"
    assert r2(data, run("ridge", data)) > 0.9


def test_a_deep_random_network_is_broken_by_a_neural_attack(data_of):
    """Three random layers with more units than factors lose nothing, and a perceptron inverts them."""
    rng = np.random.default_rng(4)
    latent, x = pictures(factors=3, rows=4000)
    h = latent
    for inputs, outputs in ((3, 24), (24, 24), (24, 16)):
        h = np.tanh(1.5 * h @ rng.normal(size=(inputs, outputs)) / np.sqrt(inputs) + 0.5 * rng.normal(size=outputs))
    data = data_of(h, x, components=P)
    assert max(r2(data, run(name, data)) for name in ("mlp", "kernel")) > 0.8


def test_a_single_component_that_leaks_is_found_to_its_share_of_the_variance(data_of):
    rng = np.random.default_rng(6)
    scales = np.array([3, 2, 1.5, 1, 1, 0.8, 0.5, 0.5, 0.3, 0.2])
    latent = rng.normal(size=(4000, P)) * scales
    x = latent @ np.linalg.qr(rng.normal(size=(D, P)))[0].T
    data = data_of(np.column_stack([latent[:, 2], rng.normal(size=(len(x), 3))]), x, components=P)
    found = {name: r2(data, run(name, data)) for name in ("ridge", "kernel", "mlp")}
    share = scales[2] ** 2 / np.square(scales).sum()
    assert max(found.values()) == pytest.approx(share, abs=0.01)


def test_ridge_finds_a_leak_outside_the_components(data_of):
    """The components hold the loud directions; what z gives away is a quiet one."""
    rng = np.random.default_rng(7)
    scales = np.repeat([1.0, 0.3], [P, 1])
    latent = rng.normal(size=(2000, P + 1)) * scales
    x = latent @ np.linalg.qr(rng.normal(size=(D, P + 1)))[0].T
    data = data_of(latent[:, P:], x, components=P)
    assert r2(data, run("ridge", data)) == pytest.approx(0.09 / np.square(scales).sum(), abs=0.003)


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_constant_code_gives_nothing_away(name, value, data_of):
    _, x = pictures()
    data = data_of(np.full((len(x), 6), value), x, components=P, image_shape=SHAPE)
    assert abs(r2(data, run(name, data))) < 0.01


@pytest.mark.parametrize("name", ATTACKS)
def test_codes_dealt_out_at_random_give_nothing_away(name, data_of):
    latent, x = pictures(rows=3000)
    data = data_of(np.random.default_rng(3).permutation(latent)[:, :4], x, components=P, image_shape=SHAPE)
    assert abs(r2(data, run(name, data))) < 0.01


@pytest.mark.parametrize("name", ATTACKS)
def test_coordinates_that_never_vary_do_not_hinder_an_attack(name, data_of):
    """Of eight coordinates three are constant; the other five hold the whole picture."""
    latent, x = pictures(factors=5)
    dead = np.tile([0.0, 1.0, -3.0], (len(x), 1))
    data = data_of(np.column_stack([latent, dead]), x, components=P, image_shape=SHAPE)
    assert r2(data, run(name, data)) > (0.6 if name == "nearest" else 0.9)


def test_a_curved_code_is_broken_better_by_every_other_attack_than_by_ridge(curved, on_curved):
    found = {name: r2(curved, on_curved[name]) for name in ATTACKS}
    for name in ("kernel", "mlp", "decoder", "resnet_decoder", "nearest"):
        assert found[name] > found["ridge"] + 0.02, found


@pytest.mark.parametrize("name", ["decoder", "resnet_decoder"])
def test_decoders_along_time_find_more_of_a_smooth_series_than_ridge(name, series):
    fitted = run(name, series)
    assert fitted.space == "pixels"
    assert answers(fitted, series).shape == series.score.pixels[slice(None)].shape
    assert r2(series, fitted) > r2(series, run("ridge", series)) + 0.05


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_reads_the_rows_it_is_scored_on(name, curved, on_curved):
    """Other codes and pictures there: the same reconstructions of given codes, bit for bit, at the same settings."""
    score = Pairs(torch.randn(50, 6), Target(torch.randn(50, P), torch.ones(50), D), torch.randn(50, D), np.arange(50))
    again = run(name, dataclasses.replace(curved, score=score))
    assert torch.equal(answers(again, curved), answers(on_curved[name], curved))
    assert again.settings == on_curved[name].settings


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_repeatable_from_its_seed_after_other_draws(name, curved, on_curved):
    torch.manual_seed(12345)
    np.random.default_rng(1).random(7)
    assert torch.equal(answers(run(name, curved), curved), answers(on_curved[name], curved))


@pytest.mark.parametrize("name", ["kernel", "mlp", "decoder"])
def test_another_seed_makes_another_attack_of_about_the_same_strength(name, curved, on_curved):
    other = run(name, dataclasses.replace(curved, seed=1))
    assert not torch.equal(answers(other, curved), answers(on_curved[name], curved))
    assert r2(curved, other) == pytest.approx(r2(curved, on_curved[name]), abs=0.1)


def test_the_ridge_attack_is_scikit_learns_on_whitened_codes_at_the_penalty_that_is_best_on_the_tuning_rows(curved, on_curved):
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
    expected = tuned[best][1].predict(score)
    assert answers(on_curved["ridge"], curved).numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_are_chosen_on_the_tuning_rows(name, curved, on_curved):
    """Tuning pictures that are all the mean picture ask for the least daring settings, and the answer is closer to the mean."""
    rows = len(curved.tune)
    flat = Target(torch.zeros_like(curved.tune.target.values), torch.ones(rows), D)
    tune = dataclasses.replace(curved.tune, target=flat, pixels=torch.full((rows, D), 1e-3))
    cautious = run(name, dataclasses.replace(curved, tune=tune))
    assert answers(cautious, curved).std() < 0.97 * answers(on_curved[name], curved).std()


@pytest.mark.parametrize("name", ["mlp", "decoder", "resnet_decoder"])
def test_a_neural_attack_is_no_weaker_than_ridge_on_the_tuning_rows(name, leaky, curved, on_curved):
    for data, fitted in ((leaky, run(name, leaky)), (curved, on_curved[name])):
        assert fitted.tune_r2 >= run("ridge", data).tune_r2 - 1e-3


def test_a_budget_is_doubled_as_long_as_that_helps_and_the_attack_says_whether_it_still_did(curved):
    short, long = (ATTACKS["mlp"](curved, dataclasses.replace(SETTINGS, epochs=1, doublings=n)) for n in (0, 8))
    assert (short.budgets[0][0], len(short.budgets), short.saturated) == (1, 1, False)
    budgets, found = zip(*long.budgets, strict=True)
    assert list(budgets) == [2**i for i in range(len(budgets))]
    assert len(budgets) > 2
    assert len(long.curve) == long.settings["epochs"]
    assert [max(long.curve[:budget]) for budget in budgets[:-1]] == pytest.approx(found[:-1]), "of one and the same network"
    assert run("ridge", curved).curve == ()
    gains = np.diff(found)
    assert all(max(pair) >= GAIN for pair in zip(gains[:-2], gains[1:-1], strict=True)), "it goes on only while it gains"
    assert long.saturated
    assert r2(curved, long) > r2(curved, short) + GAIN


@pytest.mark.parametrize("seed", [8, 9])
def test_restarts_are_averaged_where_that_is_better_on_the_tuning_rows_and_the_best_counts_elsewhere(seed, data_of):
    """The code is noisy, and each restart learns the noise in its own way."""
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
    assert fitted.tune_r2 == r2_score(data.tune, fitted.reconstruct, space="components")


@pytest.mark.parametrize(("against", "other"), [((), "upsample"), (("upsample",), "conv"), (("conv", "mlp"), "upsample")])
def test_the_decoder_is_of_an_architecture_that_no_training_adversary_has(against, other, curved):
    fitted = ATTACKS["decoder"](dataclasses.replace(curved, trained_against=against), dataclasses.replace(SETTINGS, doublings=0))
    assert fitted.settings["architecture"] == other


def test_candidates_are_compared_on_the_tuning_rows(curved):
    narrow, wide = (Candidate(NeuralConfig(architecture="mlp", width=width), "standardised") for width in (2, 64))
    fitted = train_candidates(curved, SETTINGS, [narrow, wide], space="components")
    assert fitted.settings["width"] == 64


def test_the_error_counts_what_lies_outside_the_components(curved):
    flat = dataclasses.replace(curved.tune.target, residual=torch.full((len(curved.tune),), 100.0))
    pairs = dataclasses.replace(curved.tune, target=flat)
    values = flat.values.double().square().sum(1)
    expected = 1 - (values * 0.25 + 100).sum() / (values + 100).sum()
    halved = lambda z: flat.values[: len(z)] / 2  # noqa: E731
    assert r2_score(pairs, halved, space="components") == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("how", ["standardised", "whitened"])
def test_codes_are_standardised_or_whitened_with_the_statistics_of_the_fitted_ones(how, leaky):
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

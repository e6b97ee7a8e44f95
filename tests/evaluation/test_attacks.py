"""The attacks break what is leaky, find nothing where nothing is, and never look at the rows they are scored on."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from cpgan_ray.adversaries.base import Target
from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks import ATTACKS, RIDGE_PENALTIES, AttackData, Fitted, Pairs, error_on, predict, prepared

torch.set_num_threads(1)

ROWS, P = 1000, 10
SETTINGS = AttackConfig(mlp_widths=(64,), mlp_epochs=40, kernel_features=256)


def data_of(z: np.ndarray, x: np.ndarray, *, seed: int = 0) -> AttackData:
    """Fit, tune and score rows, three to one to one; the target is relative to the mean of the rows fitted on."""
    fit, other = len(x) * 3 // 5, len(x) // 5
    x = x - x[:fit].mean(axis=0)
    outside = np.full(len(x), 0.3)
    tensors = [torch.from_numpy(np.require(a, np.float32, ["C", "W"])) for a in (z, x, outside)]
    parts = zip(*(t.split([fit, other, other]) for t in tensors), strict=True)
    return AttackData(*(Pairs(codes, Target(values, rest, x.shape[1] + 2)) for codes, values, rest in parts), seed=seed)


def pictures(*, factors: int = P, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Latent factors (rows, factors) and pictures (rows, P) that are a linear function of them."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(rows, factors))
    return latent, latent @ np.linalg.qr(rng.normal(size=(P, factors)))[0].T * np.sqrt(P / factors) + 2


def leaky() -> AttackData:
    """z is an invertible affine map of the picture; a little noise keeps the fit honest."""
    _, x = pictures()
    rng = np.random.default_rng(1)
    mixing = np.linalg.qr(rng.normal(size=(P, P)))[0] * np.linspace(0.3, 2, P)
    return data_of(x @ mixing + 5 + 1e-3 * rng.normal(size=x.shape), x)


def curved(*, rows: int = ROWS) -> AttackData:
    """z is a random two-layer tanh network of the two factors behind the picture."""
    latent, x = pictures(factors=2, rows=rows)
    rng = np.random.default_rng(2)
    hidden = np.tanh(3 * latent @ rng.normal(size=(2, 12)) + rng.normal(size=12))
    return data_of(np.tanh(hidden @ rng.normal(size=(12, 6))), x)


def hidden(ratio: float) -> AttackData:
    """The whole picture lies in z, but in the differences of loud coordinates of unit variance, at `ratio` of their deviation."""
    _, x = pictures()
    loud = np.random.default_rng(5).normal(size=x.shape)
    z = np.column_stack([loud, loud + ratio * (x - 2)])
    return data_of(z / z.std(axis=0), x)


def r2(fitted: Fitted, pairs: Pairs) -> float:
    """Share of variance recovered within the target's space, in numpy."""
    x = pairs.target.values.numpy().astype(np.float64)
    return 1 - np.square(predict(fitted.reconstruct, pairs.z).numpy() - x).sum() / np.square(x).sum()


def run(name: str, data: AttackData) -> Fitted:
    return ATTACKS[name](data, SETTINGS)


@pytest.fixture(scope="module")
def on_curved() -> dict[str, Fitted]:
    return {name: run(name, curved()) for name in ATTACKS}


def test_a_leaky_code_is_broken_by_ridge():
    assert r2(run("ridge", leaky()), leaky().score) > 0.98


@pytest.mark.parametrize("name", ["kernel", "mlp"])
def test_a_leaky_code_does_not_withstand_the_other_attacks_either(name):
    assert r2(run(name, leaky()), leaky().score) > 0.8


@pytest.mark.parametrize("ratio", [1e-2, 1e-3, 1e-4])
def test_a_picture_hidden_in_directions_of_tiny_variance_is_found(ratio):
    """float32 codes have room for it: here Bob reads off the picture by subtracting coordinates."""
    data = hidden(ratio)
    z = data.score.z.double()
    quiet = (z[:, P:] - z[:, :P]) / ratio
    assert (quiet - quiet.mean(0) - data.score.target.values).square().mean() < 0.05, "the picture is there"
    assert r2(run("ridge", data), data.score) > 0.9


# Whitening leaves no direction of a code that is exactly constant, and torch mentions that there are no weights to draw.
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_constant_code_gives_nothing_away(name, value):
    _, x = pictures()
    data = data_of(np.full((len(x), 6), value), x)
    assert abs(r2(run(name, data), data.score)) < 0.02


@pytest.mark.parametrize("name", ATTACKS)
def test_codes_dealt_out_at_random_give_nothing_away(name):
    _, x = pictures()
    data = data_of(np.random.default_rng(3).permutation(x)[:, :4], x)
    assert abs(r2(run(name, data), data.score)) < 0.02


@pytest.mark.parametrize("name", ATTACKS)
def test_coordinates_that_never_vary_do_not_hinder_an_attack(name):
    """Of eight coordinates three are constant; the other five hold the whole picture."""
    latent, x = pictures(factors=5)
    dead = np.tile([0.0, 1.0, -3.0], (len(x), 1))
    data = data_of(np.column_stack([latent, dead]), x)
    assert r2(run(name, data), data.score) > 0.8


def test_a_curved_code_is_broken_better_by_kernel_and_perceptron_than_by_ridge():
    data = curved(rows=2500)
    found = {name: r2(run(name, data), data.score) for name in ATTACKS}
    assert found["kernel"] > found["ridge"] + 0.05
    assert found["mlp"] > found["ridge"] + 0.05


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_reads_the_rows_it_is_scored_on(name, on_curved):
    """Other codes and pictures there: the same reconstructions of given codes, bit for bit, at the same settings."""
    data = curved()
    score = Pairs(torch.randn(50, 6), Target(torch.randn(50, P), torch.ones(50), P + 2))
    again = run(name, dataclasses.replace(data, score=score))
    assert torch.equal(predict(again.reconstruct, data.score.z), predict(on_curved[name].reconstruct, data.score.z))
    assert again.settings == on_curved[name].settings


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_repeatable_from_its_seed_after_other_draws(name, on_curved):
    torch.manual_seed(12345)
    np.random.default_rng(1).random(7)
    again = run(name, curved())
    assert torch.equal(predict(again.reconstruct, curved().score.z), predict(on_curved[name].reconstruct, curved().score.z))


@pytest.mark.parametrize("name", ["kernel", "mlp"])
def test_another_seed_makes_another_attack_of_about_the_same_strength(name, on_curved):
    data = dataclasses.replace(curved(), seed=1)
    other = run(name, data)
    assert not torch.equal(predict(other.reconstruct, data.score.z), predict(on_curved[name].reconstruct, data.score.z))
    assert r2(other, data.score) == pytest.approx(r2(on_curved[name], data.score), abs=0.1)


def test_the_ridge_attack_is_scikit_learns_on_whitened_codes_at_the_penalty_that_is_best_on_the_tuning_rows(on_curved):
    data = curved()
    raw, x = (t.numpy().astype(np.float64) for t in (data.fit.z, data.fit.target.values))
    values, vectors = np.linalg.eigh(np.cov(raw.T))
    z, tune, score = (
        (codes - raw.mean(axis=0)) @ vectors / np.sqrt(values) for codes in (raw, data.tune.z.numpy(), data.score.z.numpy())
    )
    tuned: dict[float, tuple[float, Ridge]] = {}
    for penalty in RIDGE_PENALTIES:
        model = Ridge(alpha=len(z) * penalty).fit(z, x)
        tuned[penalty] = np.square(model.predict(tune) - data.tune.target.values.numpy()).sum(), model
    best = min(tuned, key=lambda penalty: tuned[penalty][0])
    assert on_curved["ridge"].settings == {"penalty": best}
    expected = tuned[best][1].predict(score)
    assert predict(on_curved["ridge"].reconstruct, data.score.z).numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_are_chosen_on_the_tuning_rows(name, on_curved):
    """Tuning pictures that are all the mean picture ask for the least daring settings, and the answer is close to the mean."""
    data = curved()
    flat = Target(torch.zeros_like(data.tune.target.values), data.tune.target.residual, data.tune.target.dimension)
    cautious = run(name, dataclasses.replace(data, tune=dataclasses.replace(data.tune, target=flat)))
    bold = on_curved[name]
    assert predict(cautious.reconstruct, data.score.z).std() < 0.97 * predict(bold.reconstruct, data.score.z).std()


def test_the_error_counts_what_lies_outside_the_components():
    data = curved()
    guess = Fitted(lambda z: torch.ones(len(z), P), {})
    expected = (np.square(1 - data.tune.target.values.numpy()).sum(axis=1) + 0.3).mean() / (P + 2)
    assert error_on(data.tune, guess.reconstruct) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("how", ["standardised", "whitened"])
def test_codes_are_standardised_or_whitened_with_the_statistics_of_the_fitted_ones(how):
    fit, new = leaky().fit.z, leaky().score.z
    prepare = prepared(fit, how)
    inside: Tensor = prepare(fit).double()
    assert inside.mean(0).abs().max() < 1e-3
    if how == "whitened":
        assert torch.allclose(torch.cov(inside.T), torch.eye(P, dtype=torch.float64), atol=1e-3)
    else:
        assert inside.std(0).numpy() == pytest.approx(np.ones(P), abs=1e-3)
        by_hand = (new.numpy() - fit.numpy().mean(axis=0)) / fit.numpy().std(axis=0, ddof=1)
        assert prepare(new).numpy() == pytest.approx(by_hand, abs=1e-3)

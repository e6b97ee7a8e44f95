"""Tests of the kernel attack against scikit-learn, and of its choice of settings."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Copies, Pairs, r2_score
from cpgan_ray.evaluation.attacks.kernel import (
    BANDWIDTHS,
    Settings,
    Stage,
    kernel_attack,
    new_stage,
    search_settings,
)
from cpgan_ray.evaluation.attacks.kernel_system import KERNELS, KernelSystem, kernel_of, merge_rows
from cpgan_ray.training.adversaries.kernel import FourierFeatures

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bent(data_of) -> AttackData:
    """Codes of four numbers; the pictures are smooth functions of them, with noise."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 4))
    x = np.sin(z @ rng.normal(size=(4, 12))) + 0.3 * rng.normal(size=(500, 12))
    return data_of(z, x, components=6)


def gram(kernel: str, a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    distance = cdist(a, b)
    return np.exp(-(distance**2) / (2 * width**2)) if kernel == "rbf" else np.exp(-distance / width)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("penalty", [1e-4, 1e-2])
def test_exact_kernel_ridge_matches_scikit_learn(kernel, penalty, bent):
    prepare = CodeMap(bent.fit.z, how="standardised")
    system = KernelSystem(merge_rows(bent.fit.z, bent.fit.target.values), prepare, kernel, width=1.7)
    fit = system.solve(penalty)
    assert fit is not None
    z, x = prepare(bent.fit.z).numpy().astype(np.float64), bent.fit.target.values.numpy().astype(np.float64)
    model = KernelRidge(alpha=len(z) * penalty, kernel="precomputed").fit(gram(kernel, z, z, 1.7), x - x.mean(axis=0))
    expected = model.predict(gram(kernel, prepare(bent.score.z).numpy().astype(np.float64), z, 1.7)) + x.mean(axis=0)
    assert fit(bent.score.z).numpy() == pytest.approx(expected, abs=2e-4)
    assert torch.equal(pickle.loads(pickle.dumps(fit))(bent.score.z), fit(bent.score.z))


def test_merged_rows_give_the_same_fit_as_all_rows(bent):
    rng = np.random.default_rng(1)
    rows = torch.from_numpy(rng.integers(40, size=150))
    z, x = bent.fit.z[rows], bent.fit.target.values[:150]
    merged = merge_rows(z, x)
    assert len(merged.z) == len(torch.unique(rows))
    assert merged.total == 150
    prepare = CodeMap(bent.fit.z, how="whitened")
    fit = KernelSystem(merged, prepare, "laplace", width=2.0).solve(1e-3)
    assert fit is not None
    codes = prepare(z).numpy().astype(np.float64)
    targets = x.numpy().astype(np.float64)
    model = KernelRidge(alpha=150e-3, kernel="precomputed").fit(gram("laplace", codes, codes, 2.0), targets - targets.mean(axis=0))
    expected = model.predict(gram("laplace", prepare(bent.score.z).numpy(), codes, 2.0)) + targets.mean(axis=0)
    assert fit(bent.score.z).numpy() == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_refit_from_the_factor_is_the_fit_on_all_rows(kernel, bent):
    settings = Settings("standardised", kernel, 3, -2)
    stage = new_stage(bent, bent.fit, slice(None), keep_factor=True)
    other_penalty = dataclasses.replace(settings, log_ridge=8)
    assert stage.r2(settings) > stage.r2(other_penalty), "the factor in the system is that of the worse penalty"
    assert stage.best_factor is not None
    z, x = torch.cat([bent.fit.z, bent.tune.z]), torch.cat([bent.fit.target.values, bent.tune.target.values])
    expected = Stage(bent, stage.maps, z, x).fit(settings)
    refitted = stage.refitted(settings, bent.tune)
    assert expected is not None
    assert refitted is not None
    assert len(refitted.codes) == len(z)
    assert refitted(bent.score.z).numpy() == pytest.approx(expected(bent.score.z).numpy(), abs=1e-5)


def test_refit_with_repeated_codes_merges_them(bent):
    settings = Settings("whitened", "rbf", 3, -2)
    stage = new_stage(bent, bent.fit, slice(None), keep_factor=True)
    stage.r2(settings)
    refitted = stage.refitted(settings, bent.fit)
    assert refitted is not None
    assert len(refitted.codes) == len(bent.fit)


@pytest.mark.parametrize("kernel", KERNELS)
def test_random_features_approximate_the_kernel(kernel):
    rng = np.random.default_rng(2)
    z = rng.normal(size=(60, 5)).astype(np.float32)
    phi = FourierFeatures(5, 40_000, rng=rng, device=torch.device("cpu"), cauchy=kernel == "laplace")
    features = phi(torch.from_numpy(z), width=1.5)
    assert (features @ features.T).numpy() == pytest.approx(gram(kernel, z, z, 1.5), abs=0.03)


def test_kernel_of_is_one_at_distance_zero_and_falls():
    for kernel in KERNELS:
        values = kernel_of(torch.tensor([0.0, 1.0, 4.0]), kernel, width=1.0)
        assert values[0] == 1
        assert values[0] > values[1] > values[2]
    assert float(kernel_of(torch.tensor(4.0), "laplace", width=2.0)) == pytest.approx(np.exp(-1))
    assert float(kernel_of(torch.tensor(4.0), "rbf", width=2.0)) == pytest.approx(np.exp(-0.5))


def test_search_is_about_as_good_as_the_whole_grid(bent):
    settings, stage = search_settings(bent)
    whole = new_stage(bent, bent.fit, slice(None))
    grid = (
        Settings(how, kernel, bandwidth, ridge)
        for how in ("standardised", "whitened")
        for kernel in KERNELS
        for bandwidth in range(0, len(BANDWIDTHS), 2)
        for ridge in range(-6, 7, 2)
    )
    assert stage.r2(settings) == pytest.approx(whole.r2(settings), abs=1e-5), "in another order of the rows"
    assert whole.r2(settings) > max(map(whole.r2, grid)) - 0.005


def test_climb_stays_within_the_grid(bent):
    """The pictures are a linear function of the code without noise: the wider the kernel, the better."""
    tune = dataclasses.replace(bent.tune.target, values=bent.tune.z @ torch.ones(4, 6), residual=torch.zeros(len(bent.tune)))
    data = dataclasses.replace(bent, tune=dataclasses.replace(bent.tune, target=tune))
    stage = Stage(data, new_stage(data, data.fit, slice(0, 9)).maps, data.fit.z, data.fit.z @ torch.ones(4, 6))
    settings = stage.climb(Settings("standardised", "rbf", 3, 0), ["log_ridge", "bandwidth"])
    assert settings.valid
    assert stage.r2(settings) > 0.999


def test_kernel_attack_is_refitted_on_tuning_rows(bent):
    fitted = kernel_attack(bent, AttackConfig())
    assert fitted.before_refit is not None
    assert fitted.tune_r2 == r2_score(bent.tune, fitted.before_refit, space="components")
    assert r2_score(bent.tune, fitted.reconstruct, space="components") > fitted.tune_r2, "it has seen these rows"
    assert fitted.settings["rows"] == len(bent.fit)


@dataclasses.dataclass(frozen=True, eq=False)
class FixedCopies:
    views: Pairs

    def fit_shifted(self) -> Pairs | None:
        return self.views

    def tune_mirrored(self) -> Pairs | None:
        return None

    def tune_shifted(self) -> Pairs | None:
        return None


@pytest.mark.parametrize(("limit", "rows"), [(250, 300), (350, 350), (1000, 400)])
def test_kernel_attack_fills_up_with_views(limit, rows, bent):
    """Up to `kernel_rows` rows; beyond them it uses random features."""
    copies: Copies = FixedCopies(bent.score)
    data = dataclasses.replace(bent, copies=copies)
    fitted = kernel_attack(data, AttackConfig(kernel_rows=limit, kernel_features=256))
    if limit < len(bent.fit):
        assert fitted.settings["features"] in (32, 64, 128, 256)
        assert len(fitted.restarts) == 2
    else:
        assert fitted.settings["rows"] == rows


def test_features_attack_is_close_to_exact_attack(bent):
    exact = kernel_attack(bent, AttackConfig())
    approximate = kernel_attack(bent, AttackConfig(kernel_rows=100, kernel_features=512, restarts=1))
    assert approximate.tune_r2 == pytest.approx(exact.tune_r2, abs=0.03)
    assert [b for b, _ in approximate.budgets] == [64 * 2**i for i in range(len(approximate.budgets))]

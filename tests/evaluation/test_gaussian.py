"""Tests of the attacks on the paper's Gaussian mixture: they reach the best linear reconstruction, not more than the exact one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted
from cpgan_ray.evaluation.scoring import score

torch.set_num_threads(1)

D, ROWS, KERNEL_ROWS = 32, 20_000, 1500
SETTINGS = AttackConfig(mlp_widths=(64,), kernel_features=512, epochs=2, max_budget_doublings=2)


class Mixture:
    """y = +-1 equally likely, x ~ N(2y, C'C), C uniform on [0, 1]."""

    def __init__(self) -> None:
        rng = np.random.default_rng(9)
        c = rng.uniform(size=(D, D))
        self.mean, self.within = 2 * np.ones(D), c.T @ c
        self.covariance = self.within + np.outer(self.mean, self.mean)
        y = rng.choice([-1.0, 1.0], ROWS)
        self.x = y[:, None] * self.mean + rng.normal(size=(ROWS, D)) @ c

    def linear_mse(self, a: np.ndarray) -> float:
        """Of the best affine reconstruction from z = A x, per value. A: (k, D)."""
        cross = self.covariance @ a.T
        return np.trace(self.covariance - cross @ np.linalg.solve(a @ cross, cross.T)) / D

    def exact_mse(self, a: np.ndarray) -> float:
        """MSE of the conditional mean E[x|z] for one direction a (D,), per value."""
        v, m = a @ self.within @ a, a @ self.mean
        offset = self.mean - self.within @ a * m / v
        z = m + np.sqrt(v) * np.random.default_rng(0).normal(size=1_000_000)
        doubt = (1 - np.tanh(m * z / v) ** 2).mean()
        return (np.trace(self.within) - a @ self.within @ self.within @ a / v + offset @ offset * doubt) / D


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture()


def directions(mixture: Mixture) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "fisher": np.linalg.solve(mixture.within, mixture.mean)[None],
        "mean": mixture.mean[None],
        "random": rng.normal(size=(1, D)),
        "eight": rng.normal(size=(8, D)),
    }


def fit(attack: str, data: AttackData) -> Fitted:
    """An attack on all rows; the kernel attack on the first KERNEL_ROWS, because it solves exact systems of them."""
    if attack == "kernel":
        rows = slice(0, KERNEL_ROWS)
        some = replace(data.fit, z=data.fit.z[rows], target=data.fit.target[rows], pixels=data.fit.pixels[rows])
        data = replace(data, fit=replace(some, identity=data.fit.identity[rows]))
    return ATTACKS[attack](data, SETTINGS)


@pytest.mark.parametrize(
    "name", ["fisher", "eight", pytest.param("mean", marks=pytest.mark.slow), pytest.param("random", marks=pytest.mark.slow)]
)
def test_strongest_attack_is_between_best_linear_and_exact(name, mixture, data_of):
    a = directions(mixture)[name]
    data: AttackData = data_of(mixture.x @ a.T, mixture.x)
    scores = {attack: score(data, fit(attack, data)) for attack in ("ridge", "kernel", "mlp")}
    strongest, rows = max(scores.values(), key=lambda f: f[0].r2)
    assert strongest.mse == pytest.approx(mixture.linear_mse(a), rel=0.03), "of these 4,000 pictures"
    # On the same score rows, most of the sampling error cancels.
    cross = mixture.covariance @ a.T
    x, z = (part.numpy().astype(np.float64) for part in (data.score.pixels[slice(None)], data.score.z))
    linear = np.square(x - (z - z.mean(axis=0)) @ np.linalg.solve(a @ cross, cross.T)).mean(axis=1)
    assert rows.errors.mean() == pytest.approx(linear.mean(), rel=0.01)
    if len(a) == 1:
        scale = rows.mean_errors.mean()
        assert 1 - strongest.high <= mixture.exact_mse(a[0]) / scale * 1.001
        assert mixture.exact_mse(a[0]) <= mixture.linear_mse(a) * 1.001


def test_attacks_do_not_exceed_exact_conditional_mean(mixture, data_of):
    a = directions(mixture)["fisher"]
    data = data_of(mixture.x @ a.T, mixture.x)
    for attack in ("ridge", "kernel", "mlp", "nearest"):
        attack_score, rows = score(data, fit(attack, data))
        assert attack_score.low <= 1 - mixture.exact_mse(a[0]) / rows.mean_errors.mean()

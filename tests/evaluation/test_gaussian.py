"""On the paper's Gaussian mixture the attacks meet theory: they reach the best linear reconstruction and never beat the
exact conditional mean."""

import numpy as np
import pytest
import torch

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import AttackData
from cpgan_ray.evaluation.scoring import score

torch.set_num_threads(1)

D, ROWS = 32, 20_000
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
        """Of the conditional mean E[x|z], for one direction a (D,), per value."""
        v, m = a @ self.within @ a, a @ self.mean
        beside = self.mean - self.within @ a * m / v
        z = m + np.sqrt(v) * np.random.default_rng(0).normal(size=1_000_000)
        doubt = (1 - np.tanh(m * z / v) ** 2).mean()
        return (np.trace(self.within) - a @ self.within @ self.within @ a / v + beside @ beside * doubt) / D


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


@pytest.mark.parametrize("name", ["fisher", "mean", "random", "eight"])
def test_the_strongest_attack_reaches_the_best_linear_reconstruction_and_never_beats_the_exact_one(name, mixture, data_of):
    a = directions(mixture)[name]
    data: AttackData = data_of(mixture.x @ a.T, mixture.x)
    found = {attack: score(data, ATTACKS[attack](data, SETTINGS)) for attack in ("ridge", "kernel", "mlp")}
    strongest, rows = max(found.values(), key=lambda f: f[0].r2)
    assert strongest.mse == pytest.approx(mixture.linear_mse(a), rel=0.03), "of these 4,000 pictures"
    # Held against the same score rows, most of the chance in them cancels.
    cross = mixture.covariance @ a.T
    x, z = (part.numpy().astype(np.float64) for part in (data.score.pixels[slice(None)], data.score.z))
    linear = np.square(x - (z - z.mean(axis=0)) @ np.linalg.solve(a @ cross, cross.T)).mean(axis=1)
    assert rows.errors.mean() == pytest.approx(linear.mean(), rel=0.01)
    if len(a) == 1:
        scale = rows.mean_errors.mean()
        assert 1 - strongest.high <= mixture.exact_mse(a[0]) / scale * 1.001
        assert mixture.exact_mse(a[0]) <= mixture.linear_mse(a) * 1.001


def test_no_attack_is_scored_above_the_exact_conditional_mean_beyond_its_interval(mixture, data_of):
    a = directions(mixture)["fisher"]
    data = data_of(mixture.x @ a.T, mixture.x)
    for attack in ("ridge", "kernel", "mlp", "nearest"):
        found, rows = score(data, ATTACKS[attack](data, SETTINGS))
        assert found.low <= 1 - mixture.exact_mse(a[0]) / rows.mean_errors.mean()

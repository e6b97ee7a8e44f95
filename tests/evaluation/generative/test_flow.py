"""Tests of the flow against the conditional distribution of a Gaussian, which is known."""

import numpy as np
import pytest
import torch

from cpgan_ray.evaluation.generative.flow import NOISE, Flow, FlowRows, FlowSettings, fit_flow, independent_velocity, spread

torch.set_num_threads(1)

K, P, ROWS = 2, 4, 5000
SMALL = FlowSettings(width=64, dropout=0.0, epochs=40)


class Gaussian:
    """x ~ N(0, C), z = A x + noise: given z, x ~ N(G z, V) with G = C A' (A C A' + I s^2)^-1 and V = C - G A C."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        root = rng.normal(size=(P, P))
        covariance, a = root @ root.T, rng.normal(size=(K, P))
        self.gain = covariance @ a.T @ np.linalg.inv(a @ covariance @ a.T + np.eye(K))
        self.within, self.total = covariance - self.gain @ a @ covariance, np.trace(covariance)
        x = rng.normal(size=(2 * ROWS, P)) @ root.T
        z = x @ a.T + rng.normal(size=(2 * ROWS, K))
        self.x, self.z = (torch.from_numpy(v).float() for v in (x, z))

    def mean(self, z: torch.Tensor) -> torch.Tensor:
        return z @ torch.from_numpy(self.gain.T).float()

    @property
    def r2(self) -> float:
        """Of the conditional mean."""
        return 1 - np.trace(self.within) / self.total


@pytest.fixture(scope="module")
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture(scope="module")
def flow(gaussian: Gaussian) -> Flow:
    """Fitted from predictions that are too small by a tenth, which it has to correct."""
    start = 0.9 * gaussian.mean(gaussian.z)
    rows = [FlowRows(gaussian.z[of], start[of], gaussian.x[of]) for of in (slice(0, 4000), slice(4000, ROWS))]
    return fit_flow(rows[0], rows[1], SMALL, path=("test",), seed=0)


def draws(flow: Flow, gaussian: Gaussian, *, number: int) -> torch.Tensor:
    z = gaussian.z[ROWS:]
    return torch.stack([flow.draw(z, 0.9 * gaussian.mean(z), path=(i,), seed=0) for i in range(number)])


def test_draws_have_the_conditional_mean_and_covariance(flow, gaussian):
    z = gaussian.z[ROWS:]
    errors = (draws(flow, gaussian, number=4) - gaussian.mean(z)).flatten(0, 1).double().numpy()
    scale = np.sqrt(np.diag(gaussian.within))
    np.testing.assert_allclose(errors.mean(axis=0) / scale, 0, atol=0.06)
    np.testing.assert_allclose(np.cov(errors.T) / np.outer(scale, scale), gaussian.within / np.outer(scale, scale), atol=0.08)
    slope = np.linalg.lstsq(np.tile(z.double().numpy(), (4, 1)), errors, rcond=None)[0]
    spread_of_mean = np.sqrt(np.diag(gaussian.gain @ np.cov(z.T.numpy()) @ gaussian.gain.T))
    np.testing.assert_allclose(slope * z.std(0)[:, None].double().numpy() / spread_of_mean, 0, atol=0.08)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_r2_of_mean_draws_follows_theory(number, flow, gaussian):
    x = gaussian.x[ROWS:]
    mean = draws(flow, gaussian, number=number).mean(0)
    r2 = 1 - float((mean - x).square().sum() / x.square().sum())
    expected = 1 - (1 - gaussian.r2) * (1 + 1 / number)
    assert r2 == pytest.approx(expected, abs=0.03)
    if number == 1:
        assert expected == pytest.approx(2 * gaussian.r2 - 1)


def test_independent_velocity_moves_noise_to_unit_variance():
    u, steps = torch.full((1, 1), NOISE), 4000
    for step in range(steps):
        t = torch.full((1, 1), step / steps)
        assert float(u) == pytest.approx(float(spread(t)), rel=2e-3)
        u = u + independent_velocity(u, t) / steps
    assert float(u) == pytest.approx(1, rel=2e-3)


def test_draws_repeat_with_their_stream_and_differ_between_streams(flow, gaussian):
    z = gaussian.z[ROWS : ROWS + 8]
    start = gaussian.mean(z)
    one, same, other = (flow.draw(z, start, path=(i,), seed=0) for i in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)

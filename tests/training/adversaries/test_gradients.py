"""Tests that each adversary returns the gradient of its privacy term, against finite differences in float64.

For closed forms the differences are computed with a reference in numpy. Its kernel width is fixed at the base point, because the
median distance is a constant in the gradient by design. Standardised and whitened codes are left out for the same reason
(test_closed_form.py tests them).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cpgan_ray.config import AdversaryConfig, KernelConfig, NeuralConfig, RidgeConfig
from cpgan_ray.training.adversaries import Target, build_adversary
from cpgan_ray.training.losses import privacy_term

torch.set_num_threads(1)

ROWS, FITTED, K, IMAGE = 40, 30, 5, (6, 5, 3)
P = math.prod(IMAGE)
PENALTY, BANDWIDTH, STEP = 1e-2, 1.5, 1e-6

CLOSED_FORM: dict[str, AdversaryConfig] = {
    "ridge": RidgeConfig(penalties=(PENALTY,), memory_batches=2),
    "kernel": KernelConfig(penalties=(PENALTY,), bandwidths=(BANDWIDTH,), memory_batches=2),
    "features": KernelConfig(penalties=(PENALTY,), bandwidths=(BANDWIDTH,), memory_batches=2, features=24),
    "streamed ridge": RidgeConfig(fit="epoch", penalties=(PENALTY,)),
    "streamed features": KernelConfig(fit="epoch", features=24, penalties=(PENALTY,), bandwidths=(BANDWIDTH,)),
}
NEURAL: dict[str, AdversaryConfig] = {
    name: NeuralConfig(architecture=name, width=8, depth=1, learning_rate=1e-2, memory_batches=1)
    for name in ("mlp", "conv", "upsample", "resnet")
}


def batch(seed: int) -> tuple[Tensor, Target]:
    """Codes and pictures: a smooth function of the codes plus noise. The function is the same for all seeds."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    z = rng.normal(size=(ROWS, K))
    x = np.tanh(z @ fixed.normal(size=(K, P)) / 2) + 0.3 * rng.normal(size=(ROWS, P))
    return torch.from_numpy(z), Target(torch.from_numpy(x), torch.from_numpy(rng.uniform(0, 2, ROWS)), P + 10)


def build(config: AdversaryConfig, *, learned: int) -> Any:
    """An adversary in float64 that has learned from `learned` batches."""
    torch.manual_seed(0)
    adversary: Any = build_adversary(
        config, k=K, target=P, image_shape=IMAGE, holdout_fraction=0.25, rng=np.random.default_rng(3), device=torch.device("cpu")
    )
    if isinstance(config, NeuralConfig):
        adversary.network.double()
    for seed in range(learned):
        adversary.improve(*batch(100 + seed))
    if not isinstance(config, NeuralConfig) and config.fit == "epoch":
        adversary.accumulate(*batch(100))
        adversary.solve()
    return adversary


def term_and_gradient(adversary: Any, z: Tensor, target: Target, kind: Any) -> tuple[float, np.ndarray]:
    """The privacy term and its gradient, computed as in AdversaryWorker."""
    z = z.clone().requires_grad_()
    errors, rows = adversary.recover(z, target)
    term = privacy_term(errors, target[rows].mean_errors(), kind=kind)
    term.backward()
    assert z.grad is not None
    return float(term.detach()), z.grad.numpy()


def slope(term: Callable[[np.ndarray], float], z: np.ndarray, direction: np.ndarray) -> float:
    return (term(z + STEP * direction) - term(z - STEP * direction)) / (2 * STEP)


def directions() -> list[tuple[str, np.ndarray]]:
    """Random directions in all rows, only the fitted or only the scored rows: the gradient flows through both sides of the
    solve."""
    rng = np.random.default_rng(7)
    fitted = np.arange(ROWS)[:, None] < FITTED
    masks = [("all", np.ones((ROWS, 1))), ("all", np.ones((ROWS, 1))), ("fitted", fitted), ("scored", ~fitted)]
    return [(name, rng.normal(size=(ROWS, K)) * mask) for name, mask in masks]


def median_distance(z: np.ndarray) -> float:
    pairs = np.linalg.norm(z[:, None] - z[None], axis=2)[np.triu_indices(len(z), 1)]
    return float(np.sort(pairs)[(len(pairs) - 1) // 2])


def fourier_features(adversary: Any, z: np.ndarray, width: float) -> np.ndarray:
    omega, phase = (t.numpy().astype(np.float64) for t in (adversary.features.omega, adversary.features.phase))
    return math.sqrt(2 / len(phase)) * np.cos(z @ (omega / width) + phase)


def ridge_prediction(z: np.ndarray, x: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Ridge regression as least squares, with the penalty as additional rows."""
    mean = z.mean(axis=0)
    rows = np.concatenate([z - mean, math.sqrt(len(z) * PENALTY) * np.eye(z.shape[1])])
    weight = np.linalg.lstsq(rows, np.concatenate([x - x.mean(axis=0), np.zeros((z.shape[1], x.shape[1]))]), rcond=None)[0]
    return (new - mean) @ weight + x.mean(axis=0)


def kernel_prediction(z: np.ndarray, x: np.ndarray, new: np.ndarray, width: float) -> np.ndarray:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(a[:, None] - b[None]).sum(axis=2) / (2 * width**2))

    return kernel(new, z) @ np.linalg.solve(kernel(z, z) + len(z) * PENALTY * np.eye(len(z)), x - x.mean(axis=0)) + x.mean(axis=0)


def reference(
    kind: str, adversary: Any, base: Tensor, target: Target, *, learned: int, privacy: str
) -> Callable[[np.ndarray], float]:
    """The privacy term as a function of only the batch's codes, in numpy."""
    streamed = kind.startswith("streamed")
    past = [batch(100 + seed) for seed in range(1 if streamed else learned)]
    past_z, past_x = [z.numpy() for z, _ in past], [t.values.numpy() for _, t in past]
    cut = 0 if streamed else FITTED
    unit = median_distance(np.concatenate(past_z if streamed else [*past_z, base.numpy()[:FITTED]]))
    x, outside = target.values.numpy(), target.residual.numpy()

    def term(z: np.ndarray) -> float:
        codes, values = (past_z, past_x) if streamed else ([*past_z, z[:cut]], [*past_x, x[:cut]])
        fit_z, fit_x, new = np.concatenate(codes), np.concatenate(values), z[cut:]
        if kind == "kernel":
            guess = kernel_prediction(fit_z, fit_x, new, BANDWIDTH * unit)
        elif kind.endswith("features"):
            guess = ridge_prediction(
                fourier_features(adversary, fit_z, BANDWIDTH * unit), fit_x, fourier_features(adversary, new, BANDWIDTH * unit)
            )
        else:
            guess = ridge_prediction(fit_z, fit_x, new)
        error = (np.square(guess - x[cut:]).sum(axis=1) + outside[cut:]).mean() / target.dimension
        mean_error = (np.square(x[cut:]).sum(axis=1) + outside[cut:]).mean() / target.dimension
        return -error if privacy == "negated_mse" else 1 - error / mean_error

    return term


@pytest.mark.parametrize("privacy", ["recovered", "negated_mse"])
@pytest.mark.parametrize("learned", [0, 1, 2])
@pytest.mark.parametrize("kind", CLOSED_FORM)
def test_closed_form_gradient_equals_finite_differences(kind, learned, privacy):
    adversary = build(CLOSED_FORM[kind], learned=learned)
    z, target = batch(0)
    value, gradient = term_and_gradient(adversary, z, target, privacy)
    term = reference(kind, adversary, z, target, learned=learned, privacy=privacy)
    assert value == pytest.approx(term(z.numpy()), rel=1e-7)
    assert privacy == "negated_mse" or value > 0.1, "the term should not be clipped here"
    for name, direction in directions():
        expected = slope(term, z.numpy(), direction)
        assert abs(expected) > 2e-5, "the term must change along this direction"
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("privacy", ["recovered", "negated_mse"])
@pytest.mark.parametrize("kind", NEURAL)
def test_neural_gradient_equals_finite_differences(kind, privacy):
    adversary = build(NEURAL[kind], learned=40)
    z, target = batch(0)
    value, gradient = term_and_gradient(adversary, z, target, privacy)
    assert privacy == "negated_mse" or value > 0.01, "the term should not be clipped here"

    def term(codes: np.ndarray) -> float:
        with torch.no_grad():
            guess = adversary.network(torch.from_numpy(codes)).numpy()
        errors = np.square(guess - target.values.numpy()).sum(axis=1) + target.residual.numpy()
        if privacy == "negated_mse":
            return -errors.mean() / target.dimension
        return 1 - errors.sum() / (np.square(target.values.numpy()).sum() + target.residual.numpy().sum())

    assert value == pytest.approx(term(z.numpy()), rel=1e-9)
    for name, direction in directions():
        assert (gradient * direction).sum() == pytest.approx(slope(term, z.numpy(), direction), rel=1e-4), name


@pytest.mark.parametrize("kind", [*CLOSED_FORM, *NEURAL])
def test_gradient_of_an_adversary_that_recovers_nothing_is_0(kind):
    """R2 is clipped at 0: if the pictures do not depend on the codes, every gradient is 0."""
    adversary = build({**CLOSED_FORM, **NEURAL}[kind], learned=2)
    z, target = batch(0)
    unrelated = Target(-target.values, target.residual, target.dimension)
    if kind in ("ridge", "kernel", "features"):
        unrelated = Target(torch.cat([target.values[:FITTED], -target.values[FITTED:]]), target.residual, target.dimension)
    value, gradient = term_and_gradient(adversary, z, unrelated, "recovered")
    assert value == 0
    assert not gradient.any()

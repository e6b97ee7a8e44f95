"""The RBF kernel adversary (kernel ridge regression, KRR): exact on batch and memory, or with random Fourier features.

k(z, z') = exp(-|z - z'|^2 / (2 width^2)); scikit-learn's gamma is 1 / (2 width^2). Source of the features: Rahimi and Recht, Random
features for large-scale kernel machines, NIPS 2007.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.common.products import product
from cpgan_ray.config import KernelConfig
from cpgan_ray.training.adversaries.base import BatchMemory, HoldOut, Target, hold_out
from cpgan_ray.training.adversaries.linear import ridge


def median_distance(z: Tensor, *, max_codes: int = 512) -> float:
    """Median distance between the last `max_codes` codes: the usual unit of a kernel's width."""
    with torch.no_grad():
        return float(torch.pdist(z[-max_codes:]).median().clamp(min=1e-6))


def rbf(a: Tensor, b: Tensor, *, width: float) -> Tensor:
    """Kernel matrix (n, m) of codes a (n, k) and b (m, k)."""
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T
    return torch.exp(squared.clamp(min=0) / (-2 * width**2))


class SolveKernelSystem(torch.autograd.Function):
    """X = (K + ridge I)^-1 B, K = rbf(z, z), with one Cholesky factor for the forward and the backward pass.

    The first `constant` rows of z have no gradient (they are of past batches), which saves most of the backward pass. With
    dB = (K + ridge I)^-1 dX the gradient for K is G = -dB X'. With S = (G + G') * K, elementwise, row i of the gradient for z is

        -1 / width^2 (sum_j S_ij z_i - sum_j S_ij z_j).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, b: Tensor, width: float, ridge: float, constant: int) -> Tensor:
        gram = rbf(z, z, width=width)
        ctx.width, ctx.constant, differentiated = width, constant, gram[constant:].clone()
        gram.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(gram)
        x = torch.cholesky_solve(b, factor)
        ctx.save_for_backward(z, differentiated, factor, x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        z, kernel, factor, x = ctx.saved_tensors
        db = torch.cholesky_solve(grads[0], factor)
        rows = slice(ctx.constant, len(z))
        s = (product(db[rows], x) + product(x[rows], db)).neg_().mul_(kernel)
        dz = torch.zeros_like(z)
        dz[rows] = (s @ z - s.sum(1, keepdim=True) * z[rows]) / ctx.width**2
        return dz, db, None, None, None


def kernel_ridge(z: Tensor, x: Tensor, scored: Tensor, *, width: float, penalty: float, constant: int = 0) -> Tensor:
    """Predictions (s, p) for the codes `scored` by kernel ridge regression fitted on z (n, k), x (n, p), with x centred.

    alpha = (K + n penalty I)^-1 (x - mean(x)); differentiable in `scored` and in z but its first `constant` rows. With s < p the
    system is solved for the kernel values of the scored codes instead of the targets, which are more right-hand sides.
    """

    def solve(b: Tensor) -> Tensor:
        return SolveKernelSystem.apply(z, b, width, len(z) * penalty, constant)  # pyright: ignore[reportReturnType]

    x_mean, values = x.mean(0), rbf(scored, z, width=width)
    if len(scored) < x.shape[1]:
        return x_mean + solve(values.T).T @ (x - x_mean)
    return x_mean + values @ solve(x - x_mean)


class FourierFeatures:
    """phi(z) = sqrt(2 / D) cos(z Omega / width + b), b ~ U[0, 2 pi): phi(z) . phi(z') ~ k(z, z').

    Columns of Omega ~ N(0, I) for the RBF kernel; `cauchy`: multivariate Cauchy (a normal vector divided by an independent normal
    number) for the isotropic Laplace kernel exp(-|z - z'| / width), which is that distribution's characteristic function.
    """

    def __init__(self, k: int, features: int, *, rng: np.random.Generator, device: torch.device, cauchy: bool = False) -> None:
        omega = rng.standard_normal((k, features))
        phase = rng.uniform(0, 2 * math.pi, features)
        if cauchy:
            omega /= np.abs(rng.standard_normal(features))
        self.omega = torch.from_numpy(omega.astype(np.float32)).to(device)
        self.phase = torch.from_numpy(phase.astype(np.float32)).to(device)

    def __call__(self, z: Tensor, *, width: float) -> Tensor:
        return math.sqrt(2 / len(self.phase)) * torch.cos(
            z @ (self.omega[: z.shape[1]] / width).to(z.dtype) + self.phase.to(z.dtype)
        )


class KernelAdversary:
    """Fitted in every round on the memory and a part of the batch, scored on the rest; the gradient flows through the solve.

    Bandwidth and penalty are selected on the held-out rows every `tune_every` rounds.
    """

    def __init__(
        self, config: KernelConfig, *, holdout_fraction: float, k: int, rng: np.random.Generator, device: torch.device
    ) -> None:
        self.config, self.holdout_fraction = config, holdout_fraction
        self.memory = BatchMemory(config.memory_batches)
        self.features = FourierFeatures(k, config.features, rng=rng, device=device) if config.features else None
        self.chosen: tuple[float, float] | None = None
        self.rounds = 0

    def predict(self, batch: HoldOut, *, width: float, penalty: float) -> Tensor:
        z, x, scored = batch.z_fit, batch.x_fit, batch.z_scored
        if self.features is None:
            return kernel_ridge(z, x, scored, width=width, penalty=penalty, constant=len(z) - batch.rows.start)
        return ridge(self.features(z, width=width), x, penalty=penalty)(self.features(scored, width=width))

    def recover(self, z: Tensor, target: Target) -> tuple[Tensor, slice]:
        how = self.config.code_normalization
        batch = hold_out(z, target, self.memory, holdout_fraction=self.holdout_fraction, how=how)
        unit = median_distance(batch.z_fit.detach())

        def errors(bandwidth: float, penalty: float) -> Tensor:
            return batch.target.errors(self.predict(batch, width=bandwidth * unit, penalty=penalty))

        if self.chosen is None or self.rounds % self.config.tune_every == 0:
            grid = [(bandwidth, penalty) for bandwidth in self.config.bandwidths for penalty in self.config.penalties]
            with torch.no_grad():
                self.chosen = grid[0] if len(grid) == 1 else min(grid, key=lambda setting: float(errors(*setting).sum()))
        return errors(*self.chosen), batch.rows

    def improve(self, z: Tensor, target: Target) -> None:
        self.memory.push(z, target)
        self.rounds += 1

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict(), "chosen": self.chosen, "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.chosen, self.rounds = state["chosen"] and tuple(state["chosen"]), state["rounds"]

"""Fixture with pairs of codes and small pictures for attacks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cpgan_ray.evaluation.attacks.base import AttackData, Pairs
from cpgan_ray.training.adversaries.base import Target


@pytest.fixture(scope="session")
def data_of() -> Callable[..., AttackData]:
    """Function from codes (N, k) and pictures (N, D) to attack data: three fifths to fit, a fifth each to tune and to score.

    The components are the leading `components` principal components of the pictures to fit on, or all coordinates if 0.
    """

    def make(
        z: np.ndarray, x: np.ndarray, *, seed: int = 0, components: int = 0, image_shape: tuple[int, int, int] | None = None
    ) -> AttackData:
        fit, rest = len(x) * 3 // 5, len(x) // 5
        x = x - x[:fit].mean(axis=0)
        principal = torch.linalg.eigh(torch.from_numpy(x[:fit].T @ x[:fit])).eigenvectors.flip(1).T.numpy()
        basis = principal[:components] if components else np.eye(x.shape[1])
        values = x @ basis.T
        residual = np.maximum(np.square(x).sum(axis=1) - np.square(values).sum(axis=1), 0)
        arrays = (z, values, residual, x)
        tensors = [torch.from_numpy(np.require(a, np.float32, ["C", "W"])) for a in arrays]
        parts = zip(*(t[: fit + 2 * rest].split([fit, rest, rest]) for t in tensors), strict=True)
        people = iter(np.split(np.arange(fit + 2 * rest), [fit, fit + rest]))
        sets = [Pairs(codes, Target(v, r, x.shape[1]), pixels, next(people)) for codes, v, r, pixels in parts]
        components_ = torch.from_numpy(np.require(basis, np.float32, ["C", "W"]))
        return AttackData(*sets, components=components_, bounds=None, image_shape=image_shape, seed=seed, pictures=False)

    return make

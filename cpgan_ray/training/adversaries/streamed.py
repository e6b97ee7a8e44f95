"""Adversaries with `fit="epoch"`: ridge regression on z or on its Fourier features, fitted once per epoch on all training codes.

The codes are streamed. Only normal equations are stored, never a matrix with one row per training picture.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.config import KernelConfig, RidgeConfig
from cpgan_ray.training.adversaries.base import Target
from cpgan_ray.training.adversaries.kernel import FourierFeatures, median_distance
from cpgan_ray.training.adversaries.linear import LinearMap, NormalEquations

HELD_OUT_EVERY = 5


class StreamedAdversary:
    """Between two fits its weights are constant. Before the first fit it predicts the mean picture.

    Every fifth block of rows is held out to select bandwidth and penalty; the final fit is on all blocks.
    """

    def __init__(self, config: RidgeConfig | KernelConfig, *, k: int, rng: np.random.Generator, device: torch.device) -> None:
        self.config = config
        kernel = config if isinstance(config, KernelConfig) else None
        self.features = FourierFeatures(k, kernel.features, rng=rng, device=device) if kernel else None
        self.bandwidths = kernel.bandwidths if kernel else (1.0,)
        self.width = 1.0
        self.fit: LinearMap | None = None
        self.restart()

    def restart(self) -> None:
        self.blocks = 0
        self.unit: float | None = None
        self.sums: list[tuple[NormalEquations, NormalEquations]] = []

    def map(self, z: Tensor, *, width: float) -> Tensor:
        return z if self.features is None else self.features(z, width=width)

    def accumulate(self, z: Tensor, target: Target) -> None:
        z, x = z.detach(), target.values
        if self.unit is None:
            self.unit = median_distance(z) if self.features else 1.0
            inputs = self.map(z[:1], width=1.0).shape[1]
            new_sums = lambda: NormalEquations(inputs, x.shape[1], device=z.device)  # noqa: E731
            self.sums = [(new_sums(), new_sums()) for _ in self.bandwidths]
        held_out = self.blocks % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        for bandwidth, pair in zip(self.bandwidths, self.sums, strict=True):
            pair[held_out].add(self.map(z, width=bandwidth * self.unit), x)
        self.blocks += 1

    def solve(self) -> None:
        assert self.unit is not None
        candidates = []
        for bandwidth, (fitted, held_out) in zip(self.bandwidths, self.sums, strict=True):
            validation = held_out if held_out.rows else fitted
            for penalty in self.config.penalties:
                candidates.append(
                    (validation.squared_error(fitted.solve(penalty=penalty)), bandwidth, penalty, fitted.merge(held_out))
                )
        _, bandwidth, penalty, all_rows = min(candidates, key=lambda c: c[0])
        self.width, self.fit = bandwidth * self.unit, all_rows.solve(penalty=penalty)
        self.restart()

    def recover(self, z: Tensor, target: Target) -> tuple[Tensor, slice]:
        rows = slice(0, len(z))
        if self.fit is None:
            return target.mean_errors() + 0 * z.sum(), rows
        return target.errors(self.fit(self.map(z, width=self.width))), rows

    def improve(self, z: Tensor, target: Target) -> None:
        """Does nothing: this adversary learns once per epoch, by `accumulate` and `solve`."""

    def state_dict(self) -> dict[str, Any]:
        return {"width": self.width, "fit": self.fit and (self.fit.weight, self.fit.bias)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.width, self.fit = state["width"], state["fit"] and LinearMap(*state["fit"])
        self.restart()

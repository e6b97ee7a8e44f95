"""The linear adversary (linear ridge regression, LRR): the best affine reconstruction of the picture from z."""

from typing import Any

import torch
from torch import Tensor

from cpgan_ray.config import RidgeConfig
from cpgan_ray.training.adversaries.base import BatchMemory, Target, num_fitted_rows, prepare_codes
from cpgan_ray.training.adversaries.linear import ridge


class RidgeAdversary:
    """Fitted in every round on the memory and a part of the batch, scored on the rest; the gradient flows through the solve.

    It is at its optimum in every round: the privatizer cannot exploit a lag.
    """

    def __init__(self, config: RidgeConfig, *, holdout_fraction: float) -> None:
        self.config, self.holdout_fraction = config, holdout_fraction
        self.memory = BatchMemory(config.memory_batches)

    def recover(self, z: Tensor, target: Target) -> tuple[Tensor, slice]:
        cut = num_fitted_rows(len(z), holdout_fraction=self.holdout_fraction)
        scored = slice(cut, len(z))
        z_fit, x_fit = self.memory.with_current(z[:cut], target.values[:cut])
        z_fit, z_scored = prepare_codes(z_fit, z[scored], how=self.config.code_normalization)
        held_out = target[scored]
        with torch.no_grad():
            totals = [float(held_out.errors(ridge(z_fit, x_fit, penalty=p)(z_scored)).sum()) for p in self.config.penalties]
        best = self.config.penalties[min(range(len(totals)), key=totals.__getitem__)]
        return held_out.errors(ridge(z_fit, x_fit, penalty=best)(z_scored)), scored

    def improve(self, z: Tensor, target: Target) -> None:
        self.memory.push(z, target)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])

"""The linear adversary (linear ridge regression, LRR): the best affine reconstruction of the picture from z."""

from typing import Any

import torch
from torch import Tensor

from cpgan_ray.config import RidgeConfig
from cpgan_ray.training.adversaries.base import BatchMemory, Target, hold_out
from cpgan_ray.training.adversaries.linear import ridge


class RidgeAdversary:
    """Fitted in every round on the memory and a part of the batch, scored on the rest; the gradient flows through the solve.

    It is at its optimum in every round: the privatizer cannot exploit a lag.
    """

    def __init__(self, config: RidgeConfig, *, holdout_fraction: float) -> None:
        self.config, self.holdout_fraction = config, holdout_fraction
        self.memory = BatchMemory(config.memory_batches)

    def recover(self, z: Tensor, target: Target) -> tuple[Tensor, slice]:
        how = self.config.code_normalization
        batch = hold_out(z, target, self.memory, holdout_fraction=self.holdout_fraction, how=how)

        def errors(penalty: float) -> Tensor:
            return batch.target.errors(ridge(batch.z_fit, batch.x_fit, penalty=penalty)(batch.z_scored))

        with torch.no_grad():
            best = min(self.config.penalties, key=lambda penalty: float(errors(penalty).sum()))
        return errors(best), batch.rows

    def improve(self, z: Tensor, target: Target) -> None:
        self.memory.push(z, target)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])

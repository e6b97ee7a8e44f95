"""An adversary of your own: it reconstructs a picture as the average of the pictures with the nearest codes.

    python jobs/train_celeba.py --adversaries.near.kind examples/own_adversary.py:SoftNeighbours \
        --adversaries.near.options '{"sharpness": 4.0}' --adversaries.near.components 128
    python -m cpgan_ray.check examples/own_adversary.py:SoftNeighbours

The class gets its configuration, what it is built for, and its options. In each round it first answers (`recover`), then learns
(`improve`). What it learned is in `state_dict`, so that it continues exactly after a loss.
"""

from typing import Any

import torch
from torch import Tensor

from cpgan_ray.config import OwnConfig
from cpgan_ray.training.adversaries import AdversaryContext, Target


class SoftNeighbours:
    """Keeps the codes and targets of past rounds; predicts their average, weighted by softmax(-sharpness * distance)."""

    def __init__(self, config: OwnConfig, context: AdversaryContext, *, sharpness: float = 2.0, rows: int = 1024) -> None:
        self.sharpness, self.rows = sharpness, rows
        self.z = torch.zeros(0, context.k, device=context.device)
        self.x = torch.zeros(0, context.target, device=context.device)

    def recover(self, z: Tensor, target: Target) -> tuple[Tensor, slice]:
        """Squared errors on all rows of the release: it was fitted on earlier rounds only."""
        rows = slice(0, len(z))
        if not len(self.z):
            return target.mean_errors() + 0 * z.sum(), rows
        distances = (z.square().sum(1)[:, None] + self.z.square().sum(1) - 2 * z @ self.z.T).clamp(min=1e-12).sqrt()
        weights = torch.softmax(-self.sharpness * distances, dim=1)
        return target.errors(weights @ self.x), rows

    def improve(self, z: Tensor, target: Target) -> None:
        """Remember the release; forget the oldest rows."""
        self.z = torch.cat([self.z, z.detach()])[-self.rows :]
        self.x = torch.cat([self.x, target.values])[-self.rows :]

    def state_dict(self) -> dict[str, Any]:
        return {"z": self.z, "x": self.x}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.z, self.x = state["z"], state["x"]

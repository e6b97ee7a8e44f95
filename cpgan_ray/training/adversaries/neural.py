"""Neural adversaries: trained by a few gradient steps per round on the release and, with `memory_batches`, on past releases."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpgan_ray.common.optimisers import Adam
from cpgan_ray.common.process import Precision, autocast
from cpgan_ray.config import NeuralConfig
from cpgan_ray.training.adversaries.base import BatchMemory, Target
from cpgan_ray.training.classes import Classes

BLOCK_VALUES = 1 << 23
"""A step on more values (682 pictures of 64 x 64, 222 of 112 x 112) is computed in parts, to limit its memory."""


def rows_per_part(values: Tensor) -> int:
    return max(1, BLOCK_VALUES // values.shape[1])


class NeuralAdversary:
    """It computes errors and gradient on a release *before* it learns from it: it was not fitted on any of the rows."""

    def __init__(
        self,
        config: NeuralConfig,
        network: nn.Module,
        *,
        rng: np.random.Generator,
        precision: Precision = "float32",
        classes: Classes | None = None,
    ) -> None:
        """classes: of the target, whose logits the network predicts; None: it predicts the values of the target."""
        self.config, self.network, self.rng, self.classes = config, network, rng, classes
        self.precision: Precision = precision
        self.memory = BatchMemory(config.memory_batches)
        self.optimiser = Adam(network.parameters(), lr=config.learning_rate)

    def outputs(self, z: Tensor) -> Tensor:
        """float32 outputs (B, target) of the network for codes (B, k)."""
        with autocast(z.device, self.precision):
            return self.network(z).float()

    def reconstruct(self, z: Tensor) -> Tensor:
        """The values (B, target) that it predicts from codes (B, k)."""
        return self.outputs(z) if self.classes is None else self.classes.predicted(self.outputs(z))

    def loss(self, z: Tensor, values: Tensor) -> Tensor:
        """What its steps minimise, a scalar: the mean squared error, or the cross-entropy of classes."""
        if self.classes is None:
            return nn.functional.mse_loss(self.outputs(z), values)
        return self.classes.loss(self.outputs(z), values)

    def recover(self, z: Tensor, target: Target) -> tuple[Tensor, slice]:
        self.network.eval()
        part_rows = rows_per_part(target.values)
        if part_rows >= len(z):
            return target.errors(self.reconstruct(z)), slice(0, len(z))
        errors = lambda z, values, residual: Target(values, residual, target.dimension).errors(self.reconstruct(z))  # noqa: E731
        parts = zip(z.split(part_rows), target.values.split(part_rows), target.residual.split(part_rows), strict=True)
        return torch.cat([checkpoint(errors, *part, use_reentrant=False) for part in parts]), slice(0, len(z))

    def improve(self, z: Tensor, target: Target) -> None:
        """Makes `steps` steps of Adam on its loss, each on as many rows as the release has."""
        self.network.train()
        codes, values = self.memory.with_current(z, target.values)
        for _ in range(self.config.steps):
            rows = slice(None)
            if len(codes) > len(z):
                rows = torch.from_numpy(self.rng.choice(len(codes), len(z), replace=False)).to(codes.device)
            self.optimiser.zero_grad(set_to_none=True)
            step_codes, step_values = codes[rows], values[rows]
            part_rows = rows_per_part(step_values)
            for part, part_values in zip(step_codes.split(part_rows), step_values.split(part_rows), strict=True):
                loss = self.loss(part, part_values) * (len(part) / len(step_codes))
                loss.backward()
            self.optimiser.step()
        self.memory.push(z, target)

    def state_dict(self) -> dict[str, Any]:
        parts = {"network": self.network, "optimiser": self.optimiser, "memory": self.memory}
        return {name: part.state_dict() for name, part in parts.items()} | {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.memory.load_state_dict(state["memory"])
        self.rng.bit_generator.state = state["rng"]

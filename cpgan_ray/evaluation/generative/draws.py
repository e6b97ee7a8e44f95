"""A fitted generative attack: codes to draws."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, predict
from cpgan_ray.evaluation.generative.flow import Flow, FlowRows, FlowSettings, fit_flow
from cpgan_ray.evaluation.generative.starts import predicted_rows


@dataclass(frozen=True, eq=False)
class Generator:
    """A flow that starts at the reconstructions of an attack."""

    flow: Flow
    start: Fitted
    components: Tensor  # (p, D)

    def starts(self, z: Tensor) -> Tensor:
        """The attack's reconstructions, as coordinates (N, p)."""
        reconstruct = self.start.reconstruct
        if self.start.space == "components":
            return predict(reconstruct, z)
        return predict(lambda block: reconstruct(block) @ self.components.T, z, rows=256)

    def draw(self, z: Tensor, *, number: int, seed: int) -> Tensor:
        """Draws (number, N, p) for codes (N, k)."""
        starts = self.starts(z)
        return torch.stack([self.flow.draw(z, starts, path=("z", i), seed=seed) for i in range(number)])


def fit_generator(
    data: AttackData, start: Fitted, settings: FlowSettings | None = None, *, kernel: Fitted | None, name: str
) -> Generator:
    """Fit a flow on codes and pictures of an attacker.

    start: the attack at whose reconstructions a draw starts; kernel: the kernel attack on these codes, for its settings, if there
    is one; name: of the random streams.
    """
    fit, tune = predicted_rows(data, kernel)
    return Generator(fit_flow(fit, tune, settings, path=(name,), seed=data.seed), start, data.components)


def fit_unconditional(data: AttackData, settings: FlowSettings | None = None) -> Flow:
    """A flow from the mean picture to the pictures, which knows no code."""
    parts = [FlowRows(rows.z, torch.zeros_like(rows.target.values), rows.target.values) for rows in (data.fit, data.tune)]
    return fit_flow(parts[0], parts[1], settings, use_codes=False, path=("unconditional",), seed=data.seed)

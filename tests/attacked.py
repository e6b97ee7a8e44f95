"""Helpers to attack small encoders with small budgets."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cpgan_ray.config import AttackConfig

SIDE = 16
"""Height and width of the pictures."""
ATTACKS = AttackConfig(
    names=("ridge", "nearest"),
    mlp_widths=(16,),
    kernel_features=16,
    epochs=1,
    max_budget_doublings=0,
    restarts=1,
    fit_fractions=(),
    generative=False,
)


def attack_flags(uri: str) -> list[str]:
    """Flags for an attack by ridge regression in this process, tracked at `uri`."""
    return f"""--runtime.backend local --runtime.threads 1 --tracking.uri {uri} --tracking.no-system-metrics --attacks.names ridge
        --attacks.mlp-widths 16 --attacks.kernel-features 16 --attacks.epochs 1 --attacks.max-budget-doublings 0
        --attacks.restarts 1 --attacks.no-generative --attacks.fit-fractions""".split()


class Pooled(nn.Module):
    """4 x 4 averages of the picture, times a factor: an encoder that hides little, or everything."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * nn.functional.avg_pool2d(x.float(), 4).flatten(1)


def program(path: Path, module: nn.Module, *, dtype: torch.dtype = torch.float32, inputs: int = 1, **more: Any) -> Path:
    """A torch.export program; `more`: channels, height, dynamic."""
    examples = (torch.zeros(2, more.get("channels", 3), more.get("height", SIDE), SIDE, dtype=dtype),) * inputs
    sizes = ({0: torch.export.Dim("batch", min=1)},) * inputs if more.get("dynamic", True) else None
    torch.export.save(torch.export.export(module, examples, dynamic_shapes=sizes), path)
    return path

"""What a mechanism is, and what several of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, label_columns, shares
from cpgan_ray.data.projection import scale
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.objectives import utility_loss
from cpgan_ray.process import pick_device, torch_stream
from cpgan_ray.streams import stream

SPLITS = ("train", "val", "test")
BLOCK = 500


@dataclass(frozen=True, eq=False)
class Released:
    """What leaves Alice's hands, and what Bob makes of it."""

    codes: Codes
    logits: dict[str, np.ndarray]  # (N, L or C) of `val` and `test`
    direct: np.ndarray | None = None
    """(N, D) of `test`, as the networks see samples: where the code is a sample itself, what it is without any attack."""


@dataclass(frozen=True)
class Mechanism:
    """How codes are made, and what its knob is tried at."""

    release: Callable[[Config, float, Dataset], Released]
    knob: str
    settings: tuple[float, ...]
    says: str


def samples(dataset: Dataset, split: str) -> np.ndarray:
    """All samples of a split as the networks see them, float32 (N, D)."""
    part = getattr(dataset, split)
    return np.concatenate([scale(block) for block in part.iter_batches(BLOCK)])


def taught(
    net: nn.Module, inputs: Mapping[str, np.ndarray], dataset: Dataset, config: Config, *, name: str
) -> dict[str, np.ndarray]:
    """Train a classifier of the task on some inputs of `train`, as long and at such rates as the game trains its own; its logits on
    `val` and `test`. inputs: float32 (N, ...) of each split."""
    device = pick_device(config.runtime.device)
    columns = label_columns(dataset, config.data.labels)
    y = torch.from_numpy(dataset.train.labels[:, columns].copy()).float().to(device)
    positive = torch.from_numpy(shares(dataset, config.data.labels)).float().to(device) if config.utility.balanced else None
    net = net.to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.utility.learning_rate, weight_decay=config.privatizer.weight_decay)
    size = min(config.batch_size, len(y))
    steps = config.epochs * (len(y) // size)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    x = torch.from_numpy(inputs["train"])
    for epoch in range(config.epochs):
        rows = torch.from_numpy(stream(config.seed, "batches", epoch).permutation(len(y)))
        with torch_stream(config.seed, "mechanism", name, epoch):
            net.train()
            for chosen in rows[: len(y) // size * size].split(size):
                loss = utility_loss(net(x[chosen].to(device)), y[chosen], positive_share=positive)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                rate.step()
    return {split: applied(net, inputs[split], device) for split in ("val", "test")}


@torch.no_grad()
def applied(net: nn.Module, x: np.ndarray, device: torch.device) -> np.ndarray:
    """What a network answers to all rows, in evaluation mode."""
    net.eval()
    blocks: list[Tensor] = [net(part.to(device)).cpu() for part in torch.from_numpy(x).split(BLOCK)]
    return torch.cat(blocks).numpy()


def shared_k(config: Config, share: float) -> int:
    """A share of the code's length, at least one number."""
    return max(1, round(config.k * share))

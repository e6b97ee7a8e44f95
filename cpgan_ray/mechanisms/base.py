"""What a mechanism is, and what several of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.process import pick_device, torch_stream
from cpgan_ray.common.types import Batch
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, label_columns, label_frequencies
from cpgan_ray.data.batching import plain_batch, representative_rows, rounds_per_epoch, training_batch
from cpgan_ray.data.pca import scale
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.models.statistics import refresh_statistics
from cpgan_ray.training.losses import utility_loss

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
    length: Callable[[Config, float, Dataset], int] | None = None
    """Of a code whose length is the knob: how many numbers a setting comes to."""


def samples(dataset: Dataset, split: str) -> np.ndarray:
    """All samples of a split as the networks see them, float32 (N, D)."""
    part = getattr(dataset, split)
    return np.concatenate([scale(block) for block in part.iter_batches(BLOCK)])


def train_classifier(
    net: nn.Module,
    inputs: Mapping[str, np.ndarray],
    dataset: Dataset,
    config: Config,
    *,
    name: str,
    varied: Callable[[Batch], np.ndarray],
) -> dict[str, np.ndarray]:
    """Train a classifier of the task as long, at such rates and on such batches as the game trains its own; its logits on `val` and
    `test`. inputs: float32 (N, ...) of these two; varied: the same of a batch of `train`, mirrored and shifted as it says."""
    device = pick_device(config.runtime.device)
    labels = dataset.train.labels[:, label_columns(dataset, config.data.labels)].astype(np.float32)
    positive = (
        torch.from_numpy(label_frequencies(dataset, config.data.labels)).float().to(device)
        if config.utility.class_weighted_loss
        else None
    )
    net = net.to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.utility.learning_rate, weight_decay=config.privatizer.weight_decay)
    rounds = rounds_per_epoch(len(labels), config.batch_size)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * rounds)
    for epoch in range(config.epochs):
        with torch_stream(config.seed, "mechanism", name, epoch):
            net.train()
            for round in range(epoch * rounds, (epoch + 1) * rounds):
                chosen = training_batch(round, dataset, config)
                x, y = (torch.from_numpy(v).to(device) for v in (varied(chosen), labels[chosen.rows]))
                loss = utility_loss(net(x), y, positive_share=positive)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                rate.step()
    shown = (plain_batch(rows) for rows in representative_rows(len(labels), config.batch_size))
    refresh_statistics(net, (torch.from_numpy(varied(chosen)).to(device) for chosen in shown))
    return {split: predict_logits(net, inputs[split], device) for split in ("val", "test")}


@torch.no_grad()
def predict_logits(net: nn.Module, x: np.ndarray, device: torch.device) -> np.ndarray:
    """What a network answers to all rows, in evaluation mode."""
    net.eval()
    blocks: list[Tensor] = [net(part.to(device)).cpu() for part in torch.from_numpy(x).split(BLOCK)]
    return torch.cat(blocks).numpy()


def shared_k(config: Config, share: float, dataset: Dataset | None = None) -> int:
    """A share of the code's length, at least one number, whatever the data set."""
    return max(1, round(config.k * share))

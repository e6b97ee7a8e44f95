"""The type of a mechanism, and functions that several mechanisms share."""

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
from cpgan_ray.data.code_sets import EVALUATION_BLOCK, code_sets
from cpgan_ray.data.pca import scale
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.models.statistics import refresh_statistics
from cpgan_ray.training.losses import utility_loss


@dataclass(frozen=True, eq=False)
class Released:
    """The codes that a mechanism releases, and the logits of a classifier on them."""

    codes: Codes
    logits: dict[str, np.ndarray]  # `val` and `test` to (N, L or C)
    direct: np.ndarray | None = None
    """(N, D), for `test`: the released samples in the networks' input range, if the code is itself a (noisy) sample; they are a
    reconstruction without any attack."""


@dataclass(frozen=True)
class Mechanism:
    """A function that makes codes, its knob and the settings of the knob that are compared."""

    release: Callable[[Config, float, Dataset], Released]
    knob: str
    settings: tuple[float, ...]
    description: str
    length: Callable[[Config, float, Dataset], int] | None = None
    """The code length of a setting, if the knob sets the length."""


def samples(dataset: Dataset, name: str) -> np.ndarray:
    """All samples of a set (see `code_sets`) as the networks see them, float32 (N, D)."""
    return np.concatenate([scale(block) for block in code_sets(dataset)[name].blocks()])


def train_classifier(
    net: nn.Module,
    inputs: Mapping[str, np.ndarray],
    dataset: Dataset,
    config: Config,
    *,
    name: str,
    batch_inputs: Callable[[Batch], np.ndarray],
) -> dict[str, np.ndarray]:
    """Train a classifier of the task with the epochs, learning rates and batches of the game; returns its logits on `val` and
    `test`.

    inputs: split ("val", "test") to float32 (N, ...).
    batch_inputs: batch of `train` -> its inputs, mirrored and shifted as the batch sets it.
    """
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
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * rounds)
    for epoch in range(config.epochs):
        with torch_stream(config.seed, "mechanism", name, epoch):
            net.train()
            for round in range(epoch * rounds, (epoch + 1) * rounds):
                batch = training_batch(round, dataset, config)
                x, y = (torch.from_numpy(v).to(device) for v in (batch_inputs(batch), labels[batch.rows]))
                loss = utility_loss(net(x), y, positive_share=positive)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                scheduler.step()
    batches = (plain_batch(rows) for rows in representative_rows(len(labels), config.batch_size))
    refresh_statistics(net, (torch.from_numpy(batch_inputs(batch)).to(device) for batch in batches))
    return {split: predict_logits(net, inputs[split], device) for split in ("val", "test")}


@torch.no_grad()
def predict_logits(net: nn.Module, x: np.ndarray, device: torch.device) -> np.ndarray:
    """The outputs of a network for all rows, in evaluation mode."""
    net.eval()
    blocks: list[Tensor] = [net(part.to(device)).cpu() for part in torch.from_numpy(x).split(EVALUATION_BLOCK)]
    return torch.cat(blocks).numpy()


def fraction_of_k(config: Config, share: float, dataset: Dataset | None = None) -> int:
    """A share of the code length k, at least 1; independent of the data set."""
    return max(1, round(config.k * share))

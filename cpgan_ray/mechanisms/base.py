"""The type of a mechanism, and what several mechanisms share: how a fixed encoder's codes are drawn, rounded and attacked, and how
Bob's classifier is trained on them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.process import autocast, pick_device, torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Batch
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, Task, label_frequencies, task_of
from cpgan_ray.data.batching import pictures, plain_batch, representative_rows, rounds_per_epoch, training_batch
from cpgan_ray.data.code_sets import EVALUATION_BLOCK, CodeSet, code_sets
from cpgan_ray.data.pca import scale
from cpgan_ray.evaluation.bounds.channel import Channel
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.models import build_head
from cpgan_ray.models.cost import Cost, count
from cpgan_ray.models.privatizers import round_to
from cpgan_ray.models.statistics import refresh_statistics
from cpgan_ray.training.defender import averaged_copy, scheduled_optimiser
from cpgan_ray.training.inputs import corrupt_inputs, to_input
from cpgan_ray.training.losses import distillation_loss, utility_loss
from cpgan_ray.training.teachers import read_answers

Encode = Callable[[Tensor, np.random.Generator], Tensor]
"""Pictures (B, C, H, W) in the networks' input range, and the stream of this call's noise -> codes (B, ...)."""


@dataclass(frozen=True, eq=False)
class Released:
    """The codes that a mechanism releases, and the logits of a classifier on them."""

    codes: Codes
    logits: dict[str, np.ndarray]
    """(N, num_logits) of `val` and `test`; with those of all sets of `codes` the answers floor can be measured."""
    direct: np.ndarray | None = None
    """(N, D), for `test`: the released samples in the networks' input range, if the code is itself a (noisy) sample; they are a
    reconstruction without any attack."""
    encoder: nn.Module | None = None
    """The network that made the codes, if the mechanism trains one: pictures (B, C, H, W) to codes (B, k), in evaluation mode."""
    head: nn.Module | None = None
    """The utility head on these codes, in evaluation mode, if it was trained with the encoder."""
    client: nn.Module | None = None
    """A network of the form that the client computes, for its cost; None: that is `encoder`, or not known."""
    cloud: Cost | None = None
    """What the cloud computes for a code; None: not known."""
    bits: float | None = None
    """Number of bits that a client sends for a picture; None: it follows from the codes (evaluation/client.py)."""
    channel: Channel | None = None
    """How the codes are released; None: it follows from the codes."""


@dataclass(frozen=True)
class Mechanism:
    """A function that makes codes, its knob and the settings of the knob that are compared.

    The codes are rounded to multiples of `config.privatizer.quantization_step` standard deviations; 0: they are not rounded.
    """

    release: Callable[[Config, float, Dataset], Released]
    knob: str
    settings: tuple[float, ...]
    """The built-in settings, in order of falling accuracy."""
    description: str
    search: tuple[float, float] | None = None
    """The most accurate and the most private setting that a calibration tries. None: the mechanism has no knob."""
    length: Callable[[Config, float, Dataset], int] | None = None
    """The code length of a setting, if the knob sets the length."""
    rounds: bool = True
    """Whether its codes are rounded in comparisons with rounding. False: they are finite without it."""


def samples(dataset: Dataset, name: str) -> np.ndarray:
    """All samples of a set (see `code_sets`) as the networks see them, float32 (N, D)."""
    return np.concatenate([scale(block) for block in code_sets(dataset)[name].blocks()])


@torch.no_grad()
def encode_set(encode: Encode, code_set: CodeSet, config: Config, *, name: str, key: str) -> np.ndarray:
    """The codes (N, ...) of a set, with the noise of this mechanism (`name`) and this set (`key`)."""
    device, rng = pick_device(config.runtime.device), noise_stream(config, name, key)
    return torch.cat([encode(to_input(block, device), rng).cpu() for block in code_set.blocks()]).numpy()


def encode_all(encode: Encode, dataset: Dataset, config: Config, *, name: str, draws: int = 1) -> Codes:
    """The codes of all sets that the attacks need, with this many draws of the noise; 1 for an encoder without noise."""
    train = encode_set(encode, code_sets(dataset)["train"], config, name=name, key="train")
    sets = code_sets(dataset, draws=draws, attacks=config.attacks, k=train[0].size)
    others = {key: encode_set(encode, sets[key], config, name=name, key=key) for key in sets if key != "train"}
    return {"train": train} | others


@dataclass(frozen=True, eq=False)
class Standardised:
    """Codes minus their mean, divided by their standard deviation on `train`, component by component; then rounded to multiples of
    `step`, unless that is 0, with at most `levels` values, unless that is 0 (`round_to`)."""

    mean: Tensor
    deviation: Tensor
    step: float = 0.0
    levels: int = 0

    @staticmethod
    def fit(codes: np.ndarray, *, step: float = 0.0, levels: int = 0, device: torch.device) -> "Standardised":
        """codes: those of `train`, (N, ...)."""
        mean, deviation = codes.mean(axis=0, dtype=np.float64), np.maximum(codes.std(axis=0, dtype=np.float64), 1e-12)
        return Standardised(torch.from_numpy(mean).float().to(device), torch.from_numpy(deviation).float().to(device), step, levels)

    def __call__(self, codes: Tensor) -> Tensor:
        z = (codes - self.mean) / self.deviation
        return round_to(z, self.step, self.levels) if self.step else z

    def inverse(self, z: Tensor) -> Tensor:
        """The (rounded) codes in their own unit. Of an even number of levels, each stands for the middle of its interval."""
        middle = 0.5 * self.step if self.levels and self.levels % 2 == 0 else 0.0
        return (z + middle) * self.deviation + self.mean


def release(
    encode: Encode, dataset: Dataset, config: Config, *, name: str, draws: int = 1, client: nn.Module | None = None
) -> Released:
    """The codes of an encoder that is not trained on the task, and the logits of the configuration's utility head trained on them.

    Codes are rounded by the statistics of the codes of `train`, before the head is trained, so that Bob learns on rounded codes.

    encode: codes (B, k), standardised; draws: see `encode_all`; client: see `Released`.
    """
    device, step = pick_device(config.runtime.device), config.privatizer.quantization_step
    encode = rounded(encode, dataset, config, name=name) if step else encode
    codes = encode_all(encode, dataset, config, name=name, draws=draws)
    outputs = task_of(dataset, config.data.labels).num_logits
    with torch_stream(config.seed, "mechanism", name, "weights"):
        head = build_head(config.utility, k=codes["train"].shape[1], num_logits=outputs, image_shape=dataset.image_shape)
    train_classifier(nn.ModuleDict({"head": head}), encode, dataset, config, name=name)
    logits = {key: predict_logits(head, z, device) for key, z in codes.items()}
    return Released(codes, logits, client=client, cloud=count(head, codes["train"].shape[1:]))


def rounded(encode: Encode, dataset: Dataset, config: Config, *, name: str) -> Encode:
    """The encoder with its codes standardised by those of `train`, and rounded."""
    train = encode_set(encode, code_sets(dataset)["train"], config, name=name, key="train")
    p, device = config.privatizer, pick_device(config.runtime.device)
    standardised = Standardised.fit(train, step=p.quantization_step, levels=p.levels, device=device)
    return lambda x, rng: standardised(encode(x, rng))


def noise_stream(config: Config, name: str, *path: str | int) -> np.random.Generator:
    """The stream of a mechanism's noise, for one set of codes or for one round of Bob's training."""
    return stream(config.seed, "mechanism", "noise", name, *path)


def train_classifier(net: nn.ModuleDict, encode: Encode, dataset: Dataset, config: Config, *, name: str) -> None:
    """Train Bob's classifier of the task on codes, with the batches, augmentation, optimiser, schedule, weight decay, averaging and
    epochs of the game; the noise of the codes is drawn again in each batch. Leaves the released weights in `net`.

    net: `head`, and optionally `encoder` in front of it, which has the privatizer's learning rate.
    encode: augmented training pictures -> input of the network.
    """
    device, p = pick_device(config.runtime.device), config.privatizer
    task = task_of(dataset, config.data.labels)
    loss_of = task_loss(config, dataset, task, device=device)
    net.to(device)
    classifier = nn.Sequential(*(net[part] for part in ("encoder", "head") if part in net))
    rounds = rounds_per_epoch(len(dataset.train), config.batch_size)
    rates = {"encoder": p.learning_rate, "head": config.utility.learning_rate}
    trained = [
        scheduled_optimiser(part.parameters(), p, learning_rate=rates[key], total_rounds=config.epochs * rounds)
        for key, part in net.items()
    ]
    averaged = averaged_copy(net, p)
    for epoch in range(config.epochs):
        with torch_stream(config.seed, "mechanism", name, epoch):
            net.train()
            for round in range(epoch * rounds, (epoch + 1) * rounds):
                batch = training_batch(round, dataset, config)
                shown = to_input(pictures(dataset.train, batch), device)
                shown = corrupt_inputs(shown, config, round=round, num_rows=len(shown), local=slice(None))
                with torch.no_grad():
                    x = encode(shown, noise_stream(config, name, "round", round))
                with autocast(device, config.precision):
                    logits = classifier(x).float()
                loss = loss_of(logits, batch)
                for optimiser, _ in trained:
                    optimiser.zero_grad(set_to_none=True)
                loss.backward()
                for optimiser, schedule in trained:
                    optimiser.step()
                    schedule.step()
                if averaged is not None:
                    averaged.update_parameters(net)
    if averaged is not None:
        net.load_state_dict(averaged.module.state_dict())
    batches = (pictures(dataset.train, plain_batch(rows)) for rows in representative_rows(len(dataset.train), config.batch_size))
    rng = noise_stream(config, name, "statistics")
    refresh_statistics(classifier, (encode(to_input(batch, device), rng) for batch in batches))


def task_loss(config: Config, dataset: Dataset, task: Task, *, device: torch.device) -> Callable[[Tensor, Batch], Tensor]:
    """Bob's loss of the logits (B, num_logits) of a training batch: that of the game, with teachers if there are any, and with
    weight 1 for all labels."""
    labels, share = task.answers(dataset.train), config.utility.teacher_weight
    frequencies = torch.from_numpy(label_frequencies(dataset, task)).float().to(device)
    positive = frequencies if config.utility.class_weighted_loss else None
    file = config.utility.teacher_answers
    teachers = None if file is None else read_answers(file, dataset, task)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        of_labels = utility_loss(logits, torch.from_numpy(labels[batch.rows]).to(device), task, positive_share=positive)
        if teachers is None:
            return of_labels
        soft = torch.from_numpy(teachers.of(batch)).to(device)
        return (1 - share) * of_labels + share * distillation_loss(logits, soft, task, num_rows=len(soft))

    return loss


@torch.no_grad()
def predict_logits(net: nn.Module, x: np.ndarray, device: torch.device) -> np.ndarray:
    """The outputs of a network for all rows, in evaluation mode."""
    net.eval()
    blocks: list[Tensor] = [net(part.to(device)).cpu() for part in torch.from_numpy(x).split(EVALUATION_BLOCK)]
    return torch.cat(blocks).numpy()


def fraction_of_k(config: Config, share: float, dataset: Dataset | None = None) -> int:
    """A share of the code length k, at least 1; independent of the data set."""
    return max(1, round(config.k * share))

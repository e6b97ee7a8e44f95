"""The classifier of the game on answers: an undefended game, whose networks become one file (models/answers.py)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, Task
from cpgan_ray.models.answers import classifier_bytes
from cpgan_ray.training.game import play_in_process


class Trained(NamedTuple):
    """A classifier as its file, and its logits (N, num_logits) of the splits and of the mirror images that the data set has."""

    file: bytes
    logits: dict[str, np.ndarray]


def views(dataset: Dataset) -> tuple[str, ...]:
    """The sets of samples to which a teacher answers."""
    return ("train", "train_mirrored", "val") if dataset.info.mirrored else ("train", "val")


def train_classifier(config: Config, threads: int) -> Trained:
    """Train a classifier in this process. config: of an undefended run without rounding."""
    game = play_in_process(config, threads=threads)
    while game.round < game.total_rounds:
        game.play(game.rounds_per_epoch)
    worker = game.privatizer
    logits = {name: worker.codes(name)[1] for name in views(worker.dataset)}
    networks = {name: network.state_dict() for name, network in worker.defender.released.items()}
    return Trained(file_of(networks, logits["train"], config, worker.dataset, worker.task), logits)


def file_of(
    networks: Mapping[str, Mapping[str, Tensor]], logits: np.ndarray, config: Config, dataset: Dataset, task: Task
) -> bytes:
    """The file of a classifier with these weights and logits (N, num_logits) of the training pictures."""
    return classifier_bytes(
        networks,
        logits.std(axis=0, dtype=np.float64).clip(1e-6),
        widths=[label.logits.stop - label.logits.start for label in task.labels],
        privatizer=config.privatizer,
        utility=config.utility,
        k=config.k,
        image_shape=dataset.image_shape,
    )

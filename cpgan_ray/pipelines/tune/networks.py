"""Whether the networks that a search may propose go with its data: known before it begins, not after its trials have failed."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from cpgan_ray.config import Config, NeuralConfig, SearchJob, override
from cpgan_ray.config.search_space import Dimension, pairs, shown
from cpgan_ray.data import Dataset, label_frequencies
from cpgan_ray.errors import InputError
from cpgan_ray.models import build_head, build_privatizer, build_reconstructor
from cpgan_ray.training.game import active_adversaries


def ensure_buildable(job: SearchJob, found: Sequence[Dimension], dataset: Dataset) -> None:
    """The control, and every two of the values that are searched. Fields of the data are left out: their trials have other stores.

    Raises: InputError naming the values, where networks cannot be built with them.
    """
    outputs = len(label_frequencies(dataset, job.config.data.labels))
    if job.train_undefended:
        build(replace(job.config, privacy_weight=0.0), dataset, outputs=outputs)
    for setting in pairs([d for d in found if not d.name.startswith("data.")]):
        try:
            build(override(job.config, setting), dataset, outputs=outputs)
        except InputError as e:
            raise InputError(f"over {shown(setting)}: {e}") from e


def build(config: Config, dataset: Dataset, *, outputs: int) -> None:
    """All networks of a game, without memory or numbers.

    Raises: InputError where one is not for such samples or codes.
    """
    shape, k = dataset.image_shape, config.k
    size = math.prod(shape)
    if config.privatizer.family == "whitened" and size > len(dataset.train):
        raise InputError(
            f"privatizer.family 'whitened' needs as many training samples as each has values, {size}; there are "
            f"{len(dataset.train)}: take another one"
        )
    with torch.device("meta"):
        build_privatizer(config.privatizer, k=k, image_shape=shape)
        build_head(config.utility, k=k, num_labels=outputs, image_shape=shape)
        for name in active_adversaries(config):
            if isinstance(adversary := config.adversaries[name], NeuralConfig):
                build_reconstructor(adversary, k=k, image_shape=shape, target=adversary.components or size)

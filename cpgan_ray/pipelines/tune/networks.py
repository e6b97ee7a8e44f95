"""Check before a search starts that all networks it may propose can be built for its data."""

import math
from collections.abc import Sequence

import torch

from cpgan_ray.config import Config, NeuralConfig, SearchJob, override
from cpgan_ray.config.search_space import Dimension, pairs, shown
from cpgan_ray.config.targets import PICTURE
from cpgan_ray.data import Dataset, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.models import build_head, build_privatizer, build_reconstructor
from cpgan_ray.models.cost import ensure_within_budget
from cpgan_ray.models.own import device_for_shapes
from cpgan_ray.training.game import active_adversaries


def ensure_buildable(job: SearchJob, space: Sequence[Dimension], dataset: Dataset) -> None:
    """Build the networks of the control, and of every pair of values in the search space. Fields of the data are left out, because
    they lead to other stores.

    Raises: InputError naming the values with which networks cannot be built.
    """
    outputs = task_of(dataset, job.config.data.labels).num_logits
    if job.train_undefended:
        build(job.config.without_defence(), dataset, outputs=outputs)
    for setting in pairs([d for d in space if not d.name.startswith("data.")]):
        try:
            build(override(job.config, setting), dataset, outputs=outputs)
        except InputError as e:
            raise InputError(f"over {shown(setting)}: {e}") from e


def build(config: Config, dataset: Dataset, *, outputs: int) -> None:
    """Build all networks of a game on the meta device, without memory for their weights; a user's own on the CPU.

    Raises: InputError if a network does not support these samples or codes, or the client's is over its budget.
    """
    shape, k = dataset.image_shape, config.k
    size = math.prod(shape)
    if config.privatizer.family == "whitened" and size > len(dataset.train):
        raise InputError(
            f"privatizer.family 'whitened' needs at least as many training samples as a sample has values, {size}; there are "
            f"{len(dataset.train)}: choose another family"
        )
    ensure_within_budget(config, image_shape=shape)
    with torch.random.fork_rng(), device_for_shapes(config.privatizer.family, config.utility.family):
        build_privatizer(config.privatizer, k=k, image_shape=shape)
        build_head(config.utility, k=k, num_logits=outputs, image_shape=shape)
        for name in active_adversaries(config):
            if isinstance(adversary := config.adversaries[name], NeuralConfig) and adversary.target == PICTURE:
                build_reconstructor(adversary, k=k, image_shape=shape, target=adversary.components or size)

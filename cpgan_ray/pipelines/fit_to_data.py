"""Fit a run to its data: its sizes to a small collection of own pictures, instead of refusing it, and its task to what it hides
and to what comes later."""

import logging
from dataclasses import replace

from cpgan_ray.config import Config
from cpgan_ray.config.targets import sensitive_labels
from cpgan_ray.data import Dataset, load
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

MIN_PICTURES = 200
"""With fewer pictures the validation and the test split have fewer than 20 each: no R2 has an interval that says anything."""
MIN_ROUNDS = 4
"""Rounds of an epoch: the batch is at most a quarter of the training pictures."""
SMALLEST_BATCH = 4
"""The smallest batch that a configuration may have."""


def fit_to_data(config: Config) -> Config:
    """The configuration with a batch that is at most a quarter of the training pictures. Own pictures only: the other data sets
    have presets of their sizes. Components and attacks are limited by the number of pictures in any case. If all labels are the
    task, those that are hidden or that come later are left out of it.

    Raises:
        InputError: there are too few pictures; and see `data.load`.
    """
    config = with_task(config)
    if config.data.dataset != "pictures":
        return config
    dataset = load(config)
    ensure_enough(dataset)
    batch_size = fitted_batch(config, dataset)
    if batch_size != config.batch_size:
        logger.info(
            f"batch_size is {batch_size} instead of {config.batch_size}: a quarter of the {len(dataset.train)} training pictures"
        )
    return replace(config, batch_size=batch_size)


def with_task(config: Config) -> Config:
    """The configuration whose task, if it is all labels, has neither the labels that the game hides nor those of late tasks.

    Raises:
        InputError: no label is left; and see `data.load`.
    """
    hidden, late = sensitive_labels(config.game.target_weights), config.data.late_labels
    if not (hidden or late) or config.data.labels:
        return config
    labels = tuple(name for name in load(config).label_names if name not in (*hidden, *late))
    left_out = " and ".join(
        f"{', '.join(names)}, which {why}" for names, why in ((hidden, "the game hides"), (late, "come later")) if names
    )
    if not labels:
        raise InputError(
            f"all labels of the data are hidden or come later ({left_out}): no task is left; leave some out of game.target_weights "
            "or data.late_labels"
        )
    logger.info(f"the task is all labels but {left_out}")
    return replace(config, data=replace(config.data, labels=labels))


def fitted_batch(config: Config, dataset: Dataset) -> int:
    """The number of pictures in a batch."""
    largest = max(SMALLEST_BATCH, len(dataset.train) // MIN_ROUNDS)
    return min(config.batch_size, largest) if config.data.dataset == "pictures" else config.batch_size


def ensure_enough(dataset: Dataset) -> None:
    """Raises: InputError if a data set of own pictures is too small for any result."""
    if (total := num_pictures(dataset)) < MIN_PICTURES:
        sizes = ", ".join(f"{len(split)} in {name}" for name, split in dataset.splits.items())
        raise InputError(
            f"{total} pictures are too few ({sizes}): training and attacks need at least {MIN_PICTURES}, because a score on fewer "
            "than 20 pictures says nothing: add pictures"
        )


def num_pictures(dataset: Dataset) -> int:
    """The number of pictures in all splits."""
    return sum(map(len, dataset.splits.values())) + (0 if dataset.final_opened else len(dataset.final))

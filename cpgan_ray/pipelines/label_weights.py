"""Derive the weights of the labels from what the teachers' answers are worth and what they show."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from cpgan_ray.config import Config
from cpgan_ray.data import load, task_of
from cpgan_ray.training.teachers import as_logits, read_answers

logger = logging.getLogger(__name__)

LEAST_WEIGHT = 0.02
"""No label has a smaller weight, so that Bob still learns to guess it."""
DIGITS = 3
"""Significant digits of a weight: few enough to read and to type again."""


def with_label_weights(config: Config) -> Config:
    """The configuration with weights of its labels, derived from its teachers' answers. Unchanged if none are wanted, and in a run
    that is resumed.

    Only `train` and `val` are read. The answers of the teachers must be there, see `with_teachers`.
    """
    utility = config.utility
    if not utility.learn_label_weights or utility.learned_label_weights:
        return config
    from cpgan_ray.mechanisms.answer_order import private_prices  # takes 0.1 s

    assert utility.teacher_answers is not None
    dataset = load(config)
    task = task_of(dataset, config.data.labels)
    answers = read_answers(utility.teacher_answers, dataset, task)
    logits = {"train": as_logits(answers.train[:, 0], task), "val": as_logits(answers.val, task)}
    prices = {task.names[i]: price for i, price in private_prices(logits, dataset, task).items()}
    weights = weights_at(prices, utility.learn_label_weights)
    logger.info(f"weights of the labels: {', '.join(f'{name} {weight:g}' for name, weight in weights.items())}")
    learned = {name: weight for name, weight in weights.items() if name not in utility.label_weights}
    return replace(config, utility=replace(utility, learned_label_weights=learned))


def weights_at(prices: Mapping[str, float], rate: float) -> dict[str, float]:
    """The weight of each label, from the price of each in the order in which they are left out.

    A defender that is ready to lose `rate` accuracy per R2 maximises accuracy - rate R2. To leave out a label then pays if its
    price, the accuracy lost per R2 that the attacker loses, is below `rate`: that is `answers_subset` with all labels whose price
    is above it. A game cannot leave a label out, but each label has a weight in its loss. The weight

        a = price / (price + rate)

    is the smooth form of that choice, with odds a / (1 - a) = price / rate: nearly 1 for a label that is worth far more than it
    shows, 1/2 at the border, and price / rate for a label that shows far more. The price of a label is at least that of the labels
    left out before it, so the weights rise along the order. No weight is below LEAST_WEIGHT.
    """
    rising = np.maximum.accumulate(list(prices.values()))
    weights = np.maximum(rising / (rising + rate), LEAST_WEIGHT)
    return {name: float(f"{weight:.{DIGITS}g}") for name, weight in zip(prices, weights, strict=True)}

"""Answers: the probabilities that the service returns for a code."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cpgan_ray.deploy.manifest import Label

Answer = dict[str, float | dict[str, float]]
"""For each label of two values the probability of the second one; for a label of several values the probability of each."""


def probabilities(logits: np.ndarray, labels: Sequence[Label]) -> list[Answer]:
    """Answers from logits (B, num_logits) float32: the logistic function of a label with two values, else softmax over its
    values."""
    columns: dict[str, Any] = {}
    for label in labels:
        part = logits[:, label.logits].astype(np.float64)
        if label.binary:
            columns[label.name] = (0.5 * (1 + np.tanh(part[:, 0] / 2))).tolist()
        else:
            odds = np.exp(part - part.max(axis=1, keepdims=True))
            shares = (odds / odds.sum(axis=1, keepdims=True)).tolist()
            columns[label.name] = [dict(zip(label.values, row, strict=True)) for row in shares]
    return [{name: values[i] for name, values in columns.items()} for i in range(len(logits))]


def is_answer(row: Any, labels: Sequence[Label]) -> bool:
    """Whether a value has a probability for each label, and nothing else."""
    if not isinstance(row, dict) or row.keys() != {label.name for label in labels}:
        return False
    for label in labels:
        value = row[label.name]
        parts = [value] if label.binary else list(value.values()) if isinstance(value, dict) else [None]
        if not label.binary and (not isinstance(value, dict) or value.keys() != set(label.values)):
            return False
        if not all(isinstance(p, float | int) and math.isfinite(p) and 0 <= p <= 1 for p in parts):
            return False
    return True

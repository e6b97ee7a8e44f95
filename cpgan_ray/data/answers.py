"""Answers to a task as a code: what Alice sends if she classifies her picture herself, and what Bob makes of it."""

import math
from collections.abc import Iterable

import numpy as np

from cpgan_ray.data.task import Label, Task


def answer_numbers(answers: np.ndarray, task: Task, *, sent: Iterable[int] | None = None) -> np.ndarray:
    """Answers (N, L) as numbers, float32 (N, M): a column for each binary label (0 or 1), and one for each class of the others
    (one-hot).

    sent: positions of the labels that are sent; None: all.
    """
    chosen = range(len(task.labels)) if sent is None else sent
    columns = [
        answers[:, [i]] if task.labels[i].binary else np.eye(len(task.labels[i].values), dtype=np.float32)[answers[:, i]]
        for i in chosen
    ]
    return np.concatenate(columns, axis=1).astype(np.float32)


def answer_logits(answers: np.ndarray, task: Task) -> np.ndarray:
    """Logits that give exactly these answers (N, L), float32 (N, num_logits): 1 or -1 for a binary label, one-hot for classes."""
    logits = answer_numbers(answers, task)
    binary = [label.first_logit for label in task.labels if label.binary]
    logits[:, binary] = 2 * logits[:, binary] - 1
    return logits


def answer_bits(labels: Iterable[Label]) -> int:
    """The number of bits that answers to these labels take: ceil(log2 C) for C values."""
    return sum(math.ceil(math.log2(len(label.values))) for label in labels)

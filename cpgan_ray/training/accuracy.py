"""How well logits answer a task: accuracy, balanced accuracy, dead labels. Missing answers do not count.

In all functions `logits` is (N, num_logits) and `y` is (N, L) with the true answers, `MISSING` where one is not known.
"""

import numpy as np

from cpgan_ray.data.store import MISSING
from cpgan_ray.data.task import Task, value_counts

DEAD = 1.1
"""A label is dead if its balanced accuracy is below this multiple of chance: 0.55 for a label of two values."""


def predictions(logits: np.ndarray, task: Task) -> np.ndarray:
    """The answers that logits give: int64 (N, L)."""
    parts = [logits[:, label.logits] for label in task.labels]
    answers = [part[:, 0] > 0 if label.binary else part.argmax(axis=1) for part, label in zip(parts, task.labels, strict=True)]
    return np.stack(answers, axis=1).astype(np.int64)


def correct_predictions(logits: np.ndarray, y: np.ndarray, task: Task) -> np.ndarray:
    """Whether the answer to each label is right: bool (N, L), False where the true answer is missing."""
    return predictions(logits, task) == y


def accuracy(logits: np.ndarray, y: np.ndarray, task: Task) -> np.ndarray:
    """Share of right answers to each label, float64 (L,); NaN if all true answers are missing."""
    return ratio(correct_predictions(logits, y, task).sum(axis=0), (y != MISSING).sum(axis=0))


def recalls(logits: np.ndarray, y: np.ndarray, task: Task) -> list[np.ndarray]:
    """For each label the share of right answers among the rows with each of its values, float64 (C,); NaN for a value that does not
    occur."""
    right = np.where(correct_predictions(logits, y, task), y, MISSING)
    return [ratio(hits, sizes) for hits, sizes in zip(value_counts(right, task), value_counts(y, task), strict=True)]


def balanced_accuracy(logits: np.ndarray, y: np.ndarray, task: Task) -> np.ndarray:
    """Mean recall of the values of each label that occur, float64 (L,): (TPR + TNR) / 2 of a binary label. NaN if fewer than two
    values occur."""
    occurring = [of_label[np.isfinite(of_label)] for of_label in recalls(logits, y, task)]
    return np.array([np.mean(of_label) if len(of_label) > 1 else np.nan for of_label in occurring])


def dead_labels(logits: np.ndarray, y: np.ndarray, task: Task) -> int:
    """Number of binary labels that are answered no better than by chance (balanced accuracy below 0.55), and of classes of the
    other labels with a recall below 1.1 / C. Labels or classes that do not occur, and binary labels with one value, do not
    count."""
    dead = 0
    for label, of_label, balanced in zip(task.labels, recalls(logits, y, task), balanced_accuracy(logits, y, task), strict=True):
        dead += int(balanced < DEAD / 2) if label.binary else int((of_label < DEAD / len(of_label)).sum())
    return dead


def mean_accuracy(logits: np.ndarray, y: np.ndarray, task: Task) -> float:
    """Mean of `accuracy` over the labels that have answers; NaN if none has."""
    return mean_of_finite(accuracy(logits, y, task))


def mean_balanced_accuracy(logits: np.ndarray, y: np.ndarray, task: Task) -> float:
    """Mean of `balanced_accuracy` over the labels of which two values occur. If there is no such label: mean accuracy."""
    balanced = balanced_accuracy(logits, y, task)
    return mean_of_finite(balanced) if np.isfinite(balanced).any() else mean_accuracy(logits, y, task)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, float64; NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)


def mean_of_finite(values: np.ndarray) -> float:
    """The mean of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")

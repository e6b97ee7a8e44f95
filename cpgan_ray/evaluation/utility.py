"""Accuracy of the utility head on the task: averaged over the labels, and for each label. Missing answers do not count."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpgan_ray.data import Dataset, Task, majority_logits
from cpgan_ray.data.store import MISSING
from cpgan_ray.evaluation.scoring import accuracy_intervals, balanced_accuracy_interval, mean_over_labels_interval
from cpgan_ray.training.accuracy import (
    accuracy,
    balanced_accuracy,
    correct_predictions,
    dead_labels,
    mean_accuracy,
    mean_balanced_accuracy,
)


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of a utility head to the test split. Intervals that cross seeds and people need only this."""

    right: np.ndarray  # (N, L) bool, whether the answer is right; False where the true answer is missing
    labels: np.ndarray  # (N, L) int8, the true answers, `MISSING` where one is not known


def head_answers(logits: Mapping[str, np.ndarray], dataset: Dataset, task: Task) -> Answers:
    """The answers to the test split. logits: (N, num_logits) of `test`."""
    y = task.answers(dataset.test)
    return Answers(correct_predictions(logits["test"], y, task), y)


def utility_metrics(logits: Mapping[str, np.ndarray], dataset: Dataset, task: Task, *, seed: int) -> dict[str, float]:
    """On the test split: accuracy and balanced accuracy with intervals over people, both of the majority guess, and the number of
    dead labels; averaged over the labels of the task. On the validation split: both accuracies, by which a search selects.

    logits: (N, num_logits) of `test` and `val`, splits that have at least one answer each.
    """
    y, y_val = task.answers(dataset.test), task.answers(dataset.val)
    right, people = correct_predictions(logits["test"], y, task), dataset.test.identity
    low, high = mean_over_labels_interval(right, y != MISSING, people, seed=seed)
    balanced_low, balanced_high = balanced_accuracy_interval(right, y, people, num_values=task.num_values, seed=seed)
    guess = majority_logits(dataset, task, rows=len(y))
    return {
        "accuracy": mean_accuracy(logits["test"], y, task),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": mean_balanced_accuracy(logits["test"], y, task),
        "balanced_accuracy_low": balanced_low,
        "balanced_accuracy_high": balanced_high,
        "majority_accuracy": mean_accuracy(guess, y, task),
        "majority_balanced_accuracy": mean_balanced_accuracy(guess, y, task),
        "dead_labels": dead_labels(logits["test"], y, task),
        "val_accuracy": mean_accuracy(logits["val"], y_val, task),
        "val_balanced_accuracy": mean_balanced_accuracy(logits["val"], y_val, task),
    }


def label_metrics(logits: np.ndarray, dataset: Dataset, task: Task, *, seed: int) -> list[dict[str, Any]]:
    """Accuracy, balanced accuracy and accuracy of the majority guess on the test split, for each label of the task, with intervals
    over people. The balanced accuracy is the mean recall of the label's values that occur, (TPR + TNR) / 2 of a binary label; it is
    None if fewer than two values occur. All numbers are None for a label without any answer in the test split.

    logits: (N, num_logits) of `test`.
    """
    y, people = task.answers(dataset.test), dataset.test.identity
    accuracy_ends, balanced_ends = accuracy_intervals(
        correct_predictions(logits, y, task), y, people, num_values=task.num_values, seed=seed
    )
    numbers = {
        "accuracy": accuracy(logits, y, task),
        "accuracy_low": accuracy_ends[:, 0],
        "accuracy_high": accuracy_ends[:, 1],
        "balanced_accuracy": balanced_accuracy(logits, y, task),
        "balanced_accuracy_low": balanced_ends[:, 0],
        "balanced_accuracy_high": balanced_ends[:, 1],
        "majority_accuracy": accuracy(majority_logits(dataset, task, rows=len(y)), y, task),
    }
    return [
        {"name": name} | {key: float(values[i]) if np.isfinite(values[i]) else None for key, values in numbers.items()}
        for i, name in enumerate(task.names)
    ]

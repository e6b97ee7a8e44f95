"""Accuracy of the utility head on the task: averaged over the labels, and for each label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpgan_ray.data import Dataset, label_columns, majority_logits
from cpgan_ray.evaluation.scoring import accuracy_intervals, balanced_accuracy_interval, mean_interval
from cpgan_ray.training.losses import (
    accuracy,
    balanced_accuracy,
    correct_predictions,
    dead_labels,
    is_multiclass,
    mean_balanced_accuracy,
)


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of a utility head to the test split. Intervals that cross seeds and people need only this."""

    right: np.ndarray  # (N, L) bool, whether the answer is right
    labels: np.ndarray  # (N, L) uint8, the true values


def head_answers(logits: Mapping[str, np.ndarray], dataset: Dataset, labels: tuple[str, ...]) -> Answers:
    """The answers to the test split. logits: (N, L or C) of `test`."""
    y = dataset.test.labels[:, label_columns(dataset, labels)]
    return Answers(correct_predictions(logits["test"], y), y.astype(np.uint8))


def utility_metrics(logits: Mapping[str, np.ndarray], dataset: Dataset, labels: tuple[str, ...], *, seed: int) -> dict[str, float]:
    """On the test split: accuracy and balanced accuracy with intervals over people, both of the majority guess, and the number of
    dead labels; averaged over the labels of the task. On the validation split: both accuracies, by which a search selects.

    logits: (N, L or C) of `test` and `val`.
    """
    columns = label_columns(dataset, labels)
    y, y_val = dataset.test.labels[:, columns], dataset.val.labels[:, columns]
    right = correct_predictions(logits["test"], y)
    low, high = mean_interval(right.mean(axis=1), dataset.test.identity, seed=seed)
    balanced_low, balanced_high = low, high
    if (both := np.isfinite(balanced_accuracy(logits["test"], y))).any():  # as in `mean_balanced_accuracy`
        classes = np.unique(y) if is_multiclass(logits["test"], y) else np.array([0, 1])
        of_class = y[:, both, None] == classes
        balanced_low, balanced_high = balanced_accuracy_interval(right[:, both], of_class, dataset.test.identity, seed=seed)
    guess = majority_logits(dataset, labels, rows=len(y))
    return {
        "accuracy": float(right.mean(axis=1).mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": mean_balanced_accuracy(logits["test"], y),
        "balanced_accuracy_low": balanced_low,
        "balanced_accuracy_high": balanced_high,
        "majority_accuracy": float(accuracy(guess, y).mean()),
        "majority_balanced_accuracy": mean_balanced_accuracy(guess, y),
        "dead_labels": dead_labels(logits["test"], y),
        "val_accuracy": float(accuracy(logits["val"], y_val).mean()),
        "val_balanced_accuracy": mean_balanced_accuracy(logits["val"], y_val),
    }


def label_metrics(logits: np.ndarray, dataset: Dataset, labels: tuple[str, ...], *, seed: int) -> list[dict[str, Any]]:
    """Accuracy, balanced accuracy and accuracy of the majority guess on the test split, for each label of the task, with intervals
    over people. The balanced accuracy is (TPR + TNR) / 2; for a task of several classes it is their mean recall. It is None if one
    of the two values of a label does not occur.

    logits: (N, L or C) of `test`.
    """
    columns = label_columns(dataset, labels)
    y = dataset.test.labels[:, columns]
    classes = np.unique(y) if is_multiclass(logits, y) else np.array([0, 1])
    accuracy_ends, balanced_ends = accuracy_intervals(
        correct_predictions(logits, y), y[:, :, None] == classes, dataset.test.identity, seed=seed
    )
    numbers = {
        "accuracy": accuracy(logits, y),
        "accuracy_low": accuracy_ends[:, 0],
        "accuracy_high": accuracy_ends[:, 1],
        "balanced_accuracy": balanced_accuracy(logits, y),
        "balanced_accuracy_low": balanced_ends[:, 0],
        "balanced_accuracy_high": balanced_ends[:, 1],
        "majority_accuracy": accuracy(majority_logits(dataset, labels, rows=len(y)), y),
    }
    return [
        {"name": dataset.label_names[column]}
        | {key: float(values[i]) if np.isfinite(values[i]) else None for key, values in numbers.items()}
        for i, column in enumerate(columns)
    ]

"""Accuracy of the utility head on the task: averaged over the labels, and for each label."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpgan_ray.data import Dataset, label_columns, majority_logits
from cpgan_ray.evaluation.scoring import accuracy_intervals, mean_interval
from cpgan_ray.training.losses import (
    accuracy,
    balanced_accuracy,
    correct_predictions,
    dead_labels,
    is_multiclass,
    mean_balanced_accuracy,
)


def utility_metrics(logits: Mapping[str, np.ndarray], dataset: Dataset, labels: tuple[str, ...], *, seed: int) -> dict[str, float]:
    """On the test split: accuracy with its interval over people, balanced accuracy, and the accuracy of the majority guess,
    averaged over the labels of the task; and the number of dead labels. On the validation split: accuracy, by which a search
    selects.

    logits: (N, L or C) of `test` and `val`.
    """
    columns = label_columns(dataset, labels)
    y = dataset.test.labels[:, columns]
    right = correct_predictions(logits["test"], y).mean(axis=1)
    low, high = mean_interval(right, dataset.test.identity, seed=seed)
    return {
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": mean_balanced_accuracy(logits["test"], y),
        "dead_labels": dead_labels(logits["test"], y),
        "majority_accuracy": float(accuracy(majority_logits(dataset, labels, rows=len(y)), y).mean()),
        "val_accuracy": float(accuracy(logits["val"], dataset.val.labels[:, columns]).mean()),
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

"""How well the utility head answers the task: averaged over its labels, and label by label."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cpgan_ray.data import Dataset, label_columns, majority_logits
from cpgan_ray.evaluation.scoring import accuracy_intervals, mean_interval
from cpgan_ray.training.losses import accuracy, balanced_accuracy, correct_predictions, is_multiclass, mean_balanced_accuracy


def utility_of(logits: Mapping[str, np.ndarray], dataset: Dataset, labels: tuple[str, ...], *, seed: int) -> dict[str, float]:
    """Accuracy with its interval over people, balanced accuracy and that of the majority guess on the test split, averaged over the
    labels of the task; and accuracy on the validation split, by which a search selects.

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
        "majority_accuracy": float(accuracy(majority_logits(dataset, labels, rows=len(y)), y).mean()),
        "val_accuracy": float(accuracy(logits["val"], dataset.val.labels[:, columns]).mean()),
    }


def labels_of(logits: np.ndarray, dataset: Dataset, labels: tuple[str, ...], *, seed: int) -> list[dict[str, Any]]:
    """The same on the test split for each label of the task by itself, with intervals over people. The balanced accuracy is
    (TPR + TNR) / 2, of several classes their mean recall; None where one of a label's two values does not occur.

    logits: (N, L or C) of `test`.
    """
    columns = label_columns(dataset, labels)
    y = dataset.test.labels[:, columns]
    classes = np.unique(y) if is_multiclass(logits, y) else np.array([0, 1])
    plain, balanced = accuracy_intervals(correct_predictions(logits, y), y[:, :, None] == classes, dataset.test.identity, seed=seed)
    numbers = {
        "accuracy": accuracy(logits, y),
        "accuracy_low": plain[:, 0],
        "accuracy_high": plain[:, 1],
        "balanced_accuracy": balanced_accuracy(logits, y),
        "balanced_accuracy_low": balanced[:, 0],
        "balanced_accuracy_high": balanced[:, 1],
        "majority_accuracy": accuracy(majority_logits(dataset, labels, rows=len(y)), y),
    }
    return [
        {"name": dataset.label_names[column]} | {key: float(v[i]) if np.isfinite(v[i]) else None for key, v in numbers.items()}
        for i, column in enumerate(columns)
    ]

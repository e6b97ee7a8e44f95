"""The task: which labels the utility head predicts, and with how many logits."""

from collections.abc import Sequence

import numpy as np

from cpgan_ray.data.datasets.celeba_tables import columns_of
from cpgan_ray.data.store import Dataset
from cpgan_ray.errors import InputError


def label_columns(dataset: Dataset, labels: Sequence[str]) -> np.ndarray:
    """The columns of `Split.labels` for the task `config.data.labels`; all columns if `labels` is empty: int64 (L,).

    Raises:
        InputError: a label does not exist or is given twice, or a label of several classes is not the only one.
    """
    columns = columns_of(dataset.label_names, labels)
    names = [dataset.label_names[column] for column in columns]
    if len(names) > 1 and (multiclass := [name for name in names if name in dataset.info.classes]):
        raise InputError(f"data.labels: {multiclass[0]!r} has several classes and must be the only label: give it alone")
    return columns


def ensure_learnable(dataset: Dataset, labels: Sequence[str]) -> None:
    """Check that each label of the task has at least two values in the training pictures.

    Raises:
        InputError: a label has the same value in all training pictures.
    """
    columns = label_columns(dataset, labels)
    varies = np.ptp(dataset.train.labels[:, columns], axis=0) > 0
    if varies.all():
        return
    names = [dataset.label_names[i] for i in columns]
    constant, others = ([name for name, v in zip(names, varies, strict=True) if v == wanted] for wanted in (False, True))
    raise InputError(
        f"data.labels: {', '.join(constant)} has one value in all {len(dataset.train)} training pictures, nothing can be learnt: "
        + (f"leave it out, with --data.labels {' '.join(others)}" if others else "give another label with --data.labels")
    )


def class_names(dataset: Dataset, labels: Sequence[str]) -> Sequence[str] | None:
    """The class names if the task is one label with several classes; None if its labels are 0/1."""
    return dataset.info.classes.get(dataset.label_names[label_columns(dataset, labels)[0]])


def label_frequencies(dataset: Dataset, labels: Sequence[str]) -> np.ndarray:
    """The relative frequency of 1 for each label (L,), or of each class (C,), in the training split: float64, one for each
    logit."""
    y = dataset.train.labels[:, label_columns(dataset, labels)]
    classes = class_names(dataset, labels)
    return y.mean(axis=0, dtype=np.float64) if classes is None else np.bincount(y[:, 0], minlength=len(classes)) / len(y)


def majority_logits(dataset: Dataset, labels: Sequence[str], *, rows: int) -> np.ndarray:
    """Logits (rows, L or C) of a constant prediction: each label's more frequent value in the training split, or the most frequent
    class."""
    frequencies = label_frequencies(dataset, labels)
    guess = frequencies - 0.5 if class_names(dataset, labels) is None else frequencies
    return np.broadcast_to(guess, (rows, len(frequencies)))


def task_targets(dataset: Dataset, labels: Sequence[str], *, split: str) -> np.ndarray:
    """The correct answers of the task for a split, float32: labels (N, L), or one-hot classes (N, C)."""
    y = getattr(dataset, split).labels[:, label_columns(dataset, labels)]
    classes = class_names(dataset, labels)
    return y.astype(np.float32) if classes is None else np.eye(len(classes), dtype=np.float32)[y[:, 0]]

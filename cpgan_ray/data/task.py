"""The task: which labels the utility head answers, and in how many numbers."""

from collections.abc import Sequence

import numpy as np

from cpgan_ray.data.datasets.celeba_tables import columns_of
from cpgan_ray.data.store import Dataset
from cpgan_ray.errors import InputError


def label_columns(dataset: Dataset, labels: Sequence[str]) -> np.ndarray:
    """Columns of `Split.labels` that are the task `config.data.labels`, all where none are named: int64 (L,).

    Raises:
        InputError: a label does not exist or is given twice, or a label of several classes is not alone.
    """
    columns = columns_of(dataset.label_names, labels)
    names = [dataset.label_names[column] for column in columns]
    if len(names) > 1 and (several := [name for name in names if name in dataset.info.classes]):
        raise InputError(f"data.labels: {several[0]!r} has several classes and must be the only label: give it alone")
    return columns


def ensure_learnable(dataset: Dataset, labels: Sequence[str]) -> None:
    """Raises: InputError where a label of the task has one value in all training pictures: nothing can be learnt of it."""
    columns = label_columns(dataset, labels)
    varies = np.ptp(dataset.train.labels[:, columns], axis=0) > 0
    if varies.all():
        return
    names = [dataset.label_names[i] for i in columns]
    fixed, others = ([name for name, v in zip(names, varies, strict=True) if v == wanted] for wanted in (False, True))
    raise InputError(
        f"data.labels: {', '.join(fixed)} has one value in all {len(dataset.train)} training pictures, there is nothing to learn: "
        + (f"leave it out, with --data.labels {' '.join(others)}" if others else "give another label with --data.labels")
    )


def class_names(dataset: Dataset, labels: Sequence[str]) -> Sequence[str] | None:
    """The names of the classes where the task is one label of several; None where its labels are 0/1."""
    return dataset.info.classes.get(dataset.label_names[label_columns(dataset, labels)[0]])


def shares(dataset: Dataset, labels: Sequence[str]) -> np.ndarray:
    """Of the training split, each label's share of ones (L,), or each class's share (C,), float64: as many as there are logits."""
    y = dataset.train.labels[:, label_columns(dataset, labels)]
    classes = class_names(dataset, labels)
    return y.mean(axis=0, dtype=np.float64) if classes is None else np.bincount(y[:, 0], minlength=len(classes)) / len(y)


def majority_logits(dataset: Dataset, labels: Sequence[str], *, rows: int) -> np.ndarray:
    """Logits (rows, L or C) of always guessing each label's commoner training value, or the commonest class."""
    share = shares(dataset, labels)
    guess = share - 0.5 if class_names(dataset, labels) is None else share
    return np.broadcast_to(guess, (rows, len(share)))


def answers(dataset: Dataset, labels: Sequence[str], *, split: str) -> np.ndarray:
    """What any useful z tells of a split, float32: the task's labels (N, L), a label of several classes as indicators (N, C)."""
    y = getattr(dataset, split).labels[:, label_columns(dataset, labels)]
    classes = class_names(dataset, labels)
    return y.astype(np.float32) if classes is None else np.eye(len(classes), dtype=np.float32)[y[:, 0]]

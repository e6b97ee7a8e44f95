"""The task: which labels the utility head predicts, and which logits belong to which label.

A label has two values and one logit, which is positive for the second value; or it has C > 2 classes and C logits, of which the
largest belongs to the answer. A task may mix both kinds. An answer that is not known has the value `MISSING`: it counts neither in
a loss nor in an accuracy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cpgan_ray.data.datasets.celeba_tables import columns_of
from cpgan_ray.data.store import MISSING, SPLITS, Dataset, Split
from cpgan_ray.errors import InputError

TASK_FIELD, LATE_FIELD = "data.labels", "data.late_labels"
"""The fields of the configuration that name the labels of the task, and those of late tasks."""
NO_NAMES = ("0", "1")
"""Names of the values of a label without class names."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A label of a task."""

    name: str
    column: int
    """Its column in `Split.labels`."""
    values: tuple[str, ...]
    """The names of its values 0, 1, ..., at least two."""
    first_logit: int

    @property
    def binary(self) -> bool:
        """Whether it has one logit for two values, instead of a logit for each value."""
        return len(self.values) == 2

    @property
    def logits(self) -> slice:
        """Its columns in the logits of the task."""
        return slice(self.first_logit, self.first_logit + (1 if self.binary else len(self.values)))


@dataclass(frozen=True)
class Task:
    """The labels of a task, in the order of their logits."""

    labels: tuple[Label, ...]

    @staticmethod
    def of(
        names: Sequence[str], *, classes: Mapping[str, Sequence[str]] | None = None, columns: Iterable[int] | None = None
    ) -> "Task":
        """The task of some labels of a table, in the order of `columns`; None: of all.

        names: of all columns of the table. classes: label -> names of its values; labels without names have the values 0 and 1.
        """
        labels: list[Label] = []
        for column in range(len(names)) if columns is None else columns:
            values = tuple((classes or {}).get(names[column], NO_NAMES))
            first_logit = labels[-1].logits.stop if labels else 0
            labels.append(Label(name=names[column], column=int(column), values=values, first_logit=first_logit))
        return Task(tuple(labels))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def num_logits(self) -> int:
        """The number of outputs of a utility head."""
        return self.labels[-1].logits.stop

    @property
    def num_values(self) -> tuple[int, ...]:
        """The number of values of each label."""
        return tuple(len(label.values) for label in self.labels)

    @property
    def chance(self) -> float:
        """The mean over the labels of 1 / number of values: the balanced accuracy of any constant answer."""
        return float(np.mean([1 / count for count in self.num_values]))

    @cached_property
    def columns(self) -> np.ndarray:
        """The columns of `Split.labels`: int64 (L,)."""
        return np.array([label.column for label in self.labels], np.int64)

    @cached_property
    def binary(self) -> list[int]:
        """The positions of the binary labels in the task."""
        return [i for i, label in enumerate(self.labels) if label.binary]

    def answers(self, split: Split) -> np.ndarray:
        """The true answers of a split: int8 (N, L), `MISSING` where an answer is not known."""
        return np.ascontiguousarray(split.labels[:, self.columns])


def task_of(dataset: Dataset, labels: Sequence[str], *, field: str = TASK_FIELD) -> Task:
    """The task `config.data.labels` of a data set; all its labels if `labels` is empty. field: of the configuration, which names
    the labels.

    Raises:
        InputError: a label does not exist or is given twice.
    """
    columns = columns_of(dataset.label_names, labels, field=field)
    return Task.of(dataset.label_names, classes=dataset.info.classes, columns=columns.tolist())


def ensure_learnable(dataset: Dataset, task: Task, *, field: str = TASK_FIELD) -> None:
    """Check that each label of the task has at least two values in the training pictures, and that each split has answers. field:
    of the configuration, which names the labels.

    Raises:
        InputError: a label has at most one value in the training pictures, or a split has no answers at all.
    """
    flag = f"--{field.replace('_', '-')}"
    counts = value_counts(task.answers(dataset.train), task)
    varies = [bool((of_label > 0).sum() > 1) for of_label in counts]
    if not all(varies):
        constant, others = ([n for n, v in zip(task.names, varies, strict=True) if v == wanted] for wanted in (False, True))
        first = task.names.index(constant[0])
        value = "one value in all" if counts[first].sum() == len(dataset.train) else "fewer than two values in the"
        raise InputError(
            f"{field}: {', '.join(constant)} has {value} {len(dataset.train)} training pictures, nothing can be learnt: "
            + (f"leave it out, with {flag} {' '.join(others)}" if others else f"give another label with {flag}")
        )
    for name in SPLITS:
        if not (task.answers(dataset.splits[name]) != MISSING).any():
            raise InputError(
                f"{field}: all answers of the {name} split to {', '.join(task.names)} are missing, nothing can be measured: "
                f"give another label with {flag}, or add answers"
            )


def value_counts(y: np.ndarray, task: Task) -> list[np.ndarray]:
    """For each label the number of rows with each of its values, int64 (C,). y: (N, L)."""
    return [np.bincount(column[column != MISSING], minlength=count) for column, count in zip(y.T, task.num_values, strict=True)]


def label_frequencies(dataset: Dataset, task: Task) -> np.ndarray:
    """The relative frequency of the value that each logit stands for, among the known answers of the training split: float64, one
    for each logit. A binary label has the frequency of its second value."""
    return frequencies(task.answers(dataset.train), task)


def frequencies(y: np.ndarray, task: Task) -> np.ndarray:
    """`label_frequencies` of some rows y (N, L)."""
    shares = [counts / max(1, counts.sum()) for counts in value_counts(y, task)]
    return np.concatenate([of[1:] if label.binary else of for of, label in zip(shares, task.labels, strict=True)])


def majority_logits(dataset: Dataset, task: Task, *, rows: int) -> np.ndarray:
    """Logits (rows, num_logits) of a constant answer: each label's most frequent value in the training split."""
    guess = label_frequencies(dataset, task)
    guess[[label.first_logit for label in task.labels if label.binary]] -= 0.5
    return np.broadcast_to(guess, (rows, len(guess)))


def task_targets(dataset: Dataset, task: Task, *, split: str) -> np.ndarray:
    """The true answers of a split as numbers, float32 (N, M): a column for each binary label (0 or 1), and one for each class of
    the others (one-hot).

    A label of which an answer is missing in any split has one column more, which is 1 where the answer is missing. Its other
    columns are 0.5 there for a binary label and 0 for classes, equally far from all values. The numbers thus hold exactly the
    answers that exist.
    """
    y, columns = task.answers(dataset.splits[split]), []
    incomplete = np.any([(task.answers(part) == MISSING).any(axis=0) for part in dataset.splits.values()], axis=0)
    for column, label, has_missing in zip(y.T, task.labels, incomplete, strict=True):
        missing = column == MISSING
        one_hot = np.where(missing[:, None], 0.0, np.eye(len(label.values))[np.where(missing, 0, column)])
        columns.append(np.where(missing, 0.5, column)[:, None] if label.binary else one_hot)
        columns.append(missing[:, None][:, : int(has_missing)])
    return np.concatenate(columns, axis=1).astype(np.float32)


def missing_answers(dataset: Dataset, task: Task) -> list[dict[str, int]]:
    """For each label the number of missing answers in each split."""
    counts = {name: (task.answers(split) == MISSING).sum(axis=0).tolist() for name, split in dataset.splits.items()}
    return [{name: of_split[i] for name, of_split in counts.items()} for i in range(len(task.labels))]


def describe_task(dataset: Dataset, task: Task) -> dict[str, Any]:
    """The report's entry on the task: the number of samples in each split; for each label its name, the names of its values, its
    logits (first, one after the last), and the number of missing answers in each split."""
    labels = [
        {"name": label.name, "values": list(label.values), "logits": [label.logits.start, label.logits.stop], "missing": missing}
        for label, missing in zip(task.labels, missing_answers(dataset, task), strict=True)
    ]
    samples = {name: len(split) for name, split in dataset.splits.items()}
    return {"num_logits": task.num_logits, "samples": samples, "labels": labels}

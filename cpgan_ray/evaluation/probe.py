"""Classifiers of z for encoders without a utility head: can the task be answered from the codes at all?"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from cpgan_ray.data import Dataset, Task
from cpgan_ray.data.store import MISSING
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.training.accuracy import mean_accuracy

PROBE_ROWS = {"train": 5000, "val": 2000, "test": 2000}
NEIGHBOURS = (5, 25)
PENALTIES = (1.0, 100.0)


def probe_logits(codes: Codes, dataset: Dataset, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Answers (n, num_logits) to some test rows, and the numbers (n,) of these rows. Linear and nearest-neighbour classifiers of
    standardised codes are trained on training rows; the one that is best on validation rows answers."""
    rows = {name: np.linspace(0, len(codes[name]) - 1, min(n, len(codes[name]))).astype(int) for name, n in PROBE_ROWS.items()}
    center, scale = codes["train"].mean(axis=0), codes["train"].std(axis=0)
    z = {name: (codes[name][rows_] - center) / np.where(scale > 0, scale, 1) for name, rows_ in rows.items()}
    y = {name: task.answers(dataset.splits[name])[rows_] for name, rows_ in rows.items()}
    best, best_logits = -1.0, np.empty(())
    for val, test in fitted_logits(z, y["train"], task):
        score = mean_accuracy(val, y["val"], task)
        if best_logits.ndim == 0 or score > best:
            best, best_logits = score, test
    return best_logits, rows["test"]


def fitted_logits(z: Mapping[str, np.ndarray], y: np.ndarray, task: Task) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits (n, num_logits) of each kind of classifier on `val` and `test`, fitted on z of `train` (N, k) and its answers (N, L).

    Labels that are known for the same rows are fitted together.
    """
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    patterns, group = np.unique(y != MISSING, axis=1, return_inverse=True)
    kinds: list[Callable[[int], Any]] = [
        *(lambda rows, penalty=penalty: Ridge(penalty) for penalty in PENALTIES),
        *(lambda rows, n=n: KNeighborsRegressor(min(n, rows)) for n in NEIGHBOURS),
    ]
    for kind in kinds:
        logits = [np.zeros((len(z[name]), task.num_logits)) for name in ("val", "test")]
        for number, known in enumerate(patterns.T):
            labels = np.flatnonzero(group == number).tolist()
            if not known.any():
                continue
            columns = np.concatenate([np.arange(task.num_logits)[task.labels[i].logits] for i in labels])
            model = kind(int(known.sum()))
            model.fit(z["train"][known], np.concatenate([targets(y[known, i], task, i) for i in labels], axis=1))
            for values, name in zip(logits, ("val", "test"), strict=True):
                values[:, columns] = np.asarray(model.predict(z[name])).reshape(len(values), -1)
        for values in logits:
            values[:, [task.labels[i].first_logit for i in task.binary]] -= 0.5
        yield logits[0], logits[1]


def targets(answers: np.ndarray, task: Task, i: int) -> np.ndarray:
    """The known answers (n,) to a label as regression targets: (n, 1) of 0 and 1, or one-hot (n, C)."""
    label = task.labels[i]
    return answers[:, None].astype(np.float32) if label.binary else np.eye(len(label.values), dtype=np.float32)[answers]

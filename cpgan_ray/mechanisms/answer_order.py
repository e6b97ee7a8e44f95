"""Which answers to leave out first: those that show most about the picture for what they are worth."""

from collections.abc import Mapping, Sequence

import numpy as np

from cpgan_ray.common.types import Batch
from cpgan_ray.data import Dataset, Task, majority_logits
from cpgan_ray.data.answers import answer_numbers
from cpgan_ray.data.batching import plain_batch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection, targets
from cpgan_ray.training.accuracy import accuracy, predictions

RIDGE = 1e-3
"""The share of the mean variance of the answers that is added to the diagonal of their covariance."""
MIN_GAIN = 1e-6
"""A smaller loss of R2 counts as this."""
BLOCK = 500


def private_order(logits: Mapping[str, np.ndarray], dataset: Dataset, task: Task) -> list[int]:
    """The positions of all labels, the one that is left out last first; see `private_prices`."""
    return list(private_prices(logits, dataset, task))[::-1]


def private_prices(logits: Mapping[str, np.ndarray], dataset: Dataset, task: Task) -> dict[int, float]:
    """The position of each label, the one that is left out first first, and its price: the accuracy that is then lost per R2 that
    the attacker loses.

    Greedy: of the labels that are left, the next one to be left out loses the least accuracy per R2 that the attacker loses. The
    accuracy lost is that of the majority guess, on `val`. R2 is that of a ridge attack on the hard answers that are left, fitted on
    `train` and scored on `val` in the principal components. The test split is not read.

    logits: those of the undefended twin, (N, num_logits) of `train` and `val`.
    """
    hard = {split: predictions(logits[split], task) for split in ("train", "val")}
    y = task.answers(dataset.val)
    guess = majority_logits(dataset, task, rows=len(y))
    worth = np.nan_to_num(accuracy(logits["val"], y, task) - accuracy(guess, y, task)) / len(task.labels)
    attack = AnswersAttack({split: answer_numbers(hard[split], task) for split in hard}, dataset)
    columns = columns_of(task)
    left, prices = list(range(len(task.labels))), dict[int, float]()
    while left:
        now = attack.r2([c for i in left for c in columns[i]])

        def price(label: int, now: float = now) -> tuple[float, float]:
            """Accuracy that is lost per R2 that the attacker loses; among answers that are worth nothing, the one that shows most
            goes first."""
            less = now - attack.r2([c for i in left if i != label for c in columns[i]])
            return float(max(worth[label], 0.0) / max(less, MIN_GAIN)), -less

        first = min(left, key=price)
        prices[first] = price(first)[0]
        left.remove(first)
    return prices


def columns_of(task: Task) -> list[list[int]]:
    """The columns of each label in `answer_numbers`."""
    widths = [1 if label.binary else len(label.values) for label in task.labels]
    ends = np.cumsum(widths)
    return [list(range(end - width, end)) for width, end in zip(widths, ends.tolist(), strict=True)]


class AnswersAttack:
    """A ridge attack on any of the columns of some answers, fitted on `train` and scored on `val`, from second moments alone."""

    def __init__(self, numbers: Mapping[str, np.ndarray], dataset: Dataset) -> None:
        """numbers: (N, M) of `train` and `val`."""
        basis = projection(dataset, components=DEFAULT_COMPONENTS, progress=False)
        batch = plain_batch(np.arange(len(dataset.val)))
        blocks = [targets(basis, dataset.val, block) for block in blocks_of(batch)]
        y_val, residual = (np.concatenate(parts).astype(np.float64) for parts in zip(*blocks, strict=True))
        y = np.asarray(basis.coordinates, np.float64)
        mean, shift = numbers["train"].mean(axis=0, dtype=np.float64), y.mean(axis=0)
        x, x_val = (numbers[split] - mean for split in ("train", "val"))
        y_val = y_val - shift
        self.gram = x.T @ x / len(x)
        self.gram[np.diag_indices_from(self.gram)] += RIDGE * max(np.trace(self.gram) / len(mean), 1e-12)
        self.cross = x.T @ (y - shift) / len(x)
        self.val_gram, self.val_cross = x_val.T @ x_val, x_val.T @ y_val
        self.total = float(np.square(y_val).sum() + residual.sum())

    def r2(self, columns: Sequence[int]) -> float:
        """R2 of the attack on these columns; to first order its mean reconstruction is the mean training picture, as without any
        columns."""
        if not columns:
            return 0.0
        from scipy import linalg  # takes 0.1 s

        weights = linalg.solve(self.gram[np.ix_(columns, columns)], self.cross[columns], assume_a="pos")
        explained = (
            2 * (weights * self.val_cross[columns]).sum() - ((self.val_gram[np.ix_(columns, columns)] @ weights) * weights).sum()
        )
        return float(explained / self.total)


def blocks_of(batch: Batch) -> list[Batch]:
    return [batch[slice(start, start + BLOCK)] for start in range(0, len(batch.rows), BLOCK)]

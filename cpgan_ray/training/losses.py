"""Pure functions for the game's quantities: utility loss and accuracy, R2, privacy term, aggregate of several adversaries.

The paper (Tseng and Wu 2020) minimises lambda * L_U - L_R. Here: L_U + privacy_weight * P, privacy_weight = 1 / lambda.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def utility_loss(logits: Tensor, y: Tensor, *, positive_share: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over rows and labels. Binary labels: logits (B, L) and y (B, L) in {0, 1}. One multiclass label: logits
    (B, C) and y (B, 1) in 0..C-1.

    positive_share: share of ones of each label (L,), or share of each class (C,), in the training set. If given, both values of a
    label, or all classes, have the same total weight.
    """
    share = None if positive_share is None else positive_share.clamp(1e-3, 1 - 1e-3)
    if is_multiclass(logits, y):
        return F.cross_entropy(logits, y[:, 0].long(), weight=None if share is None else 1 / (len(share) * share))
    if share is None:
        return F.binary_cross_entropy_with_logits(logits, y)
    weight = 0.5 * (y / share + (1 - y) / (1 - share))
    return F.binary_cross_entropy_with_logits(logits, y, weight=weight)


def utility_normalizer(y: Tensor, *, multiclass: bool, positive_share: Tensor | None = None) -> Tensor:
    """The denominator of `utility_loss`, a scalar: the number of rows, or with class weights the sum of the rows' weights.

    The loss of a batch is the mean of the losses of its parts, weighted by their denominators.
    """
    if positive_share is None or not multiclass:
        return y.new_tensor(float(len(y)))
    share = positive_share.clamp(1e-3, 1 - 1e-3)
    return (1 / (len(share) * share))[y[:, 0].long()].sum()


def is_multiclass(logits: Tensor | np.ndarray, y: Tensor | np.ndarray) -> bool:
    """Whether the task is one multiclass label, logits (N, C) and y (N, 1), instead of L binary labels, y (N, L)."""
    return logits.shape[1] != y.shape[1]


def correct_predictions(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether the prediction of each label is correct, bool (N, L). See `utility_loss` for the shapes."""
    return logits.argmax(axis=1, keepdims=True) == y if is_multiclass(logits, y) else (logits > 0) == (y > 0)


def accuracy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of correct predictions of each label, (L,) float64."""
    return correct_predictions(logits, y).mean(axis=0, dtype=np.float64)


def balanced_accuracy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(TPR + TNR) / 2 of each label, (L,); NaN if one of its two values does not occur. Multiclass: mean recall of the classes that
    occur, (1,)."""
    correct, positive = correct_predictions(logits, y), y > 0
    if is_multiclass(logits, y):
        return np.array([np.mean([correct[y == c].mean() for c in np.unique(y)])])
    with np.errstate(invalid="ignore"):
        rates = [np.where(side, correct, 0).sum(axis=0) / side.sum(axis=0) for side in (positive, ~positive)]
    return (rates[0] + rates[1]) / 2


DEAD = 1.1
"""A label is dead if its balanced accuracy is below this multiple of chance: 0.55 for a label of two values."""


def dead_labels(logits: np.ndarray, y: np.ndarray) -> int:
    """Number of labels that are answered no better than by chance: balanced accuracy below 0.55. Labels with only one value do not
    count. Multiclass: number of classes with a recall below 1.1 / C.
    """
    if is_multiclass(logits, y):
        correct = correct_predictions(logits, y)
        return sum(float(correct[y == c].mean()) < DEAD / logits.shape[1] for c in np.unique(y))
    return int((balanced_accuracy(logits, y) < DEAD / 2).sum())


def mean_balanced_accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    """Mean of `balanced_accuracy` over the labels of which both values occur. If there is no such label: mean accuracy."""
    balanced = balanced_accuracy(logits, y)
    return float(np.mean(balanced[np.isfinite(balanced)] if np.isfinite(balanced).any() else accuracy(logits, y)))


def r2_from_errors(errors: Tensor, mean_errors: Tensor) -> Tensor:
    """R2 = 1 - MSE / MSE(mean predictor), a scalar, from each row's squared error and the mean picture's squared error, both
    (S,)."""
    return 1 - errors.mean() / mean_errors.mean()


def privacy_term(errors: Tensor, mean_errors: Tensor, *, kind: Literal["recovered", "negated_mse"]) -> Tensor:
    """The term that the privatizer minimises, a scalar: max(R2, 0) (`recovered`), or the paper's -L_R (`negated_mse`)."""
    if kind == "negated_mse":
        return -errors.mean()
    return r2_from_errors(errors, mean_errors).clamp(min=0)


def aggregate_weights(
    r2: Sequence[float], *, kind: Literal["strongest", "softmax", "mean"], temperature: float = 0.05
) -> np.ndarray:
    """Weight (K,) of each adversary's gradient in the aggregate's gradient. Adversaries are compared by R2, never by raw losses.

    `strongest`: only the largest R2 (the paper's min-MSE rule). `mean`: 1 / K each. `softmax`: exp(r2 / T), normalised, which is
    the gradient of the smooth maximum T log sum exp(r2 / T).
    """
    scores = np.asarray(r2, dtype=np.float64)
    if kind == "mean":
        return np.full(len(scores), 1 / len(scores))
    if kind == "strongest":
        return (np.arange(len(scores)) == scores.argmax()).astype(np.float64)
    weights = np.exp((scores - scores.max()) / temperature)
    return weights / weights.sum()


def row_errors(predicted: Tensor, target: Tensor, residual: Tensor, *, dimension: int) -> Tensor:
    """Mean squared error of each row, (B,): squared error inside the target's space plus outside of it, divided by `dimension`.

    predicted, target: (B, p); residual: (B,) squared norm outside the p components (0 if the targets are pixels).
    """
    return (torch.sum((predicted - target) ** 2, dim=1) + residual) / dimension

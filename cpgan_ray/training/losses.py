"""The numbers of the game as pure functions: utility loss and accuracy, R2, the privacy term, the aggregate of several adversaries.

The paper (Tseng and Wu 2020) minimises lambda * L_U - L_R. Here: L_U + privacy_weight * P, privacy_weight = 1 / lambda.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def utility_loss(logits: Tensor, y: Tensor, *, positive_share: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over rows and labels: of logits (B, L) with y (B, L) in {0, 1}, or of logits (B, C) with y (B, 1), one
    label's class in 0..C-1.

    With `positive_share`, each label's share (L,) of ones or each class's share (C,) in training, the values weigh the same.
    """
    share = None if positive_share is None else positive_share.clamp(1e-3, 1 - 1e-3)
    if of_classes(logits, y):
        return F.cross_entropy(logits, y[:, 0].long(), weight=None if share is None else 1 / (len(share) * share))
    if share is None:
        return F.binary_cross_entropy_with_logits(logits, y)
    weight = 0.5 * (y / share + (1 - y) / (1 - share))
    return F.binary_cross_entropy_with_logits(logits, y, weight=weight)


def utility_mass(y: Tensor, *, of_one_label: bool, positive_share: Tensor | None = None) -> Tensor:
    """What `utility_loss` divides by, in rows: their number, or of one label's weighted classes the sum of their weights; a scalar.

    The loss on a whole batch is the mean over its parts of theirs, weighted by this.
    """
    if positive_share is None or not of_one_label:
        return y.new_tensor(float(len(y)))
    share = positive_share.clamp(1e-3, 1 - 1e-3)
    return (1 / (len(share) * share))[y[:, 0].long()].sum()


def of_classes(logits: Tensor | np.ndarray, y: Tensor | np.ndarray) -> bool:
    """Whether logits (N, C) are of one label's classes, y (N, 1), and not of L labels that are 0/1, y (N, L)."""
    return logits.shape[1] != y.shape[1]


def right_answers(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bool (N, L): whether the answer to each label is right; see `utility_loss` for the shapes."""
    return logits.argmax(axis=1, keepdims=True) == y if of_classes(logits, y) else (logits > 0) == (y > 0)


def accuracy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of right answers of each label -> (L,) float64."""
    return right_answers(logits, y).mean(axis=0, dtype=np.float64)


def balanced_accuracy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(TPR + TNR) / 2 of each label -> (L,), NaN where one of the two values does not occur; of classes the mean recall of those
    that occur -> (1,)."""
    right, positive = right_answers(logits, y), y > 0
    if of_classes(logits, y):
        return np.array([np.mean([right[y == c].mean() for c in np.unique(y)])])
    with np.errstate(invalid="ignore"):
        rates = [np.where(side, right, 0).sum(axis=0) / side.sum(axis=0) for side in (positive, ~positive)]
    return (rates[0] + rates[1]) / 2


def mean_balanced_accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    """Mean of `balanced_accuracy` over the labels of which both values occur; of the accuracy where there is none such."""
    found = balanced_accuracy(logits, y)
    return float(np.mean(found[np.isfinite(found)] if np.isfinite(found).any() else accuracy(logits, y)))


def recovered_share(errors: Tensor, mean_errors: Tensor) -> Tensor:
    """R2 = 1 - MSE / MSE(mean predictor): from each row's squared error and that of the mean picture, both (S,), to a scalar."""
    return 1 - errors.mean() / mean_errors.mean()


def privacy_term(errors: Tensor, mean_errors: Tensor, *, kind: Literal["recovered", "negated_mse"]) -> Tensor:
    """What the privatizer wants small: R2 clipped below at 0 (`recovered`), or the paper's -L_R (`negated_mse`); a scalar."""
    if kind == "negated_mse":
        return -errors.mean()
    return recovered_share(errors, mean_errors).clamp(min=0)


def aggregate_weights(
    r2: Sequence[float], *, kind: Literal["strongest", "softmax", "mean"], temperature: float = 0.05
) -> np.ndarray:
    """Weight (K,) of each adversary's gradient in that of the aggregate; adversaries are compared on R2, never on raw losses.

    `strongest`: the largest R2 alone (the paper's min-MSE rule). `mean`: 1 / K each. `softmax`: exp(r2 / T), normalised: the
    gradient of the smooth maximum T log sum exp(r2 / T).
    """
    scores = np.asarray(r2, dtype=np.float64)
    if kind == "mean":
        return np.full(len(scores), 1 / len(scores))
    if kind == "strongest":
        return (np.arange(len(scores)) == scores.argmax()).astype(np.float64)
    weights = np.exp((scores - scores.max()) / temperature)
    return weights / weights.sum()


def row_errors(predicted: Tensor, target: Tensor, residual: Tensor, *, dimension: int) -> Tensor:
    """Mean squared error of each row, (B,): the part in the target's space plus what lies outside it, over all `dimension` values.

    predicted, target: (B, p); residual: (B,) squared norm outside the p components (0 where the target is the pixels).
    """
    return (torch.sum((predicted - target) ** 2, dim=1) + residual) / dimension

"""Pure functions for the game's quantities: utility loss, R2, privacy term, aggregate of several adversaries.

The paper (Tseng and Wu 2020) minimises lambda * L_U - L_R. Here: L_U + privacy_weight * P, privacy_weight = 1 / lambda.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cpgan_ray.data.store import MISSING
from cpgan_ray.data.task import Task


def utility_loss(
    logits: Tensor,
    y: Tensor,
    task: Task,
    *,
    positive_share: Tensor | None = None,
    label_weights: Tensor | None = None,
    normalizer: Tensor | None = None,
) -> Tensor:
    """L_U, a scalar: the mean over the labels of each label's cross-entropy (sigmoid or softmax) over the rows with an answer.

    L_U = 1 / L sum_l a_l / n_l sum_i w_il CE_il, with w_il = 0 where the answer is missing. A label without any answer adds 0.

    logits: (B, num_logits); y: (B, L), the true answers, `MISSING` where one is not known.
    positive_share: frequencies of the values in the training set (num_logits,), see `data.task.label_frequencies`. If given, all
        values of a label have the same total weight: w = 1 / (C frequency).
    label_weights: a (L,); None: 1 each. They are not normalised: the weight of one label does not change what the others count.
    normalizer: n (L,). None: `utility_normalizer` of these rows. The losses of the parts of a batch, each with the normalizer of
        the whole batch, add up to the loss of the batch.
    """
    share = None if positive_share is None else positive_share.clamp(1e-3, 1 - 1e-3)
    n = utility_normalizer(y, task, positive_share=positive_share) if normalizer is None else normalizer
    n = torch.where(n > 0, n, 1)
    parts: list[Tensor] = []
    if task.binary:
        columns = torch.tensor(task.binary, device=y.device)
        chosen = torch.tensor([task.labels[i].first_logit for i in task.binary], device=y.device)
        answers = y.index_select(1, columns)
        truth, weight = answers.clamp(min=0).to(logits.dtype), (answers != MISSING) * (len(y) / n[columns])
        if label_weights is not None:
            weight = weight * label_weights[columns]
        if share is not None:
            weight = 0.5 * (truth / share[chosen] + (1 - truth) / (1 - share[chosen])) * weight
        binary = F.binary_cross_entropy_with_logits(logits.index_select(1, chosen), truth, weight=weight)
        parts.append(binary * (len(task.binary) / len(task.labels)))
    for i, label in enumerate(task.labels):
        if not label.binary:
            weight = None if share is None else class_weights(share[label.logits])
            of_classes = logits[:, label.logits], y[:, i].long()
            total = F.cross_entropy(*of_classes, weight=weight, ignore_index=MISSING, reduction="sum")
            total = total if label_weights is None else label_weights[i] * total
            parts.append(total / n[i] / len(task.labels))
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


def wrong_answers(
    values: Tensor,
    y: Tensor,
    task: Task,
    *,
    soft: Tensor | None = None,
    soft_share: float = 0.0,
    positive_share: Tensor | None = None,
    label_weights: Tensor | None = None,
    normalizer: Tensor | None = None,
    num_rows: Tensor | float = 1.0,
) -> Tensor:
    """The expected share of wrong answers, a scalar: in place of the cross-entropy in `utility_loss` and `distillation_loss`, with
    an answer v in [-1, 1] that is the second value with probability (1 + v) / 2, and the probability p of that value (1 or 0 for a
    label that is known),

    1/2 (1 - v (2 p - 1)).

    It is linear in v, so it is exact for hard answers, and its gradient is the difference that a changed answer makes.

    values: (B, L) of labels of two values, in the order of the task; soft: the teachers' answers, with the weight `soft_share`;
    num_rows: see `distillation_loss`; the others: see `utility_loss`.
    """
    n = utility_normalizer(y, task) if normalizer is None else normalizer
    n = torch.where(n > 0, n, 1)
    truth, weight = y.clamp(min=0).to(values.dtype), (y != MISSING) / n
    if positive_share is not None:
        share = positive_share.clamp(1e-3, 1 - 1e-3)
        weight = 0.5 * (truth / share + (1 - truth) / (1 - share)) * weight
    if soft is not None:
        wrong = (1 - soft_share) * weight * _wrong(values, truth) + soft_share / num_rows * _wrong(values, soft)
    else:
        wrong = weight * _wrong(values, truth)
    return (wrong if label_weights is None else wrong * label_weights).sum() / len(task.labels)


def _wrong(values: Tensor, p: Tensor) -> Tensor:
    return (1 - values * (2 * p - 1)) / 2


def utility_normalizer(y: Tensor, task: Task, *, positive_share: Tensor | None = None) -> Tensor:
    """The denominators n of `utility_loss`, (L,): the number of rows with an answer, or for class weights of more than two classes
    the sum of these rows' weights."""
    n = (y != MISSING).sum(dim=0, dtype=torch.float32)
    if positive_share is not None:
        share = positive_share.clamp(1e-3, 1 - 1e-3)
        for i, label in enumerate(task.labels):
            if not label.binary:
                weights = class_weights(share[label.logits])[y[:, i].clamp(min=0).long()]
                n[i] = torch.where(y[:, i] != MISSING, weights, 0).sum()
    return n


def distillation_loss(
    logits: Tensor, soft: Tensor, task: Task, *, num_rows: Tensor | float, label_weights: Tensor | None = None
) -> Tensor:
    """The mean over the labels and rows of the cross-entropy between the teachers' answers and the logits, a scalar
    (G. Hinton, O. Vinyals, J. Dean, 2015, at temperature 1):

    1 / (L B) sum_l a_l sum_i sum_c -p_ilc log q_ilc, which is least where q = p. A row counts whether or not its true answer is
    known.

    logits: (B, num_logits); soft: the mean probabilities p of the teachers, in the same columns; num_rows: B, of the whole batch if
    these are the rows of a part of it. The losses of the parts add up to the loss of the batch. label_weights: a, see
    `utility_loss`.
    """
    total = torch.zeros((), dtype=logits.dtype, device=logits.device)
    if task.binary:
        columns = torch.tensor([task.labels[i].first_logit for i in task.binary], device=logits.device)
        own, target = logits.index_select(1, columns), soft.index_select(1, columns)
        weight = None if label_weights is None else label_weights[torch.tensor(task.binary, device=logits.device)]
        total = total + F.binary_cross_entropy_with_logits(own, target, weight=weight, reduction="sum")
    for i, label in enumerate(task.labels):
        if not label.binary:
            of_label = F.cross_entropy(logits[:, label.logits], soft[:, label.logits], reduction="sum")
            total = total + (of_label if label_weights is None else label_weights[i] * of_label)
    return total / num_rows / len(task.labels)


def class_weights(share: Tensor) -> Tensor:
    """Weights (C,) with which all classes of these frequencies (C,) have the same total weight."""
    return 1 / (len(share) * share)


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

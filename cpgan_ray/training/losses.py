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
    answers: Tensor,
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
    """The expected share of wrong answers, a scalar, in place of the cross-entropies of `utility_loss` and `distillation_loss`: the
    mean over rows and labels of

    1 - sum_c a_c p_c

    over the values c of a label, if value c is answered with probability a_c and is right with probability p_c (1 or 0 where the
    label is known). It is linear in a, so it is exact for hard answers, and its gradient is the difference that another answer
    makes.

    answers: a (B, num_logits), of the second value of a label of two values; soft: the teachers' answers p, in the same columns,
    with the weight `soft_share`; num_rows: see `distillation_loss`; the others: see `utility_loss`.
    """
    share = None if positive_share is None else positive_share.clamp(1e-3, 1 - 1e-3)
    n = utility_normalizer(y, task, positive_share=positive_share) if normalizer is None else normalizer
    total = answers.new_zeros(())
    for i, label in enumerate(task.labels):
        a, known = with_first(answers[:, label.logits]), y[:, i] != MISSING
        truth = F.one_hot(y[:, i].clamp(min=0).long(), a.shape[1]).to(a.dtype)
        weight = known / n[i].clamp(min=1e-12)
        if share is not None:
            weight = weight * (truth @ class_weights(with_first(share[label.logits])))
        wrong = (1 - soft_share if soft is not None else 1.0) * (weight * (1 - (a * truth).sum(1))).sum()
        if soft is not None:
            wrong = wrong + soft_share / num_rows * (1 - (a * with_first(soft[:, label.logits])).sum(1)).sum()
        total = total + (wrong if label_weights is None else label_weights[i] * wrong)
    return total / len(task.labels)


def with_first(p: Tensor) -> Tensor:
    """Probabilities (..., C) of all values of a label; of a label of two values p has only that of the second one."""
    return torch.cat([1 - p, p], dim=-1) if p.shape[-1] == 1 else p


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

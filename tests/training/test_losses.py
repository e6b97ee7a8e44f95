"""Tests of losses and weights against torch, scikit-learn, numpy and finite differences."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor
from torch.nn import functional as F

from cpgan_ray.data import Task
from cpgan_ray.data.store import MISSING
from cpgan_ray.training.losses import (
    aggregate_weights,
    distillation_loss,
    privacy_term,
    r2_from_errors,
    row_errors,
    utility_loss,
    utility_normalizer,
    wrong_answers,
)

torch.set_num_threads(1)

ROWS, LABELS = 200, 5
BINARY = Task.of([f"label{i}" for i in range(LABELS)])
MIXED = Task.of(["five", "bald", "four", "male"], classes={"five": "abcde", "four": "abcd", "male": ("woman", "man")})
"""Five classes, a binary label, four classes, a binary label with names of its values: logits 0-4, 5, 6-9 and 10."""


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Logits and binary labels; most labels are rare and predicted too seldom."""
    rng = np.random.default_rng(0)
    y = (rng.random((ROWS, LABELS)) < [0.04, 0.1, 0.2, 0.5, 0.97]).astype(np.int8)
    return (rng.normal(size=(ROWS, LABELS)) - 1 + y).astype(np.float32), y


def cross_entropies(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """-log of the predicted probability of each true value, in float64."""
    return np.log1p(np.exp(-np.where(y > 0, 1, -1) * logits.astype(np.float64)))


def test_utility_loss_is_the_mean_cross_entropy(answers):
    logits, y = answers
    loss = utility_loss(torch.from_numpy(logits), torch.from_numpy(y), BINARY)
    assert float(loss) == pytest.approx(cross_entropies(logits, y).mean(), rel=1e-5)


def test_class_weighted_utility_loss_is_the_mean_over_both_values(answers):
    logits, y = answers
    losses = cross_entropies(logits, y)
    by_label = [(losses[y[:, i] > 0, i].mean() + losses[y[:, i] == 0, i].mean()) / 2 for i in range(LABELS)]
    share = torch.from_numpy(y.mean(axis=0)).float()
    loss = utility_loss(torch.from_numpy(logits), torch.from_numpy(y), BINARY, positive_share=share)
    assert float(loss) == pytest.approx(np.mean(by_label), rel=1e-5)
    assert abs(float(loss) - losses.mean()) > 0.02, "the two losses should differ on these labels"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_class_weighted_loss_of_a_constant_label_is_finite(value):
    y = torch.full((8, 1), value)
    assert torch.isfinite(utility_loss(torch.randn(8, 1), y, Task.of(["label"]), positive_share=torch.tensor([value])))


@pytest.mark.parametrize(("error_ratio", "r2"), [(1.0, 0.0), (0.0, 1.0), (0.25, 0.75), (1.5, -0.5)])
def test_r2_from_errors_of_mean_and_perfect_predictions_is_0_and_1(error_ratio, r2):
    mean_errors = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    assert float(r2_from_errors(error_ratio * mean_errors, mean_errors)) == pytest.approx(r2, abs=1e-12)


def test_r2_from_errors_weighs_rows_by_their_variance():
    """R2 is a share of the total variance, not a mean over rows: rows that lose 1 of 1 and 0 of 3 lose 1 of 4."""
    assert float(r2_from_errors(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 3.0]))) == pytest.approx(0.75)


@pytest.mark.parametrize(("scale", "value", "slope"), [(0.5, 0.5, -0.25), (1.2, 0.0, 0.0), (3.0, 0.0, 0.0)])
def test_privacy_term_below_0_is_clipped_and_has_no_gradient(scale, value, slope):
    mean_errors = torch.tensor([1.0, 3.0], dtype=torch.float64)
    errors = (scale * mean_errors).requires_grad_()
    term = privacy_term(errors, mean_errors, kind="recovered")
    term.backward()
    assert float(term.detach()) == pytest.approx(value)
    assert errors.grad is not None
    assert errors.grad.tolist() == pytest.approx([slope, slope])


def test_privacy_term_negated_mse_is_not_clipped():
    errors = torch.tensor([1.0, 5.0], requires_grad=True)
    term = privacy_term(errors, torch.ones(2), kind="negated_mse")
    term.backward()
    assert float(term.detach()) == -3
    assert errors.grad is not None
    assert errors.grad.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize(
    ("r2", "weights"),
    [([0.3], [1]), ([0.1, 0.4, 0.2], [0, 1, 0]), ([-0.5, -2.0], [1, 0]), ([0.2, 0.2], [1, 0])],
)
def test_aggregate_weights_strongest_selects_the_largest_r2(r2, weights):
    assert aggregate_weights(r2, kind="strongest").tolist() == weights


def test_aggregate_weights_mean_are_equal():
    assert aggregate_weights([0.9, -3.0, 0.1, 0.2], kind="mean").tolist() == [0.25] * 4


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_aggregate_weights_softmax_are_the_smooth_maximums_gradient(temperature):
    r2, step = np.array([0.31, 0.28, -0.4, 0.33]), 1e-6

    def smooth_maximum(scores: np.ndarray) -> float:
        return temperature * np.logaddexp.reduce(scores / temperature)

    slopes = [(smooth_maximum(r2 + step * e) - smooth_maximum(r2 - step * e)) / (2 * step) for e in np.eye(4)]
    weights = aggregate_weights(r2.tolist(), kind="softmax", temperature=temperature)
    assert weights == pytest.approx(slopes, abs=1e-6)
    assert weights.sum() == pytest.approx(1, abs=1e-12)


def test_aggregate_weights_softmax_of_distant_scores_are_finite():
    assert aggregate_weights([-1e6, 0.5], kind="softmax", temperature=1e-3).tolist() == [0, 1]


def test_row_errors_on_components_equal_those_of_the_pictures():
    """|x - V'c'|^2 / D = (|Vx - c'|^2 + |x - V'Vx|^2) / D for orthonormal rows V."""
    rng = np.random.default_rng(1)
    x, basis = rng.normal(size=(6, 30)), np.linalg.qr(rng.normal(size=(30, 4)))[0].T
    guess = rng.normal(size=(6, 4))
    outside = np.square(x - x @ basis.T @ basis).sum(axis=1)
    errors = row_errors(torch.from_numpy(guess), torch.from_numpy(x @ basis.T), torch.from_numpy(outside), dimension=30)
    assert errors.numpy() == pytest.approx(np.square(x - guess @ basis).mean(axis=1), abs=1e-12)


# ---------------------------------------------------------------------------------------------- mixed tasks, missing answers


def mixed_answers(*, rows: int = 60, missing: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (rows, 11) float64 and answers (rows, 4) to MIXED."""
    rng = np.random.default_rng(seed)
    y = np.stack([rng.integers(0, count, rows) for count in MIXED.num_values], axis=1)
    y[rng.random(y.shape) < missing] = MISSING
    return torch.from_numpy(rng.normal(size=(rows, MIXED.num_logits))), torch.from_numpy(y.astype(np.int8))


def shares(y: Tensor) -> Tensor:
    """Frequencies of the values among the known answers, for each logit."""
    parts = []
    for i, label in enumerate(MIXED.labels):
        known = y[y[:, i] != MISSING, i].long()
        share = torch.bincount(known, minlength=len(label.values)) / len(known)
        parts.append(share[1:] if label.binary else share)
    return torch.cat(parts).double()


def losses_of_labels(logits: Tensor, y: Tensor) -> list[float]:
    """Each label's mean cross-entropy over the rows with an answer, by torch."""
    losses = []
    for i, label in enumerate(MIXED.labels):
        known = y[:, i] != MISSING
        own, truth = logits[known][:, label.logits], y[known, i]
        loss = F.binary_cross_entropy_with_logits(own[:, 0], truth.double()) if label.binary else F.cross_entropy(own, truth.long())
        losses.append(float(loss))
    return losses


def test_utility_loss_of_mixed_labels_is_the_mean_of_their_losses():
    logits, y = mixed_answers()
    assert float(utility_loss(logits, y, MIXED)) == pytest.approx(np.mean(losses_of_labels(logits, y)), abs=1e-6)
    known = y[:, 2] != MISSING
    by_scikit_learn = log_loss(y[known, 2], logits[known][:, 6:10].softmax(1), labels=range(4))
    assert losses_of_labels(logits, y)[2] == pytest.approx(by_scikit_learn)


def test_class_weighted_loss_of_mixed_labels_is_the_mean_over_values():
    logits, y = mixed_answers(rows=400)
    by_label = []
    for i, label in enumerate(MIXED.labels):
        own = logits[:, label.logits].numpy()
        own = np.concatenate([np.zeros_like(own), own], axis=1) if label.binary else own
        log_p = own - np.logaddexp.reduce(own, axis=1, keepdims=True)
        values = range(len(label.values))
        by_label.append(np.mean([-log_p[y[:, i] == value, value].mean() for value in values]))
    loss = utility_loss(logits, y, MIXED, positive_share=shares(y))
    assert float(loss) == pytest.approx(np.mean(by_label), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_utility_loss_gradient_equals_finite_differences(weighted):
    logits, y = mixed_answers(rows=7)
    share = shares(mixed_answers(rows=500)[1]) if weighted else None
    logits.requires_grad_()
    utility_loss(logits, y, MIXED, positive_share=share).backward()
    assert logits.grad is not None
    step, slopes = 1e-6, torch.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[index] += sign * step
            ends.append(utility_loss(moved, y, MIXED, positive_share=share))
        slopes[index] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(logits.grad, slopes, atol=1e-6, rtol=1e-5)
    for i, label in enumerate(MIXED.labels):
        assert not logits.grad[y[:, i] == MISSING, label.logits].any(), "a missing answer has no gradient"


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cuts", [(30,), (1, 2, 59), (20, 40)])
def test_utility_losses_of_parts_add_up_to_the_whole_batch(weighted, cuts):
    logits, y = mixed_answers()
    y[:20, 0] = MISSING  # a part without any answer to a label
    share = shares(y) if weighted else None
    logits.requires_grad_()
    whole = utility_loss(logits, y, MIXED, positive_share=share)
    (gradient,) = torch.autograd.grad(whole, logits)
    edges = [0, *cuts, len(y)]
    rows = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    normalizer = torch.stack([utility_normalizer(y[part], MIXED, positive_share=share) for part in rows]).sum(0)
    parts = [utility_loss(logits[part], y[part], MIXED, positive_share=share, normalizer=normalizer) for part in rows]
    total = torch.stack(parts).sum()
    assert float(total.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    (of_parts,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(of_parts, gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("columns", [[0], [1], [0, 1, 2, 3]])
def test_utility_loss_of_labels_without_answers_is_0_and_finite(weighted, columns):
    logits, y = mixed_answers()
    share = shares(y) if weighted else None
    expected = utility_loss(logits, y, MIXED, positive_share=share)
    for column in columns:
        only = torch.full_like(y, MISSING)
        only[:, column] = y[:, column]
        expected = expected - utility_loss(logits, only, MIXED, positive_share=share)
    y[:, columns] = MISSING
    logits.requires_grad_()
    loss = utility_loss(logits, y, MIXED, positive_share=share)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-6)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert len(columns) < 4 or (float(loss.detach()) == 0 and not logits.grad.any())


@pytest.mark.parametrize("weighted", [False, True])
def test_utility_loss_of_complete_binary_labels_is_torchs_to_the_bit(answers, weighted):
    logits, y = (torch.from_numpy(values) for values in answers)
    share = y.float().mean(dim=0) if weighted else None
    weight = None if share is None else 0.5 * (y / share + (1 - y) / (1 - share))
    results = []
    for own in (True, False):
        logits = logits.detach().requires_grad_()
        loss = (
            utility_loss(logits, y, BINARY, positive_share=share)
            if own
            else F.binary_cross_entropy_with_logits(logits, y.float(), weight=weight)
        )
        results.append((loss, *torch.autograd.grad(loss, logits)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_utility_loss_of_one_complete_label_of_classes_is_torchs_to_the_bit():
    logits, y = torch.randn(500, 10), torch.randint(0, 10, (500, 1), dtype=torch.int8)
    task = Task.of(["digit"], classes={"digit": "0123456789"})
    results = []
    for loss_of in (lambda x: utility_loss(x, y, task), lambda x: F.cross_entropy(x, y[:, 0].long())):
        x = logits.clone().requires_grad_()
        loss = loss_of(x)
        results.append((loss, *torch.autograd.grad(loss, x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_label_weights_multiply_the_losses_of_their_labels(weighted):
    logits, y = mixed_answers()
    share = shares(y) if weighted else None
    weights, expected = torch.tensor([0.2, 1.0, 3.0, 0.5]), 0.0
    for i in range(4):
        only = torch.full_like(y, MISSING)
        only[:, i] = y[:, i]
        expected += float(weights[i] * utility_loss(logits, only, MIXED, positive_share=share))
    assert float(utility_loss(logits, y, MIXED, positive_share=share, label_weights=weights)) == pytest.approx(expected, rel=1e-5)
    ones = utility_loss(logits, y, MIXED, positive_share=share, label_weights=torch.ones(4))
    assert torch.equal(ones, utility_loss(logits, y, MIXED, positive_share=share))


# ------------------------------------------------------------------------------------------------------------- distillation


def soft_answers(rows: int, *, seed: int = 1) -> Tensor:
    """Probabilities of the values of MIXED (rows, 11) float64."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, MIXED.num_logits)))
    return torch.cat([logits[:, :5].softmax(1), logits[:, 5:6].sigmoid(), logits[:, 6:10].softmax(1), logits[:, 10:].sigmoid()], 1)


def test_distillation_loss_is_the_mean_cross_entropy_with_the_teachers():
    logits, soft = mixed_answers()[0], soft_answers(60)
    by_label = []
    for label in MIXED.labels:
        own, p = logits[:, label.logits].numpy(), soft[:, label.logits].numpy()
        own = np.concatenate([np.zeros_like(own), own], axis=1) if label.binary else own
        p = np.concatenate([1 - p, p], axis=1) if label.binary else p
        by_label.append(-(p * (own - np.logaddexp.reduce(own, axis=1, keepdims=True))).sum(axis=1).mean())
    assert float(distillation_loss(logits, soft, MIXED, num_rows=60)) == pytest.approx(np.mean(by_label), rel=1e-9)


def test_distillation_loss_gradient_is_the_difference_of_probabilities():
    """d/d logit of the cross-entropy is q - p, for a sigmoid and for a softmax."""
    logits, soft = mixed_answers()[0].requires_grad_(), soft_answers(60)
    distillation_loss(logits, soft, MIXED, num_rows=60).backward()
    x = logits.detach()
    q = torch.cat([x[:, :5].softmax(1), x[:, 5:6].sigmoid(), x[:, 6:10].softmax(1), x[:, 10:].sigmoid()], 1)
    torch.testing.assert_close(logits.grad, (q - soft) / 60 / 4, atol=1e-12, rtol=1e-9)


def test_distillation_losses_of_parts_add_up_to_the_whole_batch():
    logits, soft = mixed_answers()[0], soft_answers(60)
    whole = distillation_loss(logits, soft, MIXED, num_rows=60)
    parts = [distillation_loss(logits[rows], soft[rows], MIXED, num_rows=torch.tensor(60.0)) for rows in (slice(7), slice(7, 60))]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_distillation_loss_of_hard_answers_is_the_utility_loss():
    logits, y = mixed_answers(missing=0.0)
    hard = torch.cat([F.one_hot(y[:, i].long(), n)[:, 1 if n == 2 else 0 :] for i, n in enumerate(MIXED.num_values)], 1)
    loss = distillation_loss(logits, hard.double(), MIXED, num_rows=60)
    assert float(loss) == pytest.approx(float(utility_loss(logits, y, MIXED)), rel=1e-6)


def test_label_weights_multiply_the_distillation_losses_of_their_labels():
    logits, soft, weights = mixed_answers()[0], soft_answers(60), torch.tensor([0.2, 1.0, 3.0, 0.5])
    alone = [distillation_loss(logits, soft, MIXED, num_rows=60, label_weights=torch.eye(4)[i]) for i in range(4)]
    assert float(sum(alone)) == pytest.approx(float(distillation_loss(logits, soft, MIXED, num_rows=60)), rel=1e-6)
    weighted = distillation_loss(logits, soft, MIXED, num_rows=60, label_weights=weights)
    assert float(weighted) == pytest.approx(float(sum(w * loss for w, loss in zip(weights, alone, strict=True))), rel=1e-6)


def test_wrong_answers_of_hard_answers_is_their_share():
    """Of two labels of two values and one of three."""
    rng = np.random.default_rng(0)
    task = Task.of(["a", "b", "c"], classes={"c": ("x", "y", "z")})
    y = torch.from_numpy(np.stack([rng.integers(0, count, 40) for count in (2, 2, 3)], axis=1).astype(np.float32))
    given = torch.from_numpy(np.stack([rng.integers(0, count, 40) for count in (2, 2, 3)], axis=1))
    answers = torch.cat([given[:, :2].float(), F.one_hot(given[:, 2], 3).float()], dim=1)
    wrong = (given != y).float()
    assert float(wrong_answers(answers, y, task)) == pytest.approx(float(wrong.mean()))
    weights = torch.tensor([1.0, 0.5, 0.0])
    assert float(wrong_answers(answers, y, task, label_weights=weights)) == pytest.approx(float((wrong * weights).mean()))
    soft = torch.cat([torch.rand(40, 2), torch.rand(40, 3).softmax(1)], dim=1)
    right = torch.where(given[:, :2] == 1, soft[:, :2], 1 - soft[:, :2]).sum(1) + soft[torch.arange(40), 2 + given[:, 2]]
    value = wrong_answers(answers, y, task, soft=soft, soft_share=1.0, num_rows=40)
    assert float(value) == pytest.approx(float(1 - right.mean() / 3))
    share = torch.tensor([0.2, 0.5, 0.1, 0.3, 0.6])
    of_first = (wrong[:, 0] * torch.where(y[:, 0] == 1, 1 / 0.4, 1 / 1.6)).mean()
    one = wrong_answers(answers[:, :1], y[:, :1], Task.of(["a"]), positive_share=share[:1])
    assert float(one) == pytest.approx(float(of_first)), "every value of a label counts the same"


def test_wrong_answers_leaves_out_missing_labels_and_adds_up_over_parts():
    task = Task.of(["a", "b"])
    y = torch.tensor([[1.0, MISSING], [0.0, 1.0], [1.0, 0.0]])
    answers = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    whole = wrong_answers(answers, y, task)
    assert whole.item() == pytest.approx((2 / 3 + 1 / 2) / 2)
    (grad,) = torch.autograd.grad(whole, answers)
    assert grad[0, 1] == 0
    n = utility_normalizer(y, task)
    parts = [wrong_answers(answers[rows], y[rows], task, normalizer=n) for rows in (slice(0, 1), slice(1, 3))]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item())
    changed = answers.detach().clone()
    changed[2, 0] = 1.0
    assert wrong_answers(changed, y, task).item() - whole.item() == pytest.approx(grad[2, 0].item()), "linear: what a change makes"

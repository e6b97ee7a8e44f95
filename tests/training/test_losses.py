"""Tests of losses, accuracies and weights against scikit-learn, numpy and automatic differentiation."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from cpgan_ray.training.losses import (
    accuracy,
    aggregate_weights,
    balanced_accuracy,
    dead_labels,
    privacy_term,
    r2_from_errors,
    row_errors,
    utility_loss,
)

torch.set_num_threads(1)

ROWS, LABELS = 200, 5


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
    loss = utility_loss(torch.from_numpy(logits), torch.from_numpy(y).float())
    assert float(loss) == pytest.approx(cross_entropies(logits, y).mean(), rel=1e-5)


def test_class_weighted_utility_loss_is_the_mean_over_both_values(answers):
    logits, y = answers
    losses = cross_entropies(logits, y)
    by_label = [(losses[y[:, i] > 0, i].mean() + losses[y[:, i] == 0, i].mean()) / 2 for i in range(LABELS)]
    share = torch.from_numpy(y.mean(axis=0)).float()
    loss = utility_loss(torch.from_numpy(logits), torch.from_numpy(y).float(), positive_share=share)
    assert float(loss) == pytest.approx(np.mean(by_label), rel=1e-5)
    assert abs(float(loss) - losses.mean()) > 0.02, "the two losses should differ on these labels"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_class_weighted_loss_of_a_constant_label_is_finite(value):
    y = torch.full((8, 1), value)
    assert torch.isfinite(utility_loss(torch.randn(8, 1), y, positive_share=torch.tensor([value])))


def test_accuracies_equal_scikit_learn(answers):
    logits, y = answers
    guessed = logits > 0
    assert accuracy(logits, y) == pytest.approx([accuracy_score(y[:, i], guessed[:, i]) for i in range(LABELS)], abs=1e-12)
    expected = [balanced_accuracy_score(y[:, i], guessed[:, i]) for i in range(LABELS)]
    assert balanced_accuracy(logits, y) == pytest.approx(expected, abs=1e-12)


def test_dead_labels_are_those_near_chance():
    y = np.tile([[0, 0, 0], [1, 1, 0]], (500, 1))
    logits = np.where(y > 0, 1.0, -1.0)
    logits[:, 1] = np.where(np.arange(1000) % 20 < 19, -1.0, 1.0)  # right for one positive in ten: balanced accuracy 0.55
    assert balanced_accuracy_score(y[:, 1], logits[:, 1] > 0) == pytest.approx(0.55)
    assert dead_labels(logits, y) == 0, "0.55 is not below 0.55, and a label with one value does not count"
    logits[:, 1] = -1.0
    assert dead_labels(logits, y) == 1


def test_dead_labels_of_classes_are_those_hardly_ever_found():
    y = np.repeat([0, 1, 2, 3], 100)[:, None]
    logits = np.eye(4)[y[:, 0]]
    assert dead_labels(logits, y) == 0
    logits[100:200] = np.eye(4)[0]
    assert dead_labels(logits, y) == 1


def test_balanced_accuracy_is_nan_only_if_a_value_does_not_occur(answers):
    logits, y = answers
    y[:, 0], y[:, 1] = 0, 1
    assert np.isnan(balanced_accuracy(logits, y)).tolist() == [True, True, False, False, False]


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


def test_utility_loss_multiclass_gives_each_class_equal_weight():
    rng = np.random.default_rng(0)
    logits, y = torch.from_numpy(rng.normal(size=(40, 3))).float(), torch.from_numpy(rng.integers(0, 3, (40, 1))).float()
    log_p = logits.log_softmax(1).gather(1, y.long())[:, 0]
    assert float(utility_loss(logits, y)) == pytest.approx(float(-log_p.mean()), rel=1e-5)
    share = torch.bincount(y[:, 0].long()) / len(y)
    by_class = torch.stack([-log_p[y[:, 0] == c].mean() for c in range(3)]).mean()
    assert float(utility_loss(logits, y, positive_share=share)) == pytest.approx(float(by_class), rel=1e-4)


def test_accuracies_multiclass_equal_scikit_learn():
    rng = np.random.default_rng(1)
    logits, y = rng.normal(size=(60, 4)), rng.choice([0, 1, 3], size=(60, 1))
    guess = logits.argmax(axis=1)
    assert accuracy(logits, y)[0] == pytest.approx(accuracy_score(y[:, 0], guess))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are predicted but do not occur
        assert balanced_accuracy(logits, y)[0] == pytest.approx(balanced_accuracy_score(y[:, 0], guess))

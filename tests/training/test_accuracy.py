"""Tests of accuracies, balanced accuracies and dead labels against scikit-learn, with labels of several kinds."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from cpgan_ray.data import Task
from cpgan_ray.data.store import MISSING
from cpgan_ray.training.accuracy import (
    accuracy,
    balanced_accuracy,
    correct_predictions,
    dead_labels,
    mean_accuracy,
    mean_balanced_accuracy,
    predictions,
)

ROWS, LABELS = 200, 5
BINARY = Task.of([f"label{i}" for i in range(LABELS)])
FOUR = Task.of(["four"], classes={"four": "abcd"})
MIXED = Task.of(["five", "bald", "four"], classes={"five": "abcde", "four": "abcd"})
"""Logits 0-4, 5 and 6-9."""


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Logits and binary labels; most labels are rare and predicted too seldom."""
    rng = np.random.default_rng(0)
    y = (rng.random((ROWS, LABELS)) < [0.04, 0.1, 0.2, 0.5, 0.97]).astype(np.int8)
    return (rng.normal(size=(ROWS, LABELS)) - 1 + y).astype(np.float32), y


@pytest.fixture
def mixed() -> tuple[np.ndarray, np.ndarray]:
    """Logits and answers to MIXED, a third of them missing."""
    rng = np.random.default_rng(0)
    y = np.stack([rng.integers(0, count, ROWS) for count in MIXED.num_values], axis=1).astype(np.int8)
    logits = rng.normal(size=(ROWS, MIXED.num_logits))
    logits[np.arange(ROWS), y[:, 0]] += 1
    y[rng.random(y.shape) < 0.33] = MISSING
    return logits, y


def test_accuracies_equal_scikit_learn(answers):
    logits, y = answers
    guessed = logits > 0
    assert accuracy(logits, y, BINARY) == pytest.approx([accuracy_score(y[:, i], guessed[:, i]) for i in range(LABELS)], abs=1e-12)
    expected = [balanced_accuracy_score(y[:, i], guessed[:, i]) for i in range(LABELS)]
    assert balanced_accuracy(logits, y, BINARY) == pytest.approx(expected, abs=1e-12)


def test_accuracies_of_classes_equal_scikit_learn():
    rng = np.random.default_rng(1)
    logits, y = rng.normal(size=(60, 4)), rng.choice([0, 1, 3], size=(60, 1))
    guess = logits.argmax(axis=1)
    assert accuracy(logits, y, FOUR)[0] == pytest.approx(accuracy_score(y[:, 0], guess))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are predicted but do not occur
        assert balanced_accuracy(logits, y, FOUR)[0] == pytest.approx(balanced_accuracy_score(y[:, 0], guess))


def test_accuracies_of_mixed_labels_equal_scikit_learn_on_known_rows(mixed):
    logits, y = mixed
    guesses = [logits[:, :5].argmax(axis=1), logits[:, 5] > 0, logits[:, 6:].argmax(axis=1)]
    assert np.array_equal(predictions(logits, MIXED), np.stack(guesses, axis=1))
    expected = {accuracy_score: [], balanced_accuracy_score: []}
    for i, guess in enumerate(guesses):
        known = y[:, i] != MISSING
        for score, values in expected.items():
            values.append(score(y[known, i], guess[known]))
    assert accuracy(logits, y, MIXED) == pytest.approx(expected[accuracy_score])
    assert balanced_accuracy(logits, y, MIXED) == pytest.approx(expected[balanced_accuracy_score])
    assert mean_accuracy(logits, y, MIXED) == pytest.approx(np.mean(expected[accuracy_score]))
    assert mean_balanced_accuracy(logits, y, MIXED) == pytest.approx(np.mean(expected[balanced_accuracy_score]))
    assert not correct_predictions(logits, y, MIXED)[y == MISSING].any()


def test_accuracy_of_a_label_without_answers_does_not_count(mixed):
    logits, y = mixed
    others = np.nanmean(accuracy(logits, y, MIXED)[1:]), np.mean(balanced_accuracy(logits, y, MIXED)[1:])
    y[:, 0] = MISSING
    assert np.isnan([accuracy(logits, y, MIXED)[0], balanced_accuracy(logits, y, MIXED)[0]]).all()
    assert (mean_accuracy(logits, y, MIXED), mean_balanced_accuracy(logits, y, MIXED)) == pytest.approx(others)
    y[:] = MISSING
    assert np.isnan(mean_accuracy(logits, y, MIXED)) and np.isnan(mean_balanced_accuracy(logits, y, MIXED))
    assert dead_labels(logits, y, MIXED) == 0


def test_dead_labels_are_those_near_chance():
    task, y = Task.of("abc"), np.tile([[0, 0, 0], [1, 1, 0]], (500, 1))
    logits = np.where(y > 0, 1.0, -1.0)
    logits[:, 1] = np.where(np.arange(1000) % 20 < 19, -1.0, 1.0)  # right for one positive in ten: balanced accuracy 0.55
    assert balanced_accuracy_score(y[:, 1], logits[:, 1] > 0) == pytest.approx(0.55)
    assert dead_labels(logits, y, task) == 0, "0.55 is not below 0.55, and a label with one value does not count"
    logits[:, 1] = -1.0
    assert dead_labels(logits, y, task) == 1


def test_dead_labels_of_classes_are_those_hardly_ever_found():
    y = np.repeat([0, 1, 2, 3], 100)[:, None]
    logits = np.eye(4)[y[:, 0]]
    assert dead_labels(logits, y, FOUR) == 0
    logits[100:200] = np.eye(4)[0]
    assert dead_labels(logits, y, FOUR) == 1


def test_dead_labels_of_mixed_labels_add_up(mixed):
    logits, y = mixed
    logits[:, :5], logits[:, 5], logits[:, 6:] = [9, 0, 0, 0, 0], -1, [0, 9, 0, 0]
    assert dead_labels(logits, y, MIXED) == 4 + 1 + 3


def test_balanced_accuracy_is_nan_only_if_a_value_does_not_occur(answers):
    logits, y = answers
    y[:, 0], y[:, 1] = 0, 1
    assert np.isnan(balanced_accuracy(logits, y, BINARY)).tolist() == [True, True, False, False, False]

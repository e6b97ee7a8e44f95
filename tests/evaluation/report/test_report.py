"""Tests of the report's accuracies per label."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import Dataset, Task, load, task_of
from cpgan_ray.data.store import MISSING
from cpgan_ray.evaluation.utility import head_answers, label_metrics, utility_metrics
from tests.mixed import LABELS, STORED, mixed_config

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(
        Config(cache_dir=tmp_path_factory.mktemp("digits"), data=DataConfig(dataset="digits", final_fraction=0.0)), progress=False
    )


def test_label_metrics_accuracies_are_inside_intervals(tiny_config):
    dataset = load(tiny_config, progress=False)
    task = task_of(dataset, dataset.label_names[4:7])
    y = task.answers(dataset.test)
    logits = {"test": RNG.normal(size=y.shape) + 2 * y - 1, "val": RNG.normal(size=(len(dataset.val), 3))}
    rows = label_metrics(logits["test"], dataset, task, seed=0)
    assert tuple(row["name"] for row in rows) == task.names
    for i, row in enumerate(rows):
        assert row["accuracy"] == pytest.approx(accuracy_score(y[:, i], logits["test"][:, i] > 0))
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y[:, i], logits["test"][:, i] > 0))
        for name in ("accuracy", "balanced_accuracy"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
        ones = task.answers(dataset.train)[:, i].mean() > 0.5
        assert row["majority_accuracy"] == pytest.approx(np.mean(y[:, i] == ones))
    mean = utility_metrics(logits, dataset, task, seed=0)
    for name in ("accuracy", "balanced_accuracy", "majority_accuracy"):
        assert np.mean([row[name] for row in rows]) == pytest.approx(mean[name])
    for name in ("accuracy", "balanced_accuracy"):
        assert mean[f"{name}_low"] < mean[name] < mean[f"{name}_high"]
    y_val = task.answers(dataset.val)
    balanced = [balanced_accuracy_score(y_val[:, i], logits["val"][:, i] > 0) for i in range(3)]
    assert mean["val_balanced_accuracy"] == pytest.approx(np.mean(balanced))
    assert (mean["majority_balanced_accuracy"], mean["dead_labels"]) == (0.5, 0)


@pytest.fixture(scope="module")
def mixed(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(mixed_config(tiny_config, tmp_path_factory.mktemp("mixed")), progress=False)


def mixed_logits(dataset: Dataset, task: Task) -> dict[str, np.ndarray]:
    """Logits of `val` and `test` that are often right."""
    logits = {}
    for split in ("val", "test"):
        y = np.maximum(task.answers(dataset.splits[split]), 0)
        parts = [2 * y[:, :1] - 1 if label.binary else np.eye(len(label.values))[y[:, i]] for i, label in enumerate(task.labels)]
        logits[split] = np.concatenate(parts, axis=1) + RNG.normal(scale=0.7, size=(len(y), task.num_logits))
    return logits


def test_metrics_of_mixed_labels_are_means_over_known_answers(mixed):
    task = task_of(mixed, LABELS)
    y, logits = task.answers(mixed.test), mixed_logits(mixed, task)
    guesses = [logits["test"][:, 0] > 0, *(logits["test"][:, label.logits].argmax(axis=1) for label in task.labels[1:])]
    rows = label_metrics(logits["test"], mixed, task, seed=0)
    assert tuple(row["name"] for row in rows) == LABELS
    for i, (row, guess) in enumerate(zip(rows, guesses, strict=True)):
        known = y[:, i] >= 0
        assert 0 < known.sum() < len(known)
        assert row["accuracy"] == pytest.approx(accuracy_score(y[known, i], guess[known]))
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y[known, i], guess[known]))
        for name in ("accuracy", "balanced_accuracy"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    mean = utility_metrics(logits, mixed, task, seed=0)
    for name in ("accuracy", "balanced_accuracy", "majority_accuracy"):
        assert mean[name] == pytest.approx(np.mean([row[name] for row in rows]))
    for name in ("accuracy", "balanced_accuracy"):
        assert mean[f"{name}_low"] < mean[name] < mean[f"{name}_high"]
    assert mean["majority_balanced_accuracy"] == pytest.approx(task.chance)
    answers = head_answers(logits, mixed, task)
    assert not answers.right[y < 0].any() and answers.right.sum() == sum((g == y[:, i]).sum() for i, g in enumerate(guesses))


def test_label_without_test_answers_has_no_numbers_and_does_not_count(mixed):
    task, labels = task_of(mixed, LABELS), mixed.test.labels.copy()
    labels[:, STORED.index("group")] = MISSING
    test = dataclasses.replace(mixed.test, labels=labels)
    dataset, logits = dataclasses.replace(mixed, test=test), mixed_logits(mixed, task)
    rows = label_metrics(logits["test"], dataset, task, seed=0)
    assert set(rows[1].values()) == {"group", None}
    values = utility_metrics(logits, dataset, task, seed=0)
    assert values["accuracy"] == pytest.approx(np.mean([rows[0]["accuracy"], rows[2]["accuracy"]]))
    assert all(np.isfinite(value) for value in values.values())


def test_head_answers_are_right_answers_and_labels(tiny_config):
    dataset = load(tiny_config, progress=False)
    task = task_of(dataset, dataset.label_names[:2])
    y = task.answers(dataset.test)
    logits = RNG.normal(size=y.shape)
    answers = head_answers({"test": logits}, dataset, task)
    assert ((logits > 0) == y)[answers.right].all() and not ((logits > 0) == y)[~answers.right].any()
    assert answers.labels.dtype == np.int8 and (answers.labels == y).all()


def test_utility_metrics_of_classes(digits):
    y, y_val = digits.test.labels[:, 0], digits.val.labels[:, 0]
    logits = {"test": np.eye(10)[y % 9], "val": np.eye(10)[y_val % 9]}  # 9 is taken for 0
    values = utility_metrics(logits, digits, task_of(digits, ()), seed=0)
    assert values["balanced_accuracy"] == pytest.approx(0.9)
    assert values["val_balanced_accuracy"] == pytest.approx(0.9)
    assert (values["majority_balanced_accuracy"], values["dead_labels"]) == (pytest.approx(0.1), 1)


def test_label_metrics_of_classes_is_one_row_with_mean_recall(digits):
    y = digits.test.labels[:, 0]
    logits = RNG.normal(size=(len(y), 10)) + 2 * np.eye(10)[y]
    [row] = label_metrics(logits, digits, task_of(digits, ()), seed=0)
    assert row["name"] == "digit"
    assert row["accuracy"] == pytest.approx(accuracy_score(y, logits.argmax(axis=1)))
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, logits.argmax(axis=1)))
    for name in ("accuracy", "balanced_accuracy"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]

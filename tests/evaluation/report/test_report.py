"""Tests of the report's accuracies per label."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import Dataset, label_columns, load
from cpgan_ray.evaluation.utility import head_answers, label_metrics, utility_metrics

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(
        Config(cache_dir=tmp_path_factory.mktemp("digits"), data=DataConfig(dataset="digits", final_fraction=0.0)), progress=False
    )


def test_label_metrics_accuracies_are_inside_intervals(tiny_config):
    dataset = load(tiny_config, progress=False)
    labels = dataset.label_names[4:7]
    y = dataset.test.labels[:, label_columns(dataset, labels)]
    logits = {"test": RNG.normal(size=y.shape) + 2 * y - 1, "val": RNG.normal(size=(len(dataset.val), 3))}
    rows = label_metrics(logits["test"], dataset, labels, seed=0)
    assert tuple(row["name"] for row in rows) == labels
    for i, row in enumerate(rows):
        assert row["accuracy"] == pytest.approx(accuracy_score(y[:, i], logits["test"][:, i] > 0))
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y[:, i], logits["test"][:, i] > 0))
        for name in ("accuracy", "balanced_accuracy"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
        ones = dataset.train.labels[:, label_columns(dataset, labels)[i]].mean() > 0.5
        assert row["majority_accuracy"] == pytest.approx(np.mean(y[:, i] == ones))
    mean = utility_metrics(logits, dataset, labels, seed=0)
    for name in ("accuracy", "balanced_accuracy", "majority_accuracy"):
        assert np.mean([row[name] for row in rows]) == pytest.approx(mean[name])
    for name in ("accuracy", "balanced_accuracy"):
        assert mean[f"{name}_low"] < mean[name] < mean[f"{name}_high"]
    y_val = dataset.val.labels[:, label_columns(dataset, labels)]
    balanced = [balanced_accuracy_score(y_val[:, i], logits["val"][:, i] > 0) for i in range(3)]
    assert mean["val_balanced_accuracy"] == pytest.approx(np.mean(balanced))
    assert (mean["majority_balanced_accuracy"], mean["dead_labels"]) == (0.5, 0)


def test_head_answers_are_right_answers_and_labels(tiny_config):
    dataset = load(tiny_config, progress=False)
    labels = dataset.label_names[:2]
    y = dataset.test.labels[:, label_columns(dataset, labels)]
    logits = RNG.normal(size=y.shape)
    answers = head_answers({"test": logits}, dataset, labels)
    assert ((logits > 0) == y)[answers.right].all() and not ((logits > 0) == y)[~answers.right].any()
    assert answers.labels.dtype == np.uint8 and (answers.labels == y).all()


def test_utility_metrics_of_classes(digits):
    y, y_val = digits.test.labels[:, 0], digits.val.labels[:, 0]
    logits = {"test": np.eye(10)[y % 9], "val": np.eye(10)[y_val % 9]}  # 9 is taken for 0
    values = utility_metrics(logits, digits, (), seed=0)
    assert values["balanced_accuracy"] == pytest.approx(0.9)
    assert values["val_balanced_accuracy"] == pytest.approx(0.9)
    assert (values["majority_balanced_accuracy"], values["dead_labels"]) == (pytest.approx(0.1), 1)


def test_label_metrics_of_classes_is_one_row_with_mean_recall(digits):
    y = digits.test.labels[:, 0]
    logits = RNG.normal(size=(len(y), 10)) + 2 * np.eye(10)[y]
    [row] = label_metrics(logits, digits, (), seed=0)
    assert row["name"] == "digit"
    assert row["accuracy"] == pytest.approx(accuracy_score(y, logits.argmax(axis=1)))
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, logits.argmax(axis=1)))
    for name in ("accuracy", "balanced_accuracy"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]

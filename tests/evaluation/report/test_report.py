"""Tests of the report's accuracies per label."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import Dataset, label_columns, load
from cpgan_ray.evaluation.utility import label_metrics, utility_metrics

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


def test_label_metrics_of_classes_is_one_row_with_mean_recall(digits):
    y = digits.test.labels[:, 0]
    logits = RNG.normal(size=(len(y), 10)) + 2 * np.eye(10)[y]
    [row] = label_metrics(logits, digits, (), seed=0)
    assert row["name"] == "digit"
    assert row["accuracy"] == pytest.approx(accuracy_score(y, logits.argmax(axis=1)))
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, logits.argmax(axis=1)))
    for name in ("accuracy", "balanced_accuracy"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]

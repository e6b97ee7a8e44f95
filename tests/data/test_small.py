"""Tests of small data sets in the store: signals, labels of several classes, subsets of rows, and the task."""

import numpy as np
import pytest

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import label_frequencies, load, majority_logits, task_of, task_targets
from cpgan_ray.data.batching import Batch, pictures
from cpgan_ray.data.datasets import gaussian
from cpgan_ray.data.pca import projection, scale, targets
from cpgan_ray.errors import InputError
from cpgan_ray.training.accuracy import accuracy


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="module")
def dataset(cache):
    """Name of a data set -> its store."""
    return lambda name, **data: load(Config(cache_dir=cache, data=DataConfig(dataset=name, **data)), progress=False)


def test_signals_in_the_store_are_unchanged(dataset):
    loaded, samples = dataset("gaussian", final_fraction=0.0), gaussian.read()
    rows = np.array([5, 0, 7])
    assert loaded.train.dtype == np.float32
    assert np.array_equal(loaded.train.take(rows), samples.values[samples.rows["train"][rows]])
    assert np.array_equal(scale(loaded.train.take(rows)), loaded.train.take(rows).reshape(3, -1)), "networks see them as they are"


def test_mixture_store_keeps_the_unit_of_the_raw_values(dataset):
    loaded, data_drawn = dataset("gaussian", final_fraction=0.0), gaussian.mixture()
    raw = data_drawn.x[gaussian.read().rows["train"]]
    assert loaded.info.unit == pytest.approx(np.sqrt(raw.var(axis=0).mean()))
    assert loaded.train.take(np.arange(len(loaded.train))).var(axis=0).mean() == pytest.approx(1, abs=1e-4)
    other = dataset("gaussian", final_fraction=0.0, mixture_seed=3)
    assert other.digest != loaded.digest


def test_label_of_several_classes_is_one_column_with_class_names(dataset):
    loaded = dataset("digits")
    assert list(loaded.info.classes["digit"]) == [str(d) for d in range(10)]
    assert loaded.train.labels.shape == (len(loaded.train), 1)
    assert loaded.info.mirrored is False


def test_label_of_two_classes_has_names_and_one_logit(dataset):
    loaded = dataset("gaussian")
    assert loaded.info.classes == {"class": ["-1", "+1"]}
    assert label_frequencies(loaded, task_of(loaded, ())).shape == (1,)


def test_task_of_several_classes_has_one_hot_targets(dataset):
    loaded = dataset("digits")
    task = task_of(loaded, ("digit",))
    targets = task_targets(loaded, task, split="test")
    assert np.array_equal(targets.argmax(axis=1), loaded.test.labels[:, 0])
    assert np.array_equal(targets.sum(axis=1), np.ones(len(loaded.test)))
    counts = np.bincount(loaded.train.labels[:, 0], minlength=10)
    assert label_frequencies(loaded, task) == pytest.approx(counts / counts.sum())
    guess = majority_logits(loaded, task, rows=len(loaded.test))
    assert accuracy(guess, loaded.test.labels, task)[0] == pytest.approx((loaded.test.labels == counts.argmax()).mean())


def test_max_train_samples_takes_evenly_spaced_rows(dataset):
    loaded, complete = dataset("digits", max_train_samples=100), dataset("digits")
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (100, 25, len(complete.test))
    assert np.array_equal(loaded.train.take(np.array([0, 99])), complete.train.take(np.array([0, len(complete.train) - 1])))


def test_max_train_samples_is_applied_before_balancing(dataset):
    loaded = dataset("gaussian", max_train_samples=101, balanced=True)
    complete = dataset("gaussian", max_train_samples=101)
    for split, most in (("train", 101), ("val", 25), ("test", len(complete.test))):
        fewest = np.bincount(getattr(complete, split).labels[:, 0]).min()
        assert np.bincount(getattr(loaded, split).labels[:, 0]).tolist() == [fewest, fewest]
        assert 2 * fewest <= most
    assert loaded.digest != complete.digest


@pytest.mark.parametrize("name", ["digits", "mnist", "har", "cifar10", "svhn"])
def test_balancing_a_label_of_several_classes_raises(dataset, name):
    with pytest.raises(InputError, match=f"data.balanced is True, but the label of {name} has more than two values"):
        dataset(name, balanced=True)


@pytest.mark.parametrize("name", ["digits", "gaussian"])
def test_projection_without_mirror_images_uses_only_the_samples(dataset, name):
    loaded = dataset(name, max_train_samples=1000)
    basis = projection(loaded, components=10, progress=False)
    x = scale(loaded.train.take(np.arange(len(loaded.train)))).astype(np.float64)
    assert basis.mean == pytest.approx(x.mean(axis=0), abs=1e-5)
    _, singular, vectors = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    basis_components = basis.components @ vectors[:10].T
    assert np.abs(np.linalg.det(basis_components.astype(np.float64))) > 0.98, "the same space"
    assert basis.parity.tolist() == [1.0] * 10
    outside = basis.residual.mean() / basis.total_variance
    assert outside == pytest.approx((singular[10:] ** 2).sum() / (singular**2).sum(), abs=1e-3)
    batch = Batch(rows=np.array([3, 4]), mirrored=np.zeros(2, bool), shift=np.zeros((2, 2), np.int16))
    values, residual = targets(basis, loaded.train, batch)
    rest = scale(pictures(loaded.train, batch)) - basis.mean
    assert residual == pytest.approx((rest**2).sum(axis=1) - (values**2).sum(axis=1), abs=1e-3)


def test_data_dir_missing_or_not_needed_raises(cache, tmp_path):
    for name, folder, expected in (
        ("mnist", None, "read from a folder: give it with --data-dir"),
        ("digits", tmp_path, "needs no folder: leave it out"),
        ("har", tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(InputError, match=expected):
            load(Config(cache_dir=cache, data_dir=folder, data=DataConfig(dataset=name)), progress=False)

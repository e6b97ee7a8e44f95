"""Small data sets in the store: signals, labels of several classes, a part of the rows; and the task that labels make."""

import dataclasses

import numpy as np
import pytest

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import label_columns, label_frequencies, load, majority_logits, task_targets
from cpgan_ray.data.batching import Batch, pictures
from cpgan_ray.data.datasets import gaussian
from cpgan_ray.data.pca import projection, scale, targets
from cpgan_ray.errors import InputError
from cpgan_ray.training.losses import accuracy


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="module")
def dataset(cache):
    """name -> its store."""
    return lambda name, **data: load(Config(cache_dir=cache, data=DataConfig(dataset=name, **data)), progress=False)


def test_signals_come_back_as_they_were_stored(dataset):
    found, samples = dataset("gaussian"), gaussian.read()
    rows = np.array([5, 0, 7])
    assert found.train.dtype == np.float32
    assert np.array_equal(found.train.take(rows), samples.values[samples.rows["train"][rows]])
    assert np.array_equal(scale(found.train.take(rows)), found.train.take(rows).reshape(3, -1)), "networks see them as they are"


def test_a_mixture_keeps_its_unit_so_that_errors_can_be_told_in_it(dataset):
    found, drawn = dataset("gaussian"), gaussian.mixture()
    raw = drawn.x[gaussian.read().rows["train"]]
    assert found.info.unit == pytest.approx(np.sqrt(raw.var(axis=0).mean()))
    assert found.train.take(np.arange(len(found.train))).var(axis=0).mean() == pytest.approx(1, abs=1e-4)
    other = dataset("gaussian", mixture_seed=3)
    assert other.digest != found.digest


def test_a_label_of_several_classes_is_one_column_with_its_names(dataset):
    found = dataset("digits")
    assert list(found.info.classes["digit"]) == [str(d) for d in range(10)]
    assert found.train.labels.shape == (len(found.train), 1)
    assert found.info.mirrored is False


def test_a_label_of_two_classes_is_an_attribute(dataset):
    found = dataset("gaussian")
    assert found.info.classes == {}
    assert label_frequencies(found, ()).shape == (1,)


def test_the_task_of_classes_is_told_in_indicators(dataset):
    found = dataset("digits")
    told = task_targets(found, ("digit",), split="test")
    assert np.array_equal(told.argmax(axis=1), found.test.labels[:, 0])
    assert np.array_equal(told.sum(axis=1), np.ones(len(found.test)))
    counts = np.bincount(found.train.labels[:, 0], minlength=10)
    assert label_frequencies(found, ()) == pytest.approx(counts / counts.sum())
    guess = majority_logits(found, (), rows=len(found.test))
    assert accuracy(guess, found.test.labels)[0] == pytest.approx((found.test.labels == counts.argmax()).mean())


def test_a_label_of_several_classes_is_the_only_one(dataset):
    found = dataset("digits")
    odd = dataclasses.replace(found, label_names=("digit", "odd"))
    with pytest.raises(InputError, match="'digit' has several classes"):
        label_columns(odd, ())
    assert label_columns(odd, ("odd",)).tolist() == [1]


def test_a_part_of_the_rows_is_spread_over_all(dataset):
    found, whole = dataset("digits", max_train_samples=100), dataset("digits")
    assert (len(found.train), len(found.val), len(found.test)) == (100, 25, len(whole.test))
    assert np.array_equal(found.train.take(np.array([0, 99])), whole.train.take(np.array([0, len(whole.train) - 1])))


def test_a_label_of_two_classes_is_balanced_after_rows_are_left_out(dataset):
    found = dataset("gaussian", max_train_samples=101, balanced=True)
    whole = dataset("gaussian", max_train_samples=101)
    for split, most in (("train", 101), ("val", 25), ("test", len(whole.test))):
        fewest = np.bincount(getattr(whole, split).labels[:, 0]).min()
        assert np.bincount(getattr(found, split).labels[:, 0]).tolist() == [fewest, fewest]
        assert 2 * fewest <= most
    assert found.digest != whole.digest


@pytest.mark.parametrize("name", ["digits", "mnist", "har", "cifar10", "svhn"])
def test_a_label_of_several_classes_is_not_balanced(dataset, name):
    with pytest.raises(InputError, match=f"data.balanced is True, but the label of {name} has more than two values"):
        dataset(name, balanced=True)


@pytest.mark.parametrize("name", ["digits", "gaussian"])
def test_components_without_mirror_images_are_those_of_the_samples_alone(dataset, name):
    found = dataset(name, max_train_samples=1000)
    basis = projection(found, components=10, progress=False)
    x = scale(found.train.take(np.arange(len(found.train)))).astype(np.float64)
    assert basis.mean == pytest.approx(x.mean(axis=0), abs=1e-5)
    _, singular, vectors = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    kept = basis.components @ vectors[:10].T
    assert np.abs(np.linalg.det(kept.astype(np.float64))) > 0.98, "the same space"
    assert basis.parity.tolist() == [1.0] * 10
    assert basis.explained_variance_ratio == pytest.approx((singular[:10] ** 2).sum() / (singular**2).sum(), abs=1e-3)
    batch = Batch(rows=np.array([3, 4]), mirrored=np.zeros(2, bool), shift=np.zeros((2, 2), np.int16))
    values, residual = targets(basis, found.train, batch)
    rest = scale(pictures(found.train, batch)) - basis.mean
    assert residual == pytest.approx((rest**2).sum(axis=1) - (values**2).sum(axis=1), abs=1e-3)


def test_a_folder_is_asked_for_where_one_is_needed_and_refused_where_none_is(cache, tmp_path):
    for name, folder, said in (
        ("mnist", None, "read from a folder: give it with --data-dir"),
        ("digits", tmp_path, "needs no folder: leave it out"),
        ("har", tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            load(Config(cache_dir=cache, data_dir=folder, data=DataConfig(dataset=name)), progress=False)

"""Tests that the sets of an evaluation are the splits, their mirror images if the data set may be mirrored, and shifted copies."""

import dataclasses

import numpy as np
import pytest

from cpgan_ray.config import AttackConfig
from cpgan_ray.config.presets import preset
from cpgan_ray.data import Dataset, load
from cpgan_ray.data import code_sets as module
from cpgan_ray.data.code_sets import code_sets, max_shift_px, num_shifted, set_batch

CONFIG = AttackConfig(num_shifted=3, max_shift_px=2)


def test_code_sets_have_every_sample_in_order(tmp_path, make_store, monkeypatch):
    dataset, images, _ = make_store(tmp_path / "store")
    monkeypatch.setattr(module, "EVALUATION_BLOCK", 8)
    sets = code_sets(dataset)
    assert list(sets) == ["train", "val", "test", "train_mirrored", "val_mirrored"]
    for name, rows in (("train", slice(0, 35)), ("val", slice(35, 45)), ("test", slice(45, 50))):
        assert len(sets[name]) == len(images[rows])
        np.testing.assert_array_equal(np.concatenate(list(sets[name].blocks())), images[rows])
    for name, rows in (("train_mirrored", slice(0, 35)), ("val_mirrored", slice(35, 45))):
        np.testing.assert_array_equal(np.concatenate(list(sets[name].blocks())), images[rows, :, ::-1])
    rows = np.array([7, 2])
    np.testing.assert_array_equal(sets["train_mirrored"].take(rows), images[rows, :, ::-1])


def test_code_sets_without_mirroring_are_the_splits(tmp_path, make_store):
    dataset, _, _ = make_store(tmp_path / "store")
    plain = dataclasses.replace(dataset, info=dataclasses.replace(dataset.info, mirrored=False))
    assert list(code_sets(plain)) == ["train", "val", "test"]


@pytest.fixture(scope="module")
def dataset(tiny_config) -> Dataset:
    return load(tiny_config, progress=False)


def test_code_sets_with_attacks_have_shifted_copies(dataset):
    expected = {"train", "val", "test", "train_mirrored", "val_mirrored"}
    assert code_sets(dataset).keys() == expected
    expected |= {f"{split}_shifted{number}" for split in ("train", "val") for number in (1, 2, 3)}
    assert code_sets(dataset, attacks=CONFIG, k=4).keys() == expected
    plain = dataclasses.replace(dataset, info=dataclasses.replace(dataset.info, mirrored=False))
    names = code_sets(plain, attacks=CONFIG, k=4)
    assert names.keys() == {name for name in expected if "mirrored" not in name}
    assert not names["train_shifted1"].batch.mirrored.any()


def test_shifted_sets_are_shifted_and_mirrored_copies(dataset):
    source = code_sets(dataset, attacks=CONFIG, k=4)["train_shifted2"]
    batch, images = source.batch, np.concatenate(list(source.blocks()))
    assert len(images) == len(source) == len(dataset.train)
    assert 0.3 < batch.mirrored.mean() < 0.7
    assert set(np.unique(batch.shift)) == {-2, -1, 0, 1, 2}
    plain = dataset.train.take(np.arange(len(images)))
    for i in range(0, len(images), 17):
        picture = plain[i, :, ::-1] if batch.mirrored[i] else plain[i]
        down, right = batch.shift[i]
        inside = np.roll(picture, (down, right), axis=(0, 1))[2:-2, 2:-2]
        assert np.array_equal(images[i, 2:-2, 2:-2], inside)


def test_shifted_sets_differ_and_are_the_same_again(dataset):
    def shifts(name: str) -> np.ndarray:
        return set_batch(name, dataset, shift=3).shift

    assert np.array_equal(shifts("train_shifted1"), shifts("train_shifted1"))
    assert not np.array_equal(shifts("train_shifted1"), shifts("train_shifted2"))
    assert not shifts("train").any()
    assert not shifts("val_mirrored").any()


@pytest.mark.parametrize(("side", "expected"), [(8, 0), (16, 1), (28, 1), (32, 2), (64, 3), (128, 6)])
def test_max_shift_px_is_in_proportion_to_the_side(side, expected, dataset):
    scaled = dataclasses.replace(dataset, image_shape=(side, side, 3))
    assert max_shift_px(scaled, AttackConfig()) == expected
    assert max_shift_px(scaled, AttackConfig(max_shift_px=5)) == 5


def test_num_shifted_is_bounded_for_many_pictures_and_long_codes(dataset, monkeypatch):
    rows = len(dataset.train)
    assert num_shifted(dataset, CONFIG, k=4) == 3
    monkeypatch.setattr(module, "MAX_SHIFTED_ROWS", 2 * rows)
    assert num_shifted(dataset, CONFIG, k=4) == 2
    monkeypatch.setattr(module, "MAX_SHIFTED_VALUES", 100 * rows)
    assert num_shifted(dataset, CONFIG, k=99) == 1
    assert num_shifted(dataset, CONFIG, k=101) == 0
    assert num_shifted(dataset, AttackConfig(max_shift_px=0), k=4) == 0


def test_samples_that_are_not_pictures_are_not_shifted(tmp_path):
    mixture = load(dataclasses.replace(preset("gaussian"), cache_dir=tmp_path), progress=False)
    assert code_sets(mixture, attacks=AttackConfig(max_shift_px=3)).keys() == {"train", "val", "test"}

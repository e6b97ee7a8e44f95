"""Tests that the sets of an evaluation are the splits, and their mirror images if the data set may be mirrored."""

import dataclasses

import numpy as np

from cpgan_ray.data import code_sets as module
from cpgan_ray.data.code_sets import code_sets


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

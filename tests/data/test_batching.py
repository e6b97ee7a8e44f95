"""Tests that batches depend only on the seed, show every row once per epoch, and are augmented correctly."""

import time

import numpy as np
import pytest

from cpgan_ray.common.rng import stream, torch_seed
from cpgan_ray.data.batching import Batch, batch, pictures, rounds_per_epoch
from cpgan_ray.errors import InputError

GAME = {"seed": 3, "num_rows": 100, "batch_size": 32, "mirror": True, "shift": 2}


def test_epoch_shows_each_row_at_most_once():
    assert rounds_per_epoch(100, 32) == 3
    epoch = np.concatenate([batch(r, **GAME).rows for r in range(3)])
    assert len(set(epoch.tolist())) == 96
    assert epoch.dtype == np.int64
    complete = np.concatenate([batch(r, **{**GAME, "batch_size": 25}).rows for r in range(4, 8)])
    assert sorted(complete.tolist()) == list(range(100))


def test_batch_depends_on_round_epoch_and_seed():
    def rows(round, **changes):
        return batch(round, **{**GAME, **changes}).rows.tolist()

    first = rows(0)
    rows(7)
    assert first == rows(0)
    assert first != rows(1)
    assert first != rows(3)
    assert first != rows(0, seed=4)
    assert [batch(r, **GAME).mirrored.tolist() for r in (0, 0)] == [batch(0, **GAME).mirrored.tolist()] * 2
    assert batch(0, **GAME).mirrored.tolist() != batch(1, **GAME).mirrored.tolist()
    assert batch(0, **GAME).shift.tolist() != batch(1, **GAME).shift.tolist()


def test_batch_mirrors_and_shifts_as_configured():
    many = [batch(r, **GAME) for r in range(200)]
    assert abs(np.mean([b.mirrored for b in many]) - 0.5) < 0.03
    values, counts = np.unique([b.shift for b in many], return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert counts.min() > 0.9 * counts.mean()
    plain = batch(0, **{**GAME, "mirror": False, "shift": 0})
    assert not plain.mirrored.any()
    assert not plain.shift.any()
    assert plain.rows.tolist() == batch(0, **GAME).rows.tolist()
    assert batch(0, **{**GAME, "shift": 0}).mirrored.tolist() == batch(0, **GAME).mirrored.tolist()


def test_batch_larger_than_the_split_raises():
    with pytest.raises(InputError, match="batch_size is 101, the training split has 100"):
        batch(0, **{**GAME, "batch_size": 101})
    assert rounds_per_epoch(100, 100) == 1


def test_pictures_are_mirrored_then_shifted_with_repeated_edges(tmp_path, make_store):
    dataset, images, _ = make_store(tmp_path / "store")
    height, width = dataset.image_shape[:2]
    batch_drawn = batch(1, seed=0, num_rows=35, batch_size=16, mirror=True, shift=3)
    got = pictures(dataset.train, batch_drawn)
    assert got.dtype == np.uint8
    for picture, row, mirrored, (down, right) in zip(got, batch_drawn.rows, batch_drawn.mirrored, batch_drawn.shift, strict=True):
        source = images[row, :, ::-1] if mirrored else images[row]
        y = np.clip(np.arange(height) - down, 0, height - 1)
        x = np.clip(np.arange(width) - right, 0, width - 1)
        np.testing.assert_array_equal(picture, source[y][:, x])


def test_pictures_without_augmentation_equal_the_store(tmp_path, make_store):
    dataset, images, _ = make_store(tmp_path / "store")
    rows = np.array([5, 0, 34])
    plain = Batch(rows=rows, mirrored=np.zeros(3, bool), shift=np.zeros((3, 2), np.int16))
    np.testing.assert_array_equal(pictures(dataset.train, plain), images[rows])


def test_batches_of_a_large_split_are_fast():
    start = time.process_time()
    for round in range(620):  # two epochs
        batch(round, seed=0, num_rows=200_000, batch_size=640, mirror=True, shift=2)
    assert (time.process_time() - start) / 620 < 0.005


def test_streams_differ_in_every_part_of_their_path():
    paths = [(), ("a",), ("b",), ("a", 0), ("a", 1), ("a", "0"), (0,), (0, 0), ("a", 2**40)]
    draws = [stream(seed, *path).integers(2**62) for seed in (0, 1, 2**40) for path in paths]
    assert len(set(draws)) == len(draws)
    assert stream(5, "a", 1).integers(2**62) == stream(5, "a", 1).integers(2**62)


def test_torch_seeds_fit_a_torch_generator():
    seeds = [torch_seed(0, "player", i) for i in range(100)]
    assert len(set(seeds)) == 100
    assert all(isinstance(s, int) and 0 <= s < 2**63 for s in seeds)
    assert torch_seed(0, "player", 1) == seeds[1]

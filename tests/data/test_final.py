"""Tests of the final split, which is held out from everything."""

import pickle

import numpy as np
import pytest

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import load
from cpgan_ray.data.final import hold_out_final
from cpgan_ray.errors import InputError

ROWS = {"train": np.arange(6000), "val": np.arange(6000, 8000), "test": np.arange(8000, 10_000)}


def test_hold_out_final_moves_whole_identities_of_every_split():
    identity = np.arange(10_000) // 4
    rows = hold_out_final(ROWS, identity, fraction=0.1)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(10_000)), "each row is in one split"
    assert not set(identity[rows["final"]]) & set(identity[np.concatenate([rows[name] for name in ROWS])])
    for name, members in ROWS.items():
        kept = len(rows[name]) / len(members)
        assert abs(kept - 0.9) < 4 * (0.09 / (len(members) / 4)) ** 0.5, f"{name}: more than four standard errors"


def test_hold_out_final_does_not_depend_on_other_identities():
    identity = np.arange(10_000)
    final = set(hold_out_final(ROWS, identity, fraction=0.1)["final"].tolist())
    half = {name: members[::2] for name, members in ROWS.items()}
    assert set(hold_out_final(half, identity, fraction=0.1)["final"].tolist()) == {row for row in final if row % 2 == 0}
    assert set(hold_out_final(ROWS, identity, fraction=0.05)["final"].tolist()) < final


def test_hold_out_final_of_nothing_is_empty():
    rows = hold_out_final(ROWS, np.arange(10_000), fraction=0.0)
    assert len(rows["final"]) == 0
    assert all(np.array_equal(rows[name], members) for name, members in ROWS.items())


def test_opened_final_split_stays_open_in_other_processes(tmp_path):
    dataset = load(Config(cache_dir=tmp_path, data=DataConfig(dataset="digits")), progress=False)
    assert not set(dataset.final.identity) & {*dataset.train.identity, *dataset.val.identity, *dataset.test.identity}
    opened = pickle.loads(pickle.dumps(dataset.open_final()))
    assert np.array_equal(opened.test.identity, dataset.final.identity)
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).test.identity, dataset.test.identity)


def test_open_final_of_an_empty_split_raises(tmp_path):
    dataset = load(Config(cache_dir=tmp_path, data=DataConfig(dataset="digits", final_fraction=0.0)), progress=False)
    with pytest.raises(InputError, match="is empty: leave out --final"):
        dataset.open_final()

"""Tests of the store: reading without copies, interrupted builds, and errors for damaged files."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cpgan_ray.data import store
from cpgan_ray.errors import InputError


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store.writing, "SHARD_ROWS", 8)


def test_built_store_is_read_back(tmp_path, make_store):
    dataset, images, plan = make_store(tmp_path / "store")
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [35, 10, 5]
    for name in store.SPLITS:
        split, rows = getattr(dataset, name), plan.rows[name]
        np.testing.assert_array_equal(split.take(np.arange(len(split))), images[rows])
        np.testing.assert_array_equal(np.concatenate(split.views), images[rows])
        np.testing.assert_array_equal(np.concatenate(list(split.iter_batches(7))), images[rows])
        np.testing.assert_array_equal(split.labels, plan.labels[rows])
        np.testing.assert_array_equal(split.identity, plan.identity[rows])
        assert split.labels.dtype == np.int8
        assert split.label_names == dataset.label_names == ("Smiling", "Male", "Young")
    assert dataset.digest == "d1"
    assert dataset.image_shape == (8, 6, 3)
    files = sorted(p.name for p in (tmp_path / "store").iterdir())
    assert files == [
        "final.arrow",
        "manifest.json",
        "manifest.json.owner",
        "test.arrow",
        "train.arrow",
        "val.arrow",
        "verified.json",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_take_keeps_the_order_and_allows_repeats(tmp_path, make_store):
    dataset, images, _ = make_store(tmp_path / "store")
    rows = np.array([34, 0, 8, 8, 7])
    taken = dataset.train.take(rows)
    np.testing.assert_array_equal(taken, images[rows])
    assert taken.flags.writeable
    assert dataset.train.take(np.array([], np.int64)).shape == (0, 8, 6, 3)
    assert [len(b) for b in dataset.train.iter_batches(10)] == [10, 10, 10, 5]


@pytest.mark.parametrize("row", [-1, 35])
def test_take_of_missing_rows_raises(tmp_path, make_store, row):
    with pytest.raises(IndexError, match="train"):
        make_store(tmp_path / "store")[0].train.take(np.array([0, row]))


def test_plain_pyarrow_reads_the_file(tmp_path, make_store):
    _, images, plan = make_store(tmp_path / "store")
    with pa.memory_map(str(tmp_path / "store" / "train.arrow")) as source:
        reader = pa.ipc.open_file(source)
        assert reader.num_record_batches == 5
        table = reader.read_all()
    assert table.schema.names == ["image", "identity", "Smiling", "Male", "Young"]
    assert table.schema.types == [pa.fixed_shape_tensor(pa.uint8(), (8, 6, 3)), pa.int64(), pa.int8(), pa.int8(), pa.int8()]
    np.testing.assert_array_equal(table["image"].combine_chunks().to_numpy_ndarray(), images[:35])
    np.testing.assert_array_equal(table["Male"].to_numpy(), plan.labels[:35, 1])


def test_pictures_stay_in_the_mapped_file(tmp_path, make_store):
    make_store(tmp_path / "store", num_rows=400, image_shape=(64, 64, 3))
    before = pa.total_allocated_bytes()
    dataset = store.open_store(tmp_path / "store")
    with Path("/proc/self/maps").open() as maps:
        mapped = [[int(x, 16) for x in line.split()[0].split("-")] for line in maps if line.rstrip().endswith("train.arrow")]
    for view in dataset.train.views:
        assert not view.flags.writeable
        assert not view.flags.owndata
        address = view.__array_interface__["data"][0]
        assert any(start <= address and address + view.nbytes <= end for start, end in mapped)
    assert pa.total_allocated_bytes() - before < 100_000


def test_split_and_data_set_pickle_as_their_path(tmp_path, make_store):
    dataset, _, _ = make_store(tmp_path / "store", num_rows=400)
    blob = pickle.dumps(dataset)
    assert len(blob) < 2000
    loaded = pickle.loads(blob)
    np.testing.assert_array_equal(loaded.train.take(np.arange(9)), dataset.train.take(np.arange(9)))
    assert loaded.label_names == dataset.label_names


def test_interrupted_build_continues_from_its_shards(tmp_path, make_store):
    _, images, plan = make_store(tmp_path / "whole")
    fetched: list[int] = []

    def fetch(rows):
        if len(fetched) >= 24:
            raise KeyboardInterrupt
        fetched.extend(rows.tolist())
        return images[rows], np.ones(len(rows), bool)

    folder = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        store.build(folder, _with(plan, fetch=fetch), progress=False)
    assert not folder.exists()
    shards = sorted((tmp_path / "store.partial").glob("train-*.arrow"))
    assert len(shards) == 3
    shards[0].unlink()  # and a truncated shard
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    fetched.clear()
    fetched_again: list[int] = []

    def fetch_rest(rows):
        fetched_again.extend(rows.tolist())
        return images[rows], np.ones(len(rows), bool)

    store.build(folder, _with(plan, fetch=fetch_rest), progress=False)
    assert fetched_again == [*range(16), *range(24, 50)]
    for name in ("train.arrow", "val.arrow", "test.arrow", "manifest.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "store.partial").exists()


def test_build_interrupted_between_splits_keeps_finished_ones(tmp_path, make_store):
    _, images, plan = make_store(tmp_path / "whole")

    def train_only(rows):
        if rows[0] >= 35:
            raise KeyboardInterrupt
        return images[rows], np.ones(len(rows), bool)

    def rest_only(rows):
        assert rows[0] >= 35
        return images[rows], np.ones(len(rows), bool)

    with pytest.raises(KeyboardInterrupt):
        store.build(tmp_path / "store", _with(plan, fetch=train_only), progress=False)
    assert sorted(p.name for p in (tmp_path / "store.partial").iterdir()) == ["train.arrow", "train.json", "train.json.owner"]
    store.build(tmp_path / "store", _with(plan, fetch=rest_only), progress=False)
    np.testing.assert_array_equal(store.open_store(tmp_path / "store").train.take(np.arange(35)), images[:35])


def test_skipped_pictures_are_recorded(tmp_path, make_store, capsys):
    _, images, plan = make_store(tmp_path / "whole")
    plan = _with(plan, fetch=lambda rows: (images[rows], rows % 5 != 0), missing=("gone.jpg",))
    store.build(tmp_path / "store", plan, progress=False)
    dataset = store.open_store(tmp_path / "store")
    assert dataset.skipped == ("gone.jpg", *(f"{i}.png" for i in range(0, 50, 5)))
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [28, 8, 4]
    np.testing.assert_array_equal(dataset.train.take(np.array([0, 4])), images[[1, 6]])
    np.testing.assert_array_equal(dataset.train.identity, plan.identity[:35][np.arange(35) % 5 != 0])
    assert "11 of 51 pictures skipped" in capsys.readouterr().err


def test_split_without_readable_pictures_raises(tmp_path, make_store):
    _, images, plan = make_store(tmp_path / "whole")
    with pytest.raises(InputError, match="val split"):
        store.build(tmp_path / "store", _with(plan, fetch=lambda rows: (images[rows], rows < 35)), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


def _with(plan, **changes):
    return store.Plan(**{**{f: getattr(plan, f) for f in plan.__dataclass_fields__}, **changes})


def _edit(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def _overwrite(path, *, at: int, blob: bytes):
    content = bytearray(path.read_bytes())
    at %= len(content)
    content[at : at + len(blob)] = blob
    path.write_bytes(content)


DAMAGE = {
    "no folder": (shutil.rmtree, "manifest.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "manifest.json cannot be read"),
    "binary manifest": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json cannot be read"),
    "other manifest": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    "old format": (lambda f: _edit(f, format=0), "has format 0, this version reads 5"),
    "no file": (lambda f: (f / "val.arrow").unlink(), "val.arrow is missing"),
    "cut file": (lambda f: (f / "train.arrow").write_bytes((f / "train.arrow").read_bytes()[:-1]), "train.arrow has"),
    "bad end": (lambda f: _overwrite(f / "test.arrow", at=-400, blob=b"x" * 400), "test.arrow is damaged"),
    "bad footer": (lambda f: _overwrite(f / "test.arrow", at=-400, blob=b"\xff" * 380), "test.arrow is damaged"),
    "other labels": (lambda f: _edit(f, label_names=["A", "B", "C"]), "manifest.json is damaged (checksum"),
    "other shape": (lambda f: _edit(f, image_shape=[6, 8, 3]), "manifest.json is damaged (checksum"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_store_is_named_with_its_remedy(tmp_path, make_store, case):
    spoil, expected = DAMAGE[case]
    make_store(tmp_path / "store")
    spoil(tmp_path / "store")
    with pytest.raises(InputError) as error:
        store.open_store(tmp_path / "store")
    message = str(error.value)
    assert re.search(re.escape(expected), message)
    assert str(tmp_path / "store") in message
    assert "delete this folder" in message
    assert "\n" not in message

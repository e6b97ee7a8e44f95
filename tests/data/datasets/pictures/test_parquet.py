"""Tests of Parquet files with pictures inside."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpgan_ray.data.datasets.pictures import parquet
from cpgan_ray.data.datasets.pictures.layout import find_layout
from cpgan_ray.data.datasets.pictures.parquet import read_parquet
from cpgan_ray.data.decoding import decode
from cpgan_ray.errors import InputError
from tests.own_pictures import SIDE, configure, content, encoded, opened, write_files, write_shard

PARTS = {"data/train-00000-of-00002.parquet": 25, "data/train-00001-of-00002.parquet": 15, "data/test-00000-of-00001.parquet": 12}
FEATURES = json.dumps({"info": {"features": {"kind": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}})


def columns(rows: range) -> dict[str, Any]:
    """The columns of a copy of CelebA, and a class."""
    return {
        "celeb_id": [i // 2 for i in rows],
        "Smiling": [i % 2 == 1 for i in rows],
        "Male": [1 if i % 3 else -1 for i in rows],
        "kind": [i % 3 for i in rows],
    }


def write(folder: Path, parts: dict[str, int] = PARTS) -> Path:
    start = 0
    for name, count in parts.items():
        rows = range(start, start + count)
        write_shard(folder / name, columns(rows), rows=rows, metadata={"huggingface": FEATURES})
        start += count
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("parquet"))


def test_parquet_of_several_files_is_split_by_their_names(folder, tmp_path):
    dataset = opened(folder, tmp_path, identity_column="celeb_id")
    assert dataset.label_names == ("Smiling", "Male", "kind")
    assert dataset.info.classes == {"kind": ["ant", "bee", "cat"]}
    assert dataset.test.identity.tolist() == [i // 2 for i in range(40, 52)]
    assert len(dataset.train) + len(dataset.val) == 40
    for i, pixels in enumerate(dataset.test.take(np.arange(12)), start=40):
        assert np.array_equal(pixels, decode(encoded(i), image_size=SIDE, crop=1.0).pixels)
    assert dataset.test.labels.tolist() == [[i % 2, int(i % 3 != 0), i % 3] for i in range(40, 52)]


def test_parquet_behind_a_uri_makes_the_same_store(folder, tmp_path):
    expected = opened(folder, tmp_path / "a", identity_column="celeb_id")
    remote = opened(folder.as_uri(), tmp_path / "b", identity_column="celeb_id")
    assert (remote.digest, content(remote)) == (expected.digest, content(expected))


def test_parquet_without_names_of_splits_draws_them_by_identity(tmp_path):
    source = write(tmp_path / "data", {"0000.parquet": 30, "0001.parquet": 30})
    dataset = opened(source, tmp_path, identity_column="celeb_id")
    people = [set(split.identity.tolist()) for split in dataset.splits.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 30


def test_parquet_rows_are_read_once_in_rising_order(folder, monkeypatch):
    """Each row group is opened once for a split, even if its rows are asked for in several blocks."""
    listing = read_parquet(find_layout(folder, configure(folder, folder).data), configure(folder, folder).data)
    opened_groups: list[int] = []
    rows_of = parquet.Reader._rows

    def counted(self: parquet.Reader, group: parquet.RowGroup):
        opened_groups.append(group.number)
        return rows_of(self, group)

    monkeypatch.setattr(parquet.Reader, "_rows", counted)
    wanted = np.arange(0, 52, 3)
    with listing.open() as files:
        found = [content for block in np.array_split(wanted, 6) for content in files(block)]
        assert len(opened_groups) == 4 + 3 + 2, "row groups of seven rows: four of 25, three of 15, two of 12"
        again = list(files(np.array([3, 0])))
    order = [int(name.partition(".")[0]) for name in listing.names]
    assert found == [encoded(order[row]) for row in wanted]
    assert again == [encoded(order[3]), encoded(order[0])]


def test_parquet_column_of_plain_bytes_is_read(tmp_path):
    table = pa.table({"photo": [encoded(i) for i in range(40)], "y": ["a", "b"] * 20})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "all.parquet")
    dataset = opened(tmp_path / "data", tmp_path)
    assert dataset.info.classes == {"y": ["a", "b"]}
    assert sum(map(len, dataset.splits.values())) == 40


def refused(folder: Path, cache: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as raised:
        opened(folder, cache, **settings)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 700
    return str(raised.value)


def test_parquet_identities_as_a_label_are_refused_with_the_remedy(tmp_path):
    rows = range(300)
    write_shard(tmp_path / "data" / "a.parquet", columns(rows), rows=[0] * 300)
    assert "--data.identity-column" in refused(tmp_path / "data", tmp_path)


def test_parquet_and_a_table_are_refused(folder, tmp_path):
    shard = next(iter(PARTS))
    assert "leave out --data.table" in refused(folder, tmp_path, table=shard)
    source = write(tmp_path / "data", {"a.parquet": 30})
    (source / "labels.csv").write_text("file,y\n")
    assert "the pictures are inside a.parquet" in refused(source, tmp_path, table="labels.csv")
    write_files(source, ["x/1.png"])
    assert "keep one of the two" in refused(source, tmp_path, table="a.parquet")


def test_parquet_without_pictures_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"file": ["a"], "y": [1]}), tmp_path / "data" / "t.parquet")
    assert "--data.table" in refused(tmp_path / "data", tmp_path)


def test_parquet_with_two_columns_of_pictures_needs_a_choice(tmp_path):
    (tmp_path / "data").mkdir()
    pictures = [encoded(i) for i in range(40)]
    pq.write_table(pa.table({"left": pictures, "right": pictures[::-1], "y": [0, 1] * 20}), tmp_path / "data" / "t.parquet")
    assert "left and right" in refused(tmp_path / "data", tmp_path)
    assert "choose from left, right" in refused(tmp_path / "data", tmp_path, path_column="y")
    left, right = (opened(tmp_path / "data", tmp_path, path_column=name, labels=("y",)) for name in ("left", "right"))
    assert left.digest != right.digest


def test_parquet_files_of_two_data_sets_are_refused(tmp_path):
    write(tmp_path / "data", {"a.parquet": 20})
    write_shard(tmp_path / "data" / "b.parquet", {"y": [1] * 20}, rows=range(20))
    assert "b.parquet has other columns than a.parquet" in refused(tmp_path / "data", tmp_path)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "middle"])
def test_parquet_that_is_damaged_is_refused_by_name(damage, tmp_path):
    path = write(tmp_path / "data", {"a.parquet": 40}) / "a.parquet"
    whole = path.read_bytes()
    cut = {
        "empty": b"",
        "text": b"file,label\n" * 9,
        "cut": whole[: len(whole) // 2],
        "middle": whole[:40] + b"\xff" * 3000 + whole[3040:],
    }
    path.write_bytes(cut[damage])
    assert "a.parquet" in refused(tmp_path / "data", tmp_path, identity_column="celeb_id")


def test_parquet_without_bytes_or_rows_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    pictures = [{"bytes": None if i == 3 else encoded(i), "path": f"{i}.png"} for i in range(40)]
    table = pa.table({"image": pictures, "y": [0, 1] * 20})
    pq.write_table(table, tmp_path / "data" / "t.parquet")
    assert "has no bytes" in refused(tmp_path / "data", tmp_path)
    assert len(opened(tmp_path / "data", tmp_path, skip_corrupt=True).skipped) == 1
    pq.write_table(table.slice(0, 0), tmp_path / "data" / "t.parquet")
    assert "have no rows" in refused(tmp_path / "data", tmp_path)


@pytest.mark.parametrize("inside", [True, False])
def test_parquet_with_text_that_is_not_utf8_is_refused(inside, tmp_path):
    (tmp_path / "data").mkdir()
    ends = pa.py_buffer(np.arange(41, dtype=np.int32).tobytes())
    text = pa.StringArray.from_buffers(40, ends, pa.py_buffer(b"\xff\xfe" * 20))
    names = [f"{i}.png" for i in range(40)]
    first = {"image": [encoded(i) for i in range(40)]} if inside else {"file": names}
    pq.write_table(pa.table({**first, "y": text}), tmp_path / "data" / "t.parquet")
    write_files(tmp_path / "data", [] if inside else names)
    assert "t.parquet cannot be read as Parquet" in refused(tmp_path / "data", tmp_path, table="" if inside else "t.parquet")


def test_parquet_with_changed_bytes_is_read_or_refused_by_name(tmp_path):
    path = write(tmp_path / "data", {"a.parquet": 40}) / "a.parquet"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    config = configure(tmp_path / "data", tmp_path, identity_column="celeb_id", skip_corrupt=True).data
    for _ in range(100):
        changed = bytearray(whole)
        for position in rng.integers(max(0, len(whole) - 4000), len(whole), 3):
            changed[position] = rng.integers(256)
        path.write_bytes(changed)
        try:
            listing = read_parquet(find_layout(tmp_path / "data", config), config)
            with listing.open() as files:
                assert len(list(files(np.arange(len(listing.names))))) == len(listing.names)
        except InputError as e:
            message = str(e)
            assert "a.parquet" in message  # noqa: PT017

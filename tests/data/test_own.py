"""Tests of data that a user's own code reads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.common.plugins import shipping
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import DATASETS, load
from cpgan_ray.errors import InputError

READER = """
import numpy as np
from cpgan_ray.data.samples import Samples

def read(folder, data, *, count=80, classes=("no", "yes")):
    rows = np.arange(count)
    values = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    if folder is not None:
        values[0, 0, 0] = len((folder / "note.txt").read_text())
    samples = dict(
        values=values, labels=(rows % 2).astype(np.int8), label_name="sign", classes=tuple(classes), identity=rows.astype(np.int64),
        rows={"train": rows[: count // 2], "val": rows[count // 2 : 3 * count // 4], "test": rows[3 * count // 4 :]},
    )
    CHANGE
    return Samples(**samples)
"""


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "_kept", {})


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """Makes a configuration with a reader, whose source has a changed line."""

    def make(change: str = "pass", *, data_dir: Path | None = None, **options: object) -> Config:
        (tmp_path / "reader.py").write_text(READER.replace("CHANGE", change))
        data = DataConfig(dataset=DATASETS.pin(f"{tmp_path}/reader.py:read"), options=options, final_fraction=0.0)  # pyright: ignore
        return Config(data=data, data_dir=data_dir, cache_dir=tmp_path / "cache")

    return make


def test_reader_of_its_own_becomes_a_store(config):
    dataset = load(config(), progress=False)
    assert (len(dataset.train), len(dataset.val), len(dataset.test), dataset.image_shape) == (40, 20, 20, (8, 8, 3))
    assert dataset.label_names == ("sign",) and set(np.unique(dataset.test.labels)) == {0, 1}
    assert not dataset.info.mirrored


def test_store_changes_with_code_options_and_files_only(config, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "note.txt").write_text("x")
    digest = load(config(data_dir=folder), progress=False).digest
    assert load(config(data_dir=folder), progress=False).digest == digest
    others = [load(c, progress=False).digest for c in (config("count += 0", data_dir=folder), config(data_dir=folder, count=84))]
    (folder / "note.txt").write_text("xy")
    others.append(load(config(data_dir=folder), progress=False).digest)
    assert len({digest, *others}) == 4


def test_place_of_the_code_does_not_change_the_store(config, tmp_path):
    first = load(config(), progress=False).digest
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "reader.py").write_text((tmp_path / "reader.py").read_text())
    moved = config()
    data = dataclasses.replace(moved.data, dataset=DATASETS.pin(f"{tmp_path}/elsewhere/reader.py:read"))
    assert load(dataclasses.replace(moved, data=data), progress=False).digest == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("return values", r"reader\.read returns ndarray; it must return cpgan_ray\.data\.samples\.Samples"),
        ("samples['values'] = values[0]", r"values are uint8 \(8, 8, 3\); they must be uint8 pictures or float32 signals"),
        ("samples['values'] = values / 255", r"values are float64 "),
        ("samples['values'] = np.full(values.shape, np.nan, np.float32)", r"values are not all finite"),
        ("samples['labels'] = samples['labels'] + 5", r"a label is not in 0 to 1"),
        ("samples['labels'] = samples['labels'].astype(float)", r"labels are float64 \(80,\); they must be int8 of shape \(80,\)"),
        ("samples['identity'] = rows[:5]", r"identity are int64 \(5,\); they must be int64 of shape \(80,\)"),
        ("samples['rows'].pop('val')", r"rows has \['test', 'train'\]; it must have train, val and test"),
        ("samples['rows']['val'] = rows + 70", r"rows of val must be row numbers from 0 to 79"),
        ("samples['rows']['val'] = rows[:10]", r"identity 0 is in the train and the val split"),
        ("samples['rows']['test'] = rows[:0]", r"the test split is empty"),
        ("1 / 0", r"reader\.py:14: ZeroDivisionError: division by zero, while calling the data set reader\.read"),
    ],
)
def test_wrong_samples_are_refused_in_one_line_and_leave_no_store(change, message, config, tmp_path):
    with pytest.raises(InputError, match=message) as raised:
        load(config(change), progress=False)
    assert len(str(raised.value).splitlines()) == 1
    assert not list((tmp_path / "cache").glob("*/manifest.json"))


def test_options_of_a_data_set_without_any_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.options has 'count', but digits has no options"):
        load(Config(data=DataConfig(dataset="digits", options={"count": 3}), cache_dir=tmp_path), progress=False)
    with pytest.raises(InputError, match=r"data\.dataset is 'digit'; it must be one of faces, celeba"):
        load(Config(data=DataConfig(dataset="digit"), cache_dir=tmp_path), progress=False)

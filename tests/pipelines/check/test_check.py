"""Tests of `--check`: the description of a data set, and the contact sheet."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpgan_ray import cli
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import task_of
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.check import check
from cpgan_ray.pipelines.check.contact_sheet import captions, contact_sheet
from tests.own_pictures import configure, encoded, opened, write_table

ROOT = Path(__file__).parents[3]
NUM = 120
COLUMNS = {
    "file": [f"{i:03d}.png" for i in range(NUM)],
    "who": [f"p{i // 3}" for i in range(NUM)],
    "smile": ["NA" if i % 10 == 0 else i % 2 for i in range(NUM)],
    "kind $x$": [("ant", "bee", "cat")[i % 3] for i in range(NUM - 1)] + ["dog"],
    "age": [i / 2 for i in range(NUM)],
}
SETTINGS = {"table": "labels.csv", "bins": ("age=20,50",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    source = write_table(tmp_path_factory.mktemp("check") / "data", COLUMNS)
    (source / "119.png").write_bytes(encoded(0))  # a copy
    return source


def test_check_describes_labels_identities_and_splits(folder, tmp_path):
    config = configure(folder, tmp_path / "cache", identity_column="who", labels=("smile", "kind $x$"), **SETTINGS)
    text, values = check(replace(config, output=tmp_path / "out"))
    smile, kind, age = values["labels"]
    assert (smile["kind"], smile["missing"], smile["classes"]) == ("binary", 12, {"0": 48, "1": 60})
    assert (kind["kind"], kind["classes"]["dog"], kind["task"], age["task"]) == ("4 classes", 1, True, False)
    assert age["classes"] == {"below 20": 40, "20 to 50": 60, "50 and above": 20}
    assert values["identities"] == {"known": True, "count": 40, "repeated": 40, "smallest": 3, "median": 3.0, "largest": 3}
    assert sum(values["splits"].values()) == values["pictures"] == NUM
    assert values["sides"] == {"16 to 31": NUM}
    assert values["batch_size"] == values["splits"]["train"] // 4
    assert any("120 pictures are too few" in line for line in values["findings"])
    assert any("dog" in line for line in values["findings"])
    for words in ("kind $x$", "12 (10 %)", "40, with 3 to 3 pictures", "would train preset custom", "look at: "):
        assert words in text
    json.dumps(values)
    with Image.open(Path(values["contact_sheet"])) as sheet:
        assert sheet.width > 800
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".lock") == ["contact_sheet.png"]


def test_check_counts_copies_in_other_splits(folder, tmp_path):
    dataset = opened(folder, tmp_path / "cache", **SETTINGS)
    row = {name: [int(i) in split.identity for i in (0, 119)] for name, split in dataset.splits.items()}
    together = any(all(has) for has in row.values())
    _, values = check(replace(configure(folder, tmp_path / "cache", **SETTINGS), output=tmp_path / "out"))
    assert sum(values["near_duplicates"].values()) == (0 if together else 1 if row["train"] != [False, False] else 2)
    assert values["identities"]["known"] is False
    assert any("identities are unknown" in line for line in values["findings"])


def test_check_of_signals_has_no_contact_sheet(tmp_path):
    config = Config(preset="gaussian", cache_dir=tmp_path / "c", output=tmp_path / "out", data=DataConfig(dataset="gaussian"))
    text, values = check(config)
    assert "contact_sheet" not in values
    assert "preset gaussian" in text


def test_check_of_bad_data_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        check(replace(configure(tmp_path / "gone", tmp_path / "cache"), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_contact_sheet_shows_the_stored_pixels(folder, tmp_path):
    dataset = opened(folder, tmp_path, **SETTINGS)
    png = contact_sheet(dataset, ())
    assert png is not None
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).astype(int)
    corner = dataset.train.take(np.array([0]))[0, 0, 0].astype(int)
    assert (np.abs(shown - corner).max(axis=1) <= 2).sum() > 20, "a pixel of the first picture covers several of the page"


def test_captions_name_classes_and_missing_answers(folder, tmp_path):
    dataset = opened(folder, tmp_path, **SETTINGS)
    where = {int(i): (split, row) for split in dataset.splits.values() for row, i in enumerate(split.identity)}
    task = task_of(dataset, ("smile", "kind $x$", "age"))
    lines = captions(dataset, *where[10], task)
    assert " ".join(lines).split() == ["smile:", "missing;", "kind", "$x$:", "bee;", "age:", "below", "20"]
    assert captions(dataset, *where[11], task_of(dataset, ("smile",)))[0] == "smile: 1"


def test_take_check_with_resume_is_refused():
    arguments = ["pictures", "--check", "--k", "3"]
    assert cli.take_check(arguments)
    assert arguments == ["pictures", "--k", "3"]
    assert not cli.take_check(arguments)
    with pytest.raises(InputError, match="leave out --resume"):
        cli.take_check(["--resume", "x", "--check"])


def test_train_job_with_check_prints_the_description_only(in_process, folder, tmp_path):
    flags = ["--check", "--data-dir", folder, "--cache-dir", tmp_path / "cache", "--data.table", "labels.csv"]
    status, out, err = in_process(ROOT / "jobs/train_celeba.py", "pictures", *flags, "--data.labels", "smile")
    assert status == 0, err
    values = json.loads(out.splitlines()[-1])
    assert Path(values["contact_sheet"]).is_file()
    assert not (Path(values["output"]) / "config.json").exists()
    status, _, err = in_process(ROOT / "jobs/train_celeba.py", "pictures", *flags)
    assert (status, err.count("\n")) == (2, 1)
    assert "column age has decimal numbers" in err

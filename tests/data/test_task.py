"""Tests of the task: which logits belong to which label, and frequencies and targets with missing answers."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import Dataset, ensure_learnable, label_frequencies, load, majority_logits, store, task_of, task_targets
from cpgan_ray.data.balance import balance_rows
from cpgan_ray.data.store import MISSING, DatasetInfo, Split
from cpgan_ray.data.task import describe_task
from cpgan_ray.errors import InputError
from tests.mixed import CLASSES, LABELS, STORED, mixed_config


@pytest.fixture(scope="module")
def dataset(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(mixed_config(tiny_config, tmp_path_factory.mktemp("mixed")), progress=False)


def changed(dataset: Dataset, split: str, labels: np.ndarray) -> Dataset:
    """The data set with other labels (N, 4) in a split."""
    part: Split = dataset.splits[split]
    return dataclasses.replace(dataset, **{split: dataclasses.replace(part, labels=labels.astype(np.int8))})


def test_task_of_mixed_labels_has_one_logit_for_two_values(dataset):
    task = task_of(dataset, LABELS)
    assert task.names == LABELS and task.num_logits == 1 + 5 + 4 and task.num_values == (2, 5, 4)
    assert [(label.logits.start, label.logits.stop) for label in task.labels] == [(0, 1), (1, 6), (6, 10)]
    assert task.columns.tolist() == [STORED.index(name) for name in LABELS] and task.binary == [0]
    assert [label.values for label in task.labels] == [CLASSES[name] for name in LABELS]
    assert task.chance == pytest.approx((1 / 2 + 1 / 5 + 1 / 4) / 3)
    every = task_of(dataset, ())
    assert every.names == STORED and every.labels[1].values == ("0", "1") and every.num_logits == 11


def test_task_answers_are_the_columns_of_the_labels(dataset):
    task = task_of(dataset, LABELS)
    answers = task.answers(dataset.test)
    assert answers.dtype == np.int8 and answers.flags.c_contiguous
    for i, name in enumerate(LABELS):
        assert np.array_equal(answers[:, i], dataset.test.labels[:, STORED.index(name)])
        assert 0.05 < (answers[:, i] == MISSING).mean() < 0.15


def test_label_frequencies_are_those_of_the_known_answers(dataset):
    task = task_of(dataset, LABELS)
    expected = []
    for column, label in zip(task.answers(dataset.train).T, task.labels, strict=True):
        known = column[column >= 0]
        shares = [(known == value).mean() for value in range(len(label.values))]
        expected += shares[1:] if label.binary else shares
    assert label_frequencies(dataset, task) == pytest.approx(expected)
    guess = majority_logits(dataset, task, rows=3)
    assert guess.shape == (3, 10) and (guess == guess[0]).all()
    assert (guess[0, 0] > 0) == (expected[0] > 0.5) and guess[0, 1:6].argmax() == np.argmax(expected[1:6])


def test_task_targets_mark_missing_answers_in_a_column_of_their_own(dataset):
    task = task_of(dataset, LABELS)
    y, targets = task.answers(dataset.val), task_targets(dataset, task, split="val")
    assert targets.shape == (len(y), 2 + 6 + 5) and targets.dtype == np.float32
    odd, group = targets[:, :2], targets[:, 2:8]
    known = y[:, 0] != MISSING
    assert np.array_equal(odd[known], np.stack([y[known, 0], np.zeros(known.sum())], axis=1))
    assert (odd[~known] == [0.5, 1]).all() and (~known).any()
    assert (group.sum(axis=1) == 1).all(), "one of the classes, or missing"
    assert np.array_equal(group.argmax(axis=1), np.where(y[:, 1] == MISSING, 5, y[:, 1]))


def test_task_targets_of_complete_labels_have_no_further_column(dataset):
    labels = np.maximum(dataset.train.labels, 0)
    complete = changed(dataset, "train", labels)
    for split in ("val", "test"):
        complete = changed(complete, split, np.maximum(dataset.splits[split].labels, 0))
    task = task_of(complete, LABELS)
    assert task_targets(complete, task, split="train").shape[1] == 10
    incomplete = changed(complete, "test", dataset.test.labels)
    assert task_targets(incomplete, task, split="train").shape[1] == 13, "all splits have the same columns"


def test_describe_task_counts_missing_answers_of_each_split(dataset):
    task = task_of(dataset, LABELS)
    described = describe_task(dataset, task)
    assert described["num_logits"] == 10 and described["samples"]["val"] == len(dataset.val)
    [odd, group, ink] = described["labels"]
    assert odd["values"] == ["even", "odd"] and group["logits"] == [1, 6] and ink["logits"] == [6, 10]
    for name, split in dataset.splits.items():
        assert group["missing"][name] == (split.labels[:, 0] == MISSING).sum() > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1]), r"odd has one value in all \d+ training pictures.*--data\.labels group ink$"),
        (np.array([1, MISSING]), r"odd has fewer than two values in the \d+ training pictures.*--data\.labels group ink$"),
        (np.array([MISSING]), r"odd has fewer than two values in the \d+ training pictures"),
    ],
)
def test_ensure_learnable_label_of_one_known_value_raises(dataset, values, message):
    labels = dataset.train.labels.copy()
    labels[:, STORED.index("odd")] = np.resize(values, len(labels))
    with pytest.raises(InputError, match=message):
        ensure_learnable(changed(dataset, "train", labels), task_of(dataset, LABELS))


@pytest.mark.parametrize("split", ["val", "test"])
def test_ensure_learnable_split_without_answers_raises(dataset, split):
    nothing = changed(dataset, split, np.full_like(dataset.splits[split].labels, MISSING))
    with pytest.raises(InputError, match=rf"all answers of the {split} split to odd, group, ink are missing"):
        ensure_learnable(nothing, task_of(dataset, LABELS))
    ensure_learnable(dataset, task_of(dataset, LABELS))


@pytest.mark.parametrize("names", [(), ("only",), tuple(map(str, range(129)))])
def test_dataset_info_with_impossible_number_of_classes_raises(names):
    with pytest.raises(InputError, match=rf"label 'x' has {len(names)} class names: give it 2 to 128"):
        DatasetInfo(classes={"x": names})


def test_dataset_info_with_two_classes_of_one_name_raises():
    with pytest.raises(InputError, match=r"label 'x' has two classes named 'a': give each a name of its own"):
        DatasetInfo(classes={"x": ("a", "b", "a")})


def test_store_with_a_value_below_missing_is_refused(dataset, tmp_path):
    folder = Path(shutil.copytree(dataset.folder, tmp_path / "store"))
    values = json.loads((folder / store.MANIFEST).read_text())
    start = values["splits"]["val"]["batches"][0][3]
    content = bytearray((folder / "val.arrow").read_bytes())
    content[start] = 256 - 2
    (folder / "val.arrow").write_bytes(content)
    values["splits"]["val"]["sha256"] = store.checksum(folder / "val.arrow")
    del values["checksum"]
    (folder / store.MANIFEST).write_text(store.manifest_text(values))
    with pytest.raises(InputError, match=r"val\.arrow has the impossible value -2 for label 1 in row 0"):
        store.open_store(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_balance_leaves_out_rows_without_a_value(split):
    values = np.array([0, 1, MISSING, 1, 0, MISSING, 1, 1], np.int8)
    rows = {split: np.arange(8), "final": np.array([2, 5])}
    chosen = balance_rows(rows, values, label="odd", data=DataConfig(balanced=True, labels=("odd",)))
    assert sorted(values[chosen[split]].tolist()) == [0, 0, 1, 1] and len(chosen["final"]) == 0
    with pytest.raises(InputError, match=r"data\.balanced is True, but odd has more than two values: set --data\.no-balanced"):
        balance_rows(rows, values + 1, label="odd", data=DataConfig(balanced=True, labels=("odd",)))

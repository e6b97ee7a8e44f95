"""Tests of UCI HAR: splits by person, units, malformed text files, and the real recordings."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.data.datasets import har
from cpgan_ray.data.final import hold_out_final
from cpgan_ray.errors import InputError

REAL = Path(os.environ.get("CPGAN_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "har" / "uci_har_inertial.parquet"
PEOPLE = {"train": [1, 3, 5, 6, 7, 8], "test": [2, 4, 9]}
EACH = 6
"""Number of windows of a person, one per activity."""


def write(folder: Path, split: str, signals: np.ndarray, activity: np.ndarray, subject: np.ndarray) -> None:
    """Write one split in the official form; signals (n, 128, 9), activity from 0."""
    (folder / split / "Inertial Signals").mkdir(parents=True)
    for channel, values in zip(har.CHANNELS, np.moveaxis(signals, 2, 0), strict=True):
        lines = "\n".join("".join(f"{v:16.7e}" for v in row) for row in values.tolist())
        (folder / split / "Inertial Signals" / f"{channel}_{split}.txt").write_text(lines + "\n")
    (folder / split / f"y_{split}.txt").write_text("".join(f"{a + 1}\n" for a in activity.tolist()))
    (folder / split / f"subject_{split}.txt").write_text("".join(f"{s}\n" for s in subject.tolist()))


def lay_out(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write signals (54, 128, 9) of realistic size, training people first; returns signals and people."""
    rng = np.random.default_rng(0)
    wide = np.array([0.2] * 3 + [0.5] * 3 + [0.3] * 3)
    signals, subjects = [], []
    for split, people in PEOPLE.items():
        subject = np.repeat(people, EACH)
        x = np.array([0.0] * 6 + [0.8, 0.0, 0.1]) + wide * rng.standard_normal((len(subject), har.STEPS, 9))
        write(folder, split, x, np.tile(np.arange(6), len(people)), subject)
        signals.append(x)
        subjects.append(subject)
    return np.concatenate(signals), np.concatenate(subjects)


@pytest.fixture
def layout(tmp_path) -> Path:
    lay_out(tmp_path / har.FOLDER)
    return tmp_path


@pytest.mark.parametrize("source_kind", ["parent", "itself"])
def test_folder_or_its_parent_may_be_given(tmp_path, source_kind):
    raw, subject = lay_out(tmp_path / har.FOLDER)
    source = tmp_path / har.FOLDER if source_kind == "itself" else tmp_path
    samples = har.read(source)
    assert samples.values.shape == (54, 128, 1, 9) and samples.values.dtype == np.float32
    assert samples.labels.tolist() == list(range(6)) * 9 and samples.classes[5] == "LAYING"
    np.testing.assert_array_equal(samples.identity, subject)
    np.testing.assert_allclose(samples.values[:, :, 0] * samples.scale + samples.offset, raw, atol=3e-7)
    assert len(har.files(source)) == 22 and har.files(source)[10].name == "subject_train.txt"


def test_split_separates_people(layout):
    samples = har.read(layout)
    people = {name: sorted(set(samples.identity[rows].tolist())) for name, rows in samples.rows.items()}
    assert people == {"train": [1, 3], "val": [5, 6, 7, 8], "test": [2, 4, 9]}
    assert sum(len(rows) for rows in samples.rows.values()) == 54


def test_offset_and_scale_come_only_from_the_training_people(tmp_path):
    raw, _ = lay_out(tmp_path)
    samples = har.read(tmp_path)
    train = samples.values[samples.rows["train"], :, 0].astype(np.float64)
    np.testing.assert_allclose(train.mean(axis=(0, 1)), 0, atol=1e-6)
    assert np.square(train).mean() == pytest.approx(1, abs=1e-6)
    for split, name in (("val", "train"), ("test", "test")):  # other values in these rows do not change it
        path = tmp_path / name / "Inertial Signals" / f"body_acc_x_{name}.txt"
        lines = path.read_text().splitlines()
        lines[-1] = " ".join(["9.5"] * har.STEPS)
        path.write_text("\n".join(lines))
        changed = har.read(tmp_path)
        assert (changed.scale, changed.offset) == (samples.scale, samples.offset), split


def test_offset_and_scale_leave_out_people_of_the_final_split(tmp_path):
    raw, _ = lay_out(tmp_path)
    samples = har.read(tmp_path, final_fraction=0.5)
    kept = hold_out_final(samples.rows, samples.identity, fraction=0.5)["train"]
    assert 0 < len(kept) < len(samples.rows["train"])
    np.testing.assert_allclose(samples.offset, raw[kept].mean(axis=(0, 1)), atol=1e-6)
    assert samples.scale == pytest.approx(np.sqrt(np.square(raw[kept] - samples.offset).mean()))


def test_r2_in_stored_units_equals_r2_in_raw_units(tmp_path):
    raw, _ = lay_out(tmp_path)
    samples = har.read(tmp_path)
    train, test = samples.rows["train"], samples.rows["test"]
    guess = 0.3 * raw + 0.1
    stored_guess = (guess - samples.offset) / samples.scale

    def r2(x: np.ndarray, x_hat: np.ndarray) -> float:
        return 1 - np.square(x[test] - x_hat[test]).mean() / np.square(x[test] - x[train].mean(axis=0)).mean()

    assert r2(samples.values[:, :, 0].astype(np.float64), stored_guess) == pytest.approx(r2(raw, guess), abs=1e-6)
    stored_error = np.square(samples.values[:, :, 0] - stored_guess).mean()
    assert stored_error * samples.scale**2 == pytest.approx(np.square(raw - guess).mean(), rel=1e-6)


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_file_is_named_with_its_possible_paths(layout, split):
    for name in reversed(har.FILES[split]):
        (layout / har.FOLDER / split / name).unlink()
        with pytest.raises(InputError) as error:
            har.files(layout)
        assert f"{har.FOLDER}/{split}/{name} is missing (nor is there {split}/{name}): download" in str(error.value)


def _replace(line: int, text: str) -> Callable[[list[str]], None]:
    def spoil(lines: list[str]) -> None:
        lines[line] = text

    return spoil


def _field(line: int, field: int, text: str) -> Callable[[list[str]], None]:
    def spoil(lines: list[str]) -> None:
        fields = lines[line].split()
        fields[field] = text
        lines[line] = " ".join(fields)

    return spoil


SIGNAL, ACTIVITY, SUBJECT = "train/Inertial Signals/total_acc_y_train.txt", "train/y_train.txt", "test/subject_test.txt"
WRONG: dict[str, tuple[str, Callable[[list[str]], object], str]] = {
    "empty": (SIGNAL, lambda lines: lines.clear(), "line 1: expected 128 numbers, got ''"),
    "line cut": (SIGNAL, lambda lines: lines.append(lines.pop()[:-17]), "line 36: expected 128 numbers"),
    "line too long": (SIGNAL, _field(4, 0, "0.1 0.2"), "line 5: expected 128 numbers"),
    "line empty": (SIGNAL, _replace(7, ""), "line 8: expected 128 numbers, got ''"),
    "one column": (SIGNAL, lambda lines: lines.__setitem__(slice(None), ["0.5"] * 36), "line 1: expected 128 numbers, got '0.5'"),
    "word": (SIGNAL, _field(3, 9, "hello"), "line 4: expected 128 numbers"),
    "comment": (SIGNAL, _replace(3, "# hello"), "line 4: expected 128 numbers, got '# hello'"),
    "comma": (SIGNAL, _field(0, 0, "1,5"), "line 1: expected 128 numbers, got '1,5 "),
    "underscore": (SIGNAL, _field(0, 0, "1_5"), "line 1: expected 128 numbers"),
    "zero byte": (SIGNAL, _field(2, 5, "\0"), "line 3: expected 128 numbers"),
    "other letters": (SIGNAL, _field(2, 5, "\xe4"), "line 3: expected 128 numbers"),
    "nan": (SIGNAL, _field(1, 2, "nan"), "line 2: nan is not one of the numbers from -100 to 100"),
    "infinite": (SIGNAL, _field(1, 2, "-inf"), "line 2: -inf is not one"),
    "huge": (SIGNAL, _field(1, 2, "1e300"), "line 2: 1e+300 is not one"),
    "one line less": (SIGNAL, lambda lines: lines.pop(), "has 35 lines, but body_acc_x_train.txt has 36"),
    "activity 0": (ACTIVITY, _replace(5, "0"), "line 6: 0 is not one of the whole numbers from 1 to 6"),
    "activity 7": (ACTIVITY, _replace(5, "7"), "line 6: 7 is not one"),
    "activity 1.5": (ACTIVITY, _replace(5, "1.5"), "line 6: 1.5 is not one"),
    "activity missing": (ACTIVITY, lambda lines: lines.pop(), "has 35 lines"),
    "activity twice": (ACTIVITY, _replace(5, "1 1"), "line 6: expected 1 whole numbers"),
    "no such activity": (ACTIVITY, lambda lines: lines.__setitem__(slice(None), ["1"] * 36), "no training row has the activity"),
    "subject 31": (SUBJECT, _replace(0, "31"), "line 1: 31 is not one of the whole numbers from 1 to 30"),
    "subject in two splits": (SUBJECT, _replace(0, "3"), "identity 3 is in the train and the test split"),
    "too few people": (
        "train/subject_train.txt",
        lambda lines: lines.__setitem__(slice(None), ["1", "2", "3", "4"] * 9),
        "has 4 people",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_malformed_file_is_named_with_its_line(layout, case):
    name, spoil, expected = WRONG[case]
    path = layout / har.FOLDER / name
    lines = path.read_text().rstrip().split("\n")
    spoil(lines)
    path.write_text("\n".join(lines), encoding="latin-1")
    with pytest.raises(InputError) as error:
        har.read(layout)
    message = str(error.value)
    assert expected in message and "\n" not in message
    assert path.name in message or str(layout) in message


@pytest.mark.parametrize("name", [SIGNAL, ACTIVITY, SUBJECT])
def test_truncated_file_is_refused_unless_it_stays_valid(layout, name):
    path = layout / har.FOLDER / name
    content = path.read_bytes()
    for size in [*range(0, min(300, len(content) // 2), 23), len(content) // 2, len(content) - 20, len(content) - 40]:
        path.write_bytes(content[: max(0, size)])
        with pytest.raises(InputError):
            har.read(layout)


def test_other_line_endings_are_read(layout):
    expected = har.read(layout)
    for path in har.files(layout):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    np.testing.assert_array_equal(har.read(layout).values, expected.values)


def test_constant_channels_are_refused(tmp_path):
    for split, people in PEOPLE.items():
        subject = np.repeat(people, EACH)
        write(tmp_path, split, np.full((len(subject), har.STEPS, 9), 0.1), np.tile(np.arange(6), len(people)), subject)
    with pytest.raises(InputError, match="every channel is constant"):
        har.read(tmp_path)


def test_real_recordings_have_the_known_errors_of_the_mean(tmp_path):
    if not REAL.is_file():
        pytest.skip(f"no real recordings at {REAL}; CPGAN_DATA names the folder that holds har/uci_har_inertial.parquet")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(REAL)
    split, activity, subject = (table[name].to_numpy() for name in ("split", "activity", "subject"))
    every = np.arange(len(table)) % 6 == 0  # writing all rows takes long
    for name in PEOPLE:
        rows = np.flatnonzero(every & (split == name))
        signals = np.stack([np.stack(table[channel].take(rows).to_pylist()) for channel in har.CHANNELS], axis=2)
        write(tmp_path, name, signals, activity[rows], subject[rows])
    samples = har.read(tmp_path)
    people = {name: sorted(set(samples.identity[rows].tolist())) for name, rows in samples.rows.items()}
    assert people["val"] == [27, 28, 29, 30] and people["test"] == [2, 4, 9, 10, 12, 13, 18, 20, 24]
    raw = samples.values[:, :, 0] * samples.scale + np.array(samples.offset)
    train, test = np.concatenate([samples.rows["train"], samples.rows["val"]]), samples.rows["test"]
    means = np.stack([raw[train][samples.labels[train] == activity].mean(axis=0) for activity in range(6)])
    assert 9 * np.square(raw[test]).mean() == pytest.approx(1.4975, rel=0.02)
    assert 9 * np.square(raw[test] - raw[train].mean(axis=0)).mean() == pytest.approx(0.824, rel=0.03)
    assert 9 * np.square(raw[test] - means[samples.labels[test]]).mean() == pytest.approx(0.562, rel=0.05)

"""Read UCI HAR as it is downloaded: motion sensors of a telephone at the waist of 30 people, in windows of 2.56 s at 50 Hz.

    UCI HAR Dataset/{train,test}/Inertial Signals/body_acc_x_train.txt ...   per window a line of 128 numbers, a file per channel
                                 y_train.txt  subject_train.txt              per window its activity (1 to 6), its person

The data folder may also be `UCI HAR Dataset` itself. Neighbouring windows share half of their samples, so the splits separate
people, not windows: the official test people, and for validation the last four (by number) of the official training people.
"""

from pathlib import Path

import numpy as np

from cpgan_ray.data.final import hold_out_final
from cpgan_ray.data.samples import Samples, find_file, read_bytes, validate_samples
from cpgan_ray.errors import InputError

FOLDER = "UCI HAR Dataset"
CHANNELS = tuple(f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
"""Acceleration without and with gravity in g, rotation rate in rad/s."""
FILES = {
    split: (*(f"Inertial Signals/{channel}_{split}.txt" for channel in CHANNELS), f"y_{split}.txt", f"subject_{split}.txt")
    for split in ("train", "test")
}
CLASSES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
STEPS = 128
NUM_VALIDATION = 4
"""Number of validation people."""
MAX_VALUE = 100.0
"""Maximum absolute value, above the range of a telephone's sensors (2 g and 35 rad/s)."""
MAX_FILE_BYTES = 256 << 20
"""The largest official file has 15 MB."""


def files(source: Path) -> list[Path]:
    """The 22 files.

    Raises:
        InputError: a file is missing; names the first one.
    """
    remedy = "download https://archive.ics.uci.edu/dataset/240 and unpack it, also the zip inside"
    candidates = [[f"{folder}{split}/{name}" for folder in (f"{FOLDER}/", "")] for split in FILES for name in FILES[split]]
    return [find_file(source, paths, remedy=remedy) for paths in candidates]


def read(source: Path, *, final_fraction: float = 0.0) -> Samples:
    """All windows, (N, 128, 1, 9) float32, training people first; a person is an identity.

    The mean of each channel is subtracted, and all values are divided by one scale, the standard deviation over all channels; both
    come only from the people of the training split who are not in the final split (`hold_out_final`). With one common scale, a
    squared error in stored units is the raw squared error divided by scale^2, and R2 is the same as in raw units.

    Raises:
        InputError: a file is missing; a line or a number is malformed (names it); files differ in length; there are too few people.
    """
    paths = files(source)
    per_split = len(paths) // 2
    parts = [_read_split(paths[:per_split]), _read_split(paths[per_split:])]
    raw, activity, subject = (np.concatenate(part) for part in zip(*parts, strict=True))
    num_train = len(parts[0][1])
    people = np.unique(subject[:num_train])
    if len(people) <= NUM_VALIDATION:
        raise InputError(
            f"{paths[per_split - 1]} has {len(people)} people, but more than {NUM_VALIDATION} are needed: use the complete file"
        )
    held_out = np.isin(subject[:num_train], people[-NUM_VALIDATION:])
    rows = {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out), "test": np.arange(num_train, len(subject))}
    used = raw[hold_out_final(rows, subject, fraction=final_fraction)["train"]]
    offset = used.mean(axis=(0, 1))
    scale = float(np.sqrt(np.square(used - offset).mean()))
    if scale < 1e-6:  # below the precision of the files
        raise InputError(f"{paths[0].parent}: every channel is constant: download the data set again")
    samples = Samples(
        values=((raw - offset) / scale).astype(np.float32)[:, :, None],
        labels=activity.astype(np.int8),
        label_name="activity",
        classes=CLASSES,
        identity=subject,
        rows=rows,
        scale=scale,
        offset=tuple(offset.tolist()),
    )
    return validate_samples(samples, source)


def _read_split(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw signals (n, 128, 9) float64, activities (n,) from 0 and subjects (n,) of one split."""
    *signals, activity, subject = paths
    tables = [_read_table(path, columns=STEPS, low=-MAX_VALUE, high=MAX_VALUE) for path in signals]
    tables += [
        _read_table(activity, columns=1, low=1, high=len(CLASSES), whole=True),
        _read_table(subject, columns=1, low=1, high=30, whole=True),
    ]
    for path, table in zip(paths, tables, strict=True):
        if len(table) != len(tables[0]):
            raise InputError(
                f"{path} has {len(table)} lines, but {paths[0].name} has {len(tables[0])}: download the data set again"
            )
    return np.stack(tables[:-2], axis=2), tables[-2][:, 0].astype(np.int64) - 1, tables[-1][:, 0].astype(np.int64)


def _read_table(path: Path, *, columns: int, low: float, high: float, whole: bool = False) -> np.ndarray:
    """Read a file with `columns` numbers between `low` and `high` on each line: float64 (lines, columns)."""
    lines = read_bytes(path, limit=MAX_FILE_BYTES).decode("latin-1").rstrip().split("\n")
    kind = "whole numbers" if whole else "numbers"
    try:
        table = np.loadtxt(lines, comments=None, ndmin=2) if lines != [""] else np.empty((0, 0))
    except ValueError:
        table = np.empty((0, 0))
    if table.shape != (len(lines), columns):
        number = next((i for i, line in enumerate(lines, 1) if not _are_numbers(line, columns)), 1)
        line = " ".join(lines[number - 1].split())
        raise InputError(f"{path}, line {number}: expected {columns} {kind}, got {line[:60]!r}: download it again")
    in_range = (low <= table) & (table <= high)  # also False for NaN
    if whole:
        in_range &= table == np.round(table)
    if not in_range.all():
        row, column = np.argwhere(~in_range)[0].tolist()
        value = f"{table[row, column]:g}"
        raise InputError(f"{path}, line {row + 1}: {value} is not one of the {kind} from {low:g} to {high:g}: download it again")
    return table


def _are_numbers(line: str, columns: int) -> bool:
    fields = line.split()
    try:
        return len([float(field) for field in fields]) == columns
    except ValueError:
        return False

"""Read SVHN, cropped digits (format 2), as it is downloaded: 32 x 32 colour pictures, cropped from photographs of house numbers.

    train_32x32.mat    73,257 pictures: X (32, 32, 3, N) and y (N, 1), both uint8; the label of a zero is 10
    test_32x32.mat     26,032 pictures
    extra_32x32.mat    531,131 easier pictures, for training, with `data.extra`

Digits of one house number follow each other and their pictures overlap. Therefore the validation split is the last tenth of the
training file as one block, with a gap before it, and rows are resampled in blocks of neighbours.
"""

from pathlib import Path

import numpy as np

from cpgan_ray.data.formats.mat import read_mat
from cpgan_ray.data.samples import Samples, StackedArrays, find_file, validate_samples
from cpgan_ray.errors import InputError

TRAIN, TEST, EXTRA = "train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"
BLOCK = 10
"""Rows of one identity. A house number has 2 digits on average and at most 6, so few numbers are in two blocks, and a gap of one
block separates any two splits."""


def files(source: Path, *, extra: bool = False) -> list[Path]:
    """The two or three files.

    Raises:
        InputError: a file is missing; names the first one.
    """
    names = (TRAIN, TEST, EXTRA) if extra else (TRAIN, TEST)
    return [find_file(source, [name], remedy=f"download http://ufldl.stanford.edu/housenumbers/{name}") for name in names]


def read(source: Path, *, extra: bool = False) -> Samples:
    """All pictures, (N, 32, 32, 3): train, test, extra. The gap before the validation block is in no split.

    Raises:
        InputError: a file is missing, truncated or of another kind; the message names it and what was expected.
    """
    paths = files(source, extra=extra)
    read_files = [_read_file(path) for path in paths]
    ends = np.cumsum([len(y) for _, y in read_files])
    identity = np.empty(ends[-1], np.int64)
    num_blocks = 0
    for end, (_, y) in zip(ends, read_files, strict=True):
        identity[end - len(y) : end] = num_blocks + np.arange(len(y)) // BLOCK
        num_blocks += -(-len(y) // BLOCK)
    num_train = int(ends[0])
    start = (num_train - num_train // 10) // BLOCK * BLOCK
    train = [np.arange(max(0, start - BLOCK)), np.arange(ends[1], ends[-1])]
    samples = Samples(
        values=StackedArrays([x.transpose(3, 0, 1, 2) for x, _ in read_files]),
        labels=np.concatenate([np.where(y == 10, 0, y) for _, y in read_files]).astype(np.int8),
        label_name="digit",
        classes=tuple("0123456789"),
        identity=identity,
        rows={"train": np.concatenate(train), "val": np.arange(start, num_train), "test": np.arange(num_train, ends[1])},
    )
    return validate_samples(samples, source)


def _read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """X (32, 32, 3, N) and y (N,) of one file."""
    variables = read_mat(path, ("X", "y"))
    for name in ("X", "y"):
        if name not in variables:
            raise InputError(f"{path} has no variable {name}: it is not the file of cropped digits, download it again")
    x, y = variables["X"], variables["y"]
    if x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise InputError(f"{path}: X has shape {x.shape}, not (32, 32, 3, N): download it again")
    if y.shape != (x.shape[3], 1):
        raise InputError(f"{path}: y has shape {y.shape}, but there are {x.shape[3]} pictures: download it again")
    if invalid := np.flatnonzero((y < 1) | (y > 10)).tolist():
        raise InputError(
            f"{path}: label {y[invalid[0], 0]} of row {invalid[0]} is not between 1 and 10 (10: zero): download it again"
        )
    return x, y[:, 0]

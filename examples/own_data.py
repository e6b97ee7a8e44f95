"""Data of your own: a reader of a NumPy file with pictures, labels and people.

    python jobs/train_celeba.py --data-dir FOLDER --data.dataset examples/own_data.py:read --k 16
    python -m cpgan_ray.check examples/own_data.py:read --data-dir FOLDER

The folder has `pictures.npz`: `pictures` uint8 (N, H, W, C), `labels` (N,) from 0, `people` (N,). The function gets the folder
(None without --data-dir), the data configuration and its options. The project prepares a store from the result once; it prepares
it again when a file of the folder, the options or this code change.
"""

from pathlib import Path

import numpy as np

from cpgan_ray.config import DataConfig
from cpgan_ray.data.samples import Samples
from cpgan_ray.errors import InputError


def read(folder: Path | None, data: DataConfig, *, label: str = "class") -> Samples:
    """All pictures; a tenth of the people each is for validation and for test."""
    if folder is None or not (folder / "pictures.npz").is_file():
        raise InputError(f"{folder} has no pictures.npz: give its folder with --data-dir")
    with np.load(folder / "pictures.npz", allow_pickle=False) as arrays:
        pictures, labels, people = arrays["pictures"], arrays["labels"].astype(np.int8), arrays["people"].astype(np.int64)
    turn = people % 10  # a person is in one split only
    return Samples(
        values=pictures,
        labels=labels,
        label_name=label,
        classes=tuple(str(number) for number in range(int(labels.max()) + 1)),
        identity=people,
        rows={"train": np.flatnonzero(turn < 8), "val": np.flatnonzero(turn == 8), "test": np.flatnonzero(turn == 9)},
    )

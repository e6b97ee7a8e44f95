"""Read the handwritten digits that come with scikit-learn: 1,797 grey pictures, 8 x 8. Real data without a download.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits", by 13 people. The files do not name the writer of
a digit, so the split is by row and each row has its own identity.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from cpgan_ray.common.rng import stream
from cpgan_ray.data.samples import Samples, validate_samples
from cpgan_ray.errors import InputError

SPLIT_FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
SEED = 0


def files(source: Path | None = None) -> list[Path]:
    """The file inside scikit-learn.

    Raises:
        InputError: a folder is given, although none is read; or scikit-learn lacks the file.
    """
    if source is not None:
        raise InputError(f"data_dir is {source}, but the digits come with scikit-learn: leave it out, or choose another data set")
    spec = find_spec("sklearn")
    path = Path(spec.origin if spec and spec.origin else "sklearn").parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise InputError(f"{path} is missing: install scikit-learn again")
    return [path]


def read(source: Path | None = None) -> Samples:
    """All pictures, (1797, 8, 8, 1), scaled from 0..16 to 0..255. Each digit is split into 70 % train, 10 % val, 20 % test with a
    fixed seed.

    Raises:
        InputError: see `files`.
    """
    files(source)
    from sklearn.datasets import load_digits  # takes 2 s

    digits = cast(Any, load_digits())
    labels = digits.target.astype(np.int8)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLIT_FRACTIONS}
    for digit in range(10):
        rows = stream(SEED, "digits", digit).permutation(np.flatnonzero(labels == digit))
        cuts = np.rint(np.cumsum(list(SPLIT_FRACTIONS.values()))[:-1] * len(rows)).astype(int)
        for split, part in zip(SPLIT_FRACTIONS, np.split(rows, cuts), strict=True):
            parts[split].append(part)
    samples = Samples(
        values=np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None],
        labels=labels,
        label_name="digit",
        classes=tuple("0123456789"),
        identity=np.arange(len(labels)),
        rows={split: np.sort(np.concatenate(part)) for split, part in parts.items()},
    )
    return validate_samples(samples, "scikit-learn's digits")

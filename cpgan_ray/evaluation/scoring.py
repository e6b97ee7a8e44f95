"""What an attack recovered on the score set, with its interval; and whether two runs differ. All sums in float64."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cpgan_ray.common.process import trim_memory
from cpgan_ray.common.rng import stream
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, to_pixels
from cpgan_ray.evaluation.similarity import as_unit, legacy_mse, similarity

RESAMPLES = 1000
BLOCK_VALUES = 1 << 20
"""Counts of people that are drawn at once."""


@dataclass(frozen=True)
class Score:
    """R2 on the score rows with a 95 % interval; mean squared errors per value; likeness of the pictures."""

    r2: float
    low: float
    high: float
    mse: float  # of pictures in [0, 1], of signals as they are stored
    mse_255: float | None = None  # of pictures, 0-255
    mse_raw: float | None = None  # of signals, in their own unit
    psnr: float | None = None  # dB; of pictures only, as those below
    ssim: float | None = None
    ms_ssim: float | None = None
    legacy_mse: float | None = None  # the original's wrapped metric, if asked for


@dataclass(frozen=True, eq=False)
class RowErrors:
    """Mean squared errors per value of each score row, (N,) float64, pictures in [-1, 1]: all that an interval or a test needs."""

    errors: np.ndarray
    mean_errors: np.ndarray  # of the mean picture
    identity: np.ndarray

    @property
    def r2(self) -> float:
        return float(1 - self.errors.sum() / self.mean_errors.sum())


def score(data: AttackData, attack: Fitted, *, similar: bool = True, legacy: bool = False) -> tuple[Score, RowErrors]:
    """R2 = 1 - MSE / MSE(mean training picture) and its companions; the interval resamples people, not pictures.

    Of pictures, `similar`: also PSNR, SSIM and MS-SSIM; `legacy`: also the original's metric.

    Raises: ValueError where a reconstruction is not on the scale of the pictures, or not finite.
    """
    trim_memory()
    errors, mean_errors = np.empty((2, len(data.score)))
    likeness: dict[str, float] = {}  # sums
    start = 0
    for z, x in data.score.pixel_blocks():
        x_hat = to_pixels(data, attack, z)
        here = slice(start, start := start + len(x))
        errors[here] = (x_hat - x).double().square().mean(1).cpu().numpy()
        mean_errors[here] = x.double().square().mean(1).cpu().numpy()
        found = likenesses(data, x_hat, x, similar=similar, legacy=legacy)
        likeness |= {name: likeness.get(name, 0.0) + float(values.sum(dtype=np.float64)) for name, values in found.items()}
    rows = RowErrors(errors, mean_errors, data.score.identity)
    low, high = interval(rows, seed=data.seed)
    mse = float(rows.errors.mean())
    of_one = mse / 4  # in [-1, 1] a unit is half of that in [0, 1]
    units = {"mse": of_one, "mse_255": of_one * 255**2} if data.pictures else {"mse": mse, "mse_raw": mse * data.unit**2}
    extra = {name: total / len(rows.errors) for name, total in likeness.items()}
    return Score(r2=rows.r2, low=low, high=high, **units, **extra), rows


def likenesses(data: AttackData, x_hat: Tensor, x: Tensor, *, similar: bool, legacy: bool) -> dict[str, np.ndarray]:
    """PSNR and its companions (B,) of reconstructions and pictures (B, D) less the mean picture; nothing where they are signals."""
    if not data.pictures or data.bounds is None or data.image_shape is None or not (similar or legacy):
        return {}
    shape = (len(x), *data.image_shape)
    one, other = (as_unit((values - data.bounds[0] - 1).cpu().view(shape)) for values in (x_hat, x))
    return (similarity(one, other) if similar else {}) | ({"legacy_mse": legacy_mse(one, other)} if legacy else {})


def resamples(people: int, *, seed: int) -> Iterator[np.ndarray]:
    """How often each person counts in each bootstrap sample: blocks of (n, people), RESAMPLES rows in all."""
    rng = stream(seed, "bootstrap")
    size = max(1, BLOCK_VALUES // people)
    for start in range(0, RESAMPLES, size):
        yield rng.multinomial(people, np.full(people, 1 / people), size=min(size, RESAMPLES - start))


def resampled_sums(columns: Iterable[np.ndarray], identity: np.ndarray, *, seed: int) -> np.ndarray:
    """Sums of some values per score row, each (N,), in each bootstrap sample: (RESAMPLES, columns); with the same seed and people,
    of the same draws."""
    _, person = np.unique(identity, return_inverse=True)
    sums = np.stack([np.bincount(person, weights=v) for v in columns])
    return np.concatenate([draws @ sums.T for draws in resamples(sums.shape[1], seed=seed)])


def resampled_r2(rows: RowErrors, *, seed: int) -> np.ndarray:
    """R2 of each bootstrap sample, (RESAMPLES,)."""
    resampled = resampled_sums((rows.errors, rows.mean_errors), rows.identity, seed=seed)
    return 1 - resampled[:, 0] / resampled[:, 1]


def interval(rows: RowErrors, *, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of R2, resampling identities."""
    low, high = np.quantile(resampled_r2(rows, seed=seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: np.ndarray, identity: np.ndarray, *, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of a value per score row, (N,), resampling identities."""
    sums = RowErrors(values, np.ones(len(values)), identity)
    low, high = interval(sums, seed=seed, level=level)
    return 1 - high, 1 - low


def resampled_hits(right: np.ndarray, of_class: np.ndarray, identity: np.ndarray, *, seed: int) -> np.ndarray:
    """In each bootstrap sample over identities, right answers and samples of each class of each label: (2, RESAMPLES, L, C).

    right: (N, L) bool, whether the answer is right; of_class: (N, L, C) bool, whether the truth is that class.
    """
    _, labels, classes = of_class.shape
    columns = (side[:, i, c] for side in (of_class & right[:, :, None], of_class) for i in range(labels) for c in range(classes))
    return resampled_sums(columns, identity, seed=seed).reshape(RESAMPLES, 2, labels, classes).transpose(1, 0, 2, 3)


def balanced_accuracy_interval(
    right: np.ndarray, of_class: np.ndarray, identity: np.ndarray, *, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval, resampling identities, of the mean recall over classes and then over labels; classes that a
    sample lacks do not count in it. Arguments: see `resampled_hits`."""
    hits, sizes = resampled_hits(right, of_class, identity, seed=seed)
    recall = np.divide(hits, sizes, out=np.full_like(hits, np.nan), where=sizes > 0)
    low, high = np.quantile(np.nanmean(recall, axis=2).mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def accuracy_intervals(
    right: np.ndarray, of_class: np.ndarray, identity: np.ndarray, *, seed: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap intervals of each label's accuracy and of its balanced accuracy (mean recall of its classes), resampling
    identities: (L, 2) each. Samples that lack one of a label's classes do not count in the latter; NaN where all of them do.

    right: (N, L) bool, whether the answer is right; of_class: (N, L, C) bool, whether the truth is that class.
    """
    labels = of_class.shape[1]
    hits, sizes = resampled_hits(right, of_class, identity, seed=seed).transpose(0, 2, 1, 3)
    plain, balanced = np.empty((labels, 2)), np.full((labels, 2), np.nan)
    ends = [(1 - level) / 2, (1 + level) / 2]
    for i in range(labels):
        plain[i] = np.quantile(hits[i].sum(axis=1) / sizes[i].sum(axis=1), ends)
        if (whole := sizes[i].all(axis=1)).any():
            balanced[i] = np.quantile((hits[i][whole] / sizes[i][whole]).mean(axis=1), ends)
    return plain, balanced


@dataclass(frozen=True)
class Difference:
    """R2 of one run less another's on the same score rows, with a 95 % interval and a two-sided bootstrap p-value."""

    r2: float
    low: float
    high: float
    p: float


def paired_difference(one: RowErrors, other: RowErrors, *, seed: int) -> Difference:
    """Whether two runs differ: both are resampled with the same draws of people, so that what they share cancels.

    Raises: ValueError where the score rows are not the same.
    """
    if not (np.array_equal(one.identity, other.identity) and np.allclose(one.mean_errors, other.mean_errors, rtol=1e-3)):
        raise ValueError("the two runs were scored on different pictures")
    differences = resampled_r2(one, seed=seed) - resampled_r2(other, seed=seed)
    low, high = np.quantile(differences, [0.025, 0.975])
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    return Difference(one.r2 - other.r2, float(low), float(high), float(min(1.0, max(2 * tail, 1 / RESAMPLES))))

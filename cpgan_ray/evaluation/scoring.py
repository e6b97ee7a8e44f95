"""The score of an attack on the score set, with its interval; and whether two runs differ. All sums are in float64."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from cpgan_ray.common.process import trim_memory
from cpgan_ray.common.rng import stream
from cpgan_ray.data.store import MISSING
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, to_pixels
from cpgan_ray.evaluation.similarity import as_unit, legacy_mse, similarity

RESAMPLES = 1000
BLOCK_VALUES = 1 << 20
"""Number of bootstrap counts (one per person and bootstrap sample) that are drawn at once."""


@dataclass(frozen=True)
class Score:
    """R2 on the score rows with a 95 % interval over people and restarts; mean squared errors per value; similarity of the
    pictures."""

    r2: float
    low: float
    high: float
    mse: float  # pictures: values in [0, 1]; signals: values as stored
    mse_255: float | None = None  # only pictures: values 0-255
    mse_raw: float | None = None  # only signals: in their own unit
    psnr: float | None = None  # dB; this and the fields below only for pictures
    ssim: float | None = None
    ms_ssim: float | None = None
    legacy_mse: float | None = None  # the reference implementation's wrapped metric, if requested
    face_r2: float | None = None  # R2 on the face region, with its interval; only for data sets that have one
    face_low: float | None = None
    face_high: float | None = None
    restart_std: float | None = None  # standard deviation of R2 between fits under other seeds; None: the attack draws nothing


@dataclass(frozen=True, eq=False)
class RowErrors:
    """For each score row the mean squared error per value, (N,) float64, of pictures in [-1, 1]. Intervals and tests need only
    this."""

    errors: np.ndarray
    mean_errors: np.ndarray  # errors of the mean picture
    identity: np.ndarray
    restart_std: float = 0.0  # standard deviation of R2 between fits of the attack under other seeds; 0: it draws nothing

    @property
    def r2(self) -> float:
        return float(1 - self.errors.sum() / self.mean_errors.sum())


def score(data: AttackData, attack: Fitted, *, similar: bool = True, legacy: bool = False) -> tuple[Score, RowErrors]:
    """R2 = 1 - MSE / MSE(mean training picture) and the other measures; the interval resamples people, not pictures, and includes
    the attack's own uncertainty (`restart_std`).

    For pictures, `similar` adds PSNR, SSIM and MS-SSIM; `legacy` adds the metric of the reference implementation.

    Raises: ValueError if a reconstruction is not on the scale of the pictures, or not finite.
    """
    trim_memory()
    errors, mean_errors = np.empty((2, len(data.score)))
    face_errors, face_mean_errors = np.empty((2, len(data.score)))
    sums: dict[str, float] = {}
    start = 0
    for z, x in data.score.pixel_blocks():
        x_hat = to_pixels(data, attack, z)
        block = slice(start, start := start + len(x))
        errors[block] = (x_hat - x).double().square().mean(1).cpu().numpy()
        mean_errors[block] = x.double().square().mean(1).cpu().numpy()
        if data.face is not None:
            face_errors[block] = (x_hat - x)[:, data.face].double().square().mean(1).cpu().numpy()
            face_mean_errors[block] = x[:, data.face].double().square().mean(1).cpu().numpy()
        similarities = picture_similarity(data, x_hat, x, similar=similar, legacy=legacy)
        sums |= {name: sums.get(name, 0.0) + float(values.sum(dtype=np.float64)) for name, values in similarities.items()}
    deviation, face_deviation = restart_std(data, attack)
    rows = RowErrors(errors, mean_errors, data.score.identity, restart_std=deviation or 0.0)
    low, high = interval(rows, seed=data.seed)
    mse = float(rows.errors.mean())
    unit_mse = mse / 4  # a distance in [-1, 1] is twice the distance in [0, 1]
    units = {"mse": unit_mse, "mse_255": unit_mse * 255**2} if data.pictures else {"mse": mse, "mse_raw": mse * data.unit**2}
    means = {name: total / len(rows.errors) for name, total in sums.items()}
    face = {}
    if data.face is not None:
        face_rows = RowErrors(face_errors, face_mean_errors, data.score.identity, restart_std=face_deviation or 0.0)
        face = dict(zip(("face_r2", "face_low", "face_high"), (face_rows.r2, *interval(face_rows, seed=data.seed)), strict=True))
    return Score(r2=rows.r2, low=low, high=high, **units, **means, **face, restart_std=deviation), rows


def restart_std(data: AttackData, attack: Fitted) -> tuple[float | None, float | None]:
    """Standard deviation of the attack's R2 on the score rows if it were fitted again under other seeds, estimated from its n
    restarts: on the whole picture, and on the face region.

    s^2 is the sample variance of the restarts' R2. An attack that is one restart varies by s. The average of n restarts varies by
    s / sqrt(n): to first order its R2 is a constant plus the mean of the restarts' deviations, which are independent. None if the
    attack has no random parts or only one restart; the second is also None if the data set has no face region.
    """
    if len(attack.restarts) < 2:
        return None, None
    alone = [replace(attack, reconstruct=restart) for restart in attack.restarts]
    regions = [slice(None), *([data.face] if data.face is not None else [])]
    errors, totals = np.zeros((len(regions), len(alone))), np.zeros(len(regions))
    for z, x in data.score.pixel_blocks():
        for i, restart in enumerate(alone):
            x_hat = to_pixels(data, restart, z)
            errors[:, i] += [float((x_hat - x)[:, region].double().square().sum()) for region in regions]
        totals += [float(x[:, region].double().square().sum()) for region in regions]
    deviations = np.std(1 - errors / totals[:, None], axis=1, ddof=1) / (len(alone) ** 0.5 if attack.averaged else 1.0)
    return float(deviations[0]), float(deviations[1]) if data.face is not None else None


def picture_similarity(data: AttackData, x_hat: Tensor, x: Tensor, *, similar: bool, legacy: bool) -> dict[str, np.ndarray]:
    """PSNR and the other similarity measures (B,) of reconstructions and pictures (B, D), both minus the mean picture. Empty for
    signals."""
    if not data.pictures or data.bounds is None or data.image_shape is None or not (similar or legacy):
        return {}
    shape = (len(x), *data.image_shape)
    unit_x_hat, unit_x = (as_unit((values - data.bounds[0] - 1).cpu().view(shape)) for values in (x_hat, x))
    measures = similarity(unit_x_hat, unit_x) if similar else {}
    return measures | ({"legacy_mse": legacy_mse(unit_x_hat, unit_x)} if legacy else {})


def resamples(people: int, *, seed: int) -> Iterator[np.ndarray]:
    """How often each person occurs in each bootstrap sample: blocks of (n, people), RESAMPLES rows in total."""
    rng = stream(seed, "bootstrap")
    size = max(1, BLOCK_VALUES // people)
    for start in range(0, RESAMPLES, size):
        yield rng.multinomial(people, np.full(people, 1 / people), size=min(size, RESAMPLES - start))


def interval_ends(identity: np.ndarray, *, level: float = 0.95) -> list[float]:
    """The two quantiles of a bootstrap distribution over people that are the ends of an interval at this level.

    The plain percentile interval is too narrow for few people: the variance of a bootstrap sample of G people is too small by a
    factor of (G - 1) / G, and its quantiles are those of a normal distribution, not of Student's t. The expanded percentile
    interval corrects both: instead of (1 - level) / 2 it takes the quantile Phi(-sqrt(G / (G - 1)) t), where t is the quantile of
    Student's distribution with G - 1 degrees of freedom.

    Source: T. C. Hesterberg, What teachers should know about the bootstrap, The American Statistician 69, 2015, section 4.5.
    """
    people = len(np.unique(identity))
    if people < 2:
        return [0.0, 1.0]
    from scipy import special  # takes 0.2 s

    tail = float(special.ndtr(-math.sqrt(people / (people - 1)) * special.stdtrit(people - 1, (1 + level) / 2)))
    return [tail, 1 - tail]


def two_sided_p(tail: float, *, people: int) -> float:
    """Two-sided p-value if a bootstrap distribution over people has this share beyond 0: 1 - the largest level at which the
    interval with `interval_ends` excludes 0."""
    if people < 2 or tail >= 0.5:
        return 1.0
    from scipy import special  # takes 0.2 s

    return float(2 * special.stdtr(people - 1, special.ndtri(tail) / math.sqrt(people / (people - 1))))


def resampled_sums(columns: Iterable[np.ndarray], identity: np.ndarray, *, seed: int) -> np.ndarray:
    """Sum of each column (N,) of values per score row, in each bootstrap sample: (RESAMPLES, columns). With the same seed and
    people the bootstrap samples are the same."""
    _, person = np.unique(identity, return_inverse=True)
    sums = np.stack([np.bincount(person, weights=v) for v in columns])
    return np.concatenate([draws @ sums.T for draws in resamples(sums.shape[1], seed=seed)])


def resampled_r2(rows: RowErrors, *, seed: int) -> np.ndarray:
    """R2 of each bootstrap sample over people, (RESAMPLES,)."""
    resampled = resampled_sums((rows.errors, rows.mean_errors), rows.identity, seed=seed)
    return 1 - resampled[:, 0] / resampled[:, 1]


def with_restarts(samples: np.ndarray, restart_std: float, *, seed: int) -> np.ndarray:
    """Add to each bootstrap sample a normal number of this standard deviation, so that the variance of the samples is Var(people) +
    restart_std^2."""
    if restart_std == 0:
        return samples
    return samples + restart_std * stream(seed, "bootstrap", "restarts").standard_normal(len(samples))


def interval(rows: RowErrors, *, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Expanded percentile bootstrap interval of R2, resampling identities, which includes the uncertainty of the attack
    (`RowErrors.restart_std`)."""
    r2 = with_restarts(resampled_r2(rows, seed=seed), rows.restart_std, seed=seed)
    low, high = np.quantile(r2, interval_ends(rows.identity, level=level))
    return float(low), float(high)


def mean_interval(values: np.ndarray, identity: np.ndarray, *, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Expanded percentile bootstrap interval of the mean of a value per score row, (N,), resampling identities."""
    sums = RowErrors(values, np.ones(len(values)), identity)
    low, high = interval(sums, seed=seed, level=level)
    return 1 - high, 1 - low


def mean_over_labels_interval(
    values: np.ndarray, known: np.ndarray, identity: np.ndarray, *, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Expanded percentile bootstrap interval, resampling identities, of the mean over labels of each label's mean over the rows
    with an answer. A label without an answer in a bootstrap sample does not count in it.

    values: (N, L) bool or float; known: (N, L) bool, at least one True.
    """
    if known.all():  # a mean of equally many rows is a mean over rows
        return mean_interval(values.mean(axis=1), identity, seed=seed, level=level)
    sums = resampled_sums((*np.where(known, values, 0).T, *known.T), identity, seed=seed)
    totals, counts = np.split(sums, 2, axis=1)
    means = mean_where(np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0), counts > 0)
    return ends_of(means, identity, level=level)


def mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean over the last axis of the values that are to count; NaN if none is."""
    count = where.sum(axis=-1)
    return np.divide(np.where(where, values, 0).sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def ends_of(samples: np.ndarray, identity: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """The ends of the interval of a statistic from its values in bootstrap samples, (RESAMPLES,). Samples in which it does not
    exist (NaN) are left out; both ends are NaN if there are no others."""
    existing = samples[~np.isnan(samples)]
    if not len(existing):
        return math.nan, math.nan
    low, high = np.quantile(existing, interval_ends(identity, level=level))
    return float(low), float(high)


def resampled_hits(
    right: np.ndarray, y: np.ndarray, identity: np.ndarray, *, num_values: Sequence[int], seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each label the number of right answers to the rows with each of its values, and the number of these rows, in each
    bootstrap sample over identities: (RESAMPLES, C) each.

    right: (N, L) bool, whether the answer is right; y: (N, L), the true answers, `MISSING` where one is not known; num_values: of
    each label.
    """
    of_value = [y[:, i] == value for i, count in enumerate(num_values) for value in range(count)]
    label = np.repeat(np.arange(len(num_values)), num_values)
    hits = (flags & right[:, i] for flags, i in zip(of_value, label, strict=True))
    sums = np.split(resampled_sums((*hits, *of_value), identity, seed=seed), 2, axis=1)
    edges = np.cumsum(num_values)[:-1]
    return list(zip(*(np.split(part, edges, axis=1) for part in sums), strict=True))


def balanced_accuracy_interval(
    right: np.ndarray, y: np.ndarray, identity: np.ndarray, *, num_values: Sequence[int], seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Expanded percentile bootstrap interval, resampling identities, of the mean recall over the values of a label and then over
    the labels of which two values occur; of the mean accuracy if there is no such label. A value, or a label, that is absent from a
    bootstrap sample does not count in it. Arguments: see `resampled_hits`."""
    counted = [i for i in range(len(num_values)) if len(np.unique(y[y[:, i] != MISSING, i])) > 1]
    if not counted:
        return mean_over_labels_interval(right, y != MISSING, identity, seed=seed, level=level)
    values = [num_values[i] for i in counted]
    samples = resampled_balanced_accuracy(right[:, counted], y[:, counted], identity, num_values=values, seed=seed)
    return ends_of(samples, identity, level=level)


def resampled_balanced_accuracy(
    right: np.ndarray, y: np.ndarray, identity: np.ndarray, *, num_values: Sequence[int], seed: int
) -> np.ndarray:
    """The mean recall over the values of a label and then over the labels, in each bootstrap sample over identities, (RESAMPLES,).
    A value, or a label, that is absent from a bootstrap sample does not count in it. Arguments: see `resampled_hits`."""
    resampled = resampled_hits(right, y, identity, num_values=num_values, seed=seed)
    recalls = [np.divide(hits, sizes, out=np.zeros_like(hits), where=sizes > 0) for hits, sizes in resampled]
    of_labels = [mean_where(recall, sizes > 0) for recall, (_, sizes) in zip(recalls, resampled, strict=True)]
    of_label = np.stack(of_labels, axis=1)
    return mean_where(of_label, ~np.isnan(of_label))


def accuracy_intervals(
    right: np.ndarray, y: np.ndarray, identity: np.ndarray, *, num_values: Sequence[int], seed: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Expanded percentile bootstrap intervals of each label's accuracy and of its balanced accuracy (mean recall of its values that
    occur), resampling identities: (L, 2) each. Bootstrap samples without one of these values do not count in the balanced accuracy,
    samples without any answer not in the accuracy. An interval is NaN if no samples are left, or if fewer than two values occur.

    Arguments: see `resampled_hits`.
    """
    plain, balanced = np.full((2, len(num_values), 2), np.nan)
    for i, (hits, sizes) in enumerate(resampled_hits(right, y, identity, num_values=num_values, seed=seed)):
        occurring = np.isin(np.arange(num_values[i]), y[:, i])
        hits, sizes = hits[:, occurring], sizes[:, occurring]
        if (answered := sizes.sum(axis=1) > 0).any():
            plain[i] = ends_of(hits[answered].sum(axis=1) / sizes[answered].sum(axis=1), identity, level=level)
        if occurring.sum() > 1 and (complete := sizes.all(axis=1)).any():
            balanced[i] = ends_of((hits[complete] / sizes[complete]).mean(axis=1), identity, level=level)
    return plain, balanced


@dataclass(frozen=True)
class Difference:
    """Difference between the R2 of two runs on the same score rows, with a 95 % interval and a two-sided bootstrap p-value."""

    r2: float
    low: float
    high: float
    p: float


def paired_difference(a: RowErrors, b: RowErrors, *, seed: int) -> Difference:
    """R2 of `a` minus R2 of `b`. Both use the same bootstrap samples of people, so that common variation cancels. The two attacks
    are fitted independently, so the variances of their restarts are added.

    Raises: ValueError if the score rows differ.
    """
    if not (np.array_equal(a.identity, b.identity) and np.allclose(a.mean_errors, b.mean_errors, rtol=1e-3)):
        raise ValueError("the two runs were scored on different pictures")
    differences = resampled_r2(a, seed=seed) - resampled_r2(b, seed=seed)
    differences = with_restarts(differences, math.hypot(a.restart_std, b.restart_std), seed=seed)
    low, high = np.quantile(differences, interval_ends(a.identity))
    tail = max(min((differences <= 0).mean(), (differences >= 0).mean()), 1 / (2 * RESAMPLES))
    return Difference(a.r2 - b.r2, float(low), float(high), two_sided_p(tail, people=len(np.unique(a.identity))))

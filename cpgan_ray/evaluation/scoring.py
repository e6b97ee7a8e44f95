"""What an attack recovered, with its interval."""

from dataclasses import dataclass

import numpy as np

from cpgan_ray.evaluation.attacks import AttackData, Fitted, predict
from cpgan_ray.streams import stream

RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """R2 on the score rows with a 95 % interval, and mean squared errors on [0, 1] and 0-255."""

    r2: float
    low: float
    high: float
    mse: float
    mse_255: float


def score(data: AttackData, attack: Fitted, *, identity: np.ndarray) -> Score:
    """R2 = 1 - MSE / MSE(mean training picture), in float64; the interval resamples people, not pictures.

    identity: (N,) of the score rows.
    """
    target = data.score.target
    errors = target.errors(predict(attack.reconstruct, data.score.z)).double().numpy()
    mean_errors = target.mean_errors().double().numpy()
    low, high = interval(errors, mean_errors, identity=identity, seed=data.seed)
    mse = float(errors.mean()) / 4  # pictures in [-1, 1]: half the unit of [0, 1], squared
    return Score(r2=1 - errors.sum() / mean_errors.sum(), low=low, high=high, mse=mse, mse_255=mse * 255**2)


def interval(
    errors: np.ndarray, mean_errors: np.ndarray, *, identity: np.ndarray, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of 1 - sum(errors) / sum(mean_errors), resampling identities."""
    _, person = np.unique(identity, return_inverse=True)
    sums = np.stack([np.bincount(person, weights=v) for v in (errors, mean_errors)])
    people = sums.shape[1]
    draws = stream(seed, "bootstrap").multinomial(people, np.full(people, 1 / people), size=RESAMPLES)
    resampled = draws @ sums.T
    low, high = np.quantile(1 - resampled[:, 0] / resampled[:, 1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

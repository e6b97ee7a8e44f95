"""Check whether an encoder gives a picture the same code again: in other batches, in another order, and alone.

All numbers about an encoder are only valid if its code depends only on the picture: not on the number of pictures it has seen, and
not on the other pictures in the batch. Therefore the codes of some pictures of every set are computed twice more, after all sets
were encoded.

*Deterministic* (the default): in each column of the codes, at most a share TOLERATED of the pictures may differ by more than
TOLERANCE standard deviations of the column. Sums in another order change float32 results by about 1e-6 standard deviations. This
may move a rounded value (a quantised code, a network with integer weights) by a whole step, but only for few pictures. The share is
counted per column, because a single column may carry all the information.

*Stochastic* (declared): the differences between repeated codes must be noise: with mean zero; of the same size in all sets, in the
first and the later codes, in a batch and alone; and independent between pictures. Each test measures a difference in standard
errors and allows at most LIMIT. The noise itself is not evaluated: the attacks see it like any other part of the code.

This check does not find: an encoder that recognises pictures (its author can make it return anything for the pictures of a public
data set), differences below the tolerance, and correlations that no test covers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cpgan_ray.errors import InputError

SAMPLE = 200
"""Number of pictures of each set that are encoded again."""
SINGLE = 20
"""Number of these that are encoded alone."""
SIZES = (3, 2, 5, 17, 64, 101)
"""Sizes of the other batches, used in turn."""
TOLERANCE = 1e-3
"""Allowed difference between two codes, as a share of the column's standard deviation."""
TOLERATED = 0.01
"""Share of pictures, in each column, that may differ by more than TOLERANCE."""
LIMIT = 7.0
"""Maximal difference in standard errors: by chance, a larger one occurs in one of 10^11 tests."""
REMEDY = "export it in eval mode and without state, or declare a stochastic release with --encoder.stochastic"


def check_repeats(
    codes: Mapping[str, np.ndarray],
    pictures: Callable[[str, np.ndarray], np.ndarray],
    encode: Callable[[np.ndarray], np.ndarray],
    *,
    subject: str,
    stochastic: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Encode some pictures again and compare. Returns the result for the report.

    codes: all sets, (N, k) each; pictures: name of a set and row numbers -> input of `encode`; subject: the encoder in error
    messages.

    Raises: InputError if the codes differ more than allowed.
    """
    sets = [(name, rng.permutation(len(z))[:SAMPLE]) for name, z in codes.items()]
    samples = [(name, row) for name, rows in sets for row in rows]
    alone = np.concatenate([np.arange(len(rows)) < SINGLE for _, rows in sets])
    first = np.concatenate([codes[name][rows] for name, rows in sets])

    def encode_again() -> tuple[np.ndarray, np.ndarray]:
        """Codes of the samples, and for each the number of its batch."""
        z, batches = np.empty_like(first), np.empty(len(samples), np.int64)
        for number, rows in enumerate(_batches(alone, rng)):
            batch = [pictures(samples[i][0], np.array([samples[i][1]])) for i in rows]
            z[rows], batches[rows] = encode(np.concatenate(batch)), number
        return z, batches

    (second, batches), (third, _) = encode_again(), encode_again()
    names = np.concatenate([np.full(len(rows), number) for number, (_, rows) in enumerate(sets)])
    if not stochastic:
        spread = np.concatenate(list(codes.values())).std(axis=0, dtype=np.float64)
        share = max(_differing_share(first, second, spread), _differing_share(first, third, spread))
        if share > TOLERATED:
            raise InputError(
                f"{subject} gives {100 * share:.3g} % of {len(samples)} pictures another code when it encodes them again, in other "
                f"batches and another order: its codes depend on more than the picture; {REMEDY}"
            )
        return {"pictures": len(samples), "differing": share}
    problem = _noise_problem(first, second, third, names=names, alone=alone, batches=batches)
    if problem:
        raise InputError(
            f"{subject} is declared as stochastic, but its codes differ by more than noise: {problem}; export it without state"
        )
    return {"pictures": len(samples), "noise_std": float(np.sqrt(((second - third).astype(np.float64) ** 2).mean() / 2))}


def _batches(alone: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of each batch: those marked `alone` one by one, the others in batches of several sizes, in a random order."""
    batches = [np.array([row]) for row in np.flatnonzero(alone)]
    rest, start, turn = rng.permutation(np.flatnonzero(~alone)), 0, int(rng.integers(len(SIZES)))
    while start < len(rest):
        batches.append(rest[start : start + SIZES[turn % len(SIZES)]])
        start, turn = start + len(batches[-1]), turn + 1
    return [batches[i] for i in rng.permutation(len(batches))]


def _differing_share(a: np.ndarray, b: np.ndarray, spread: np.ndarray) -> float:
    """The share of pictures whose codes differ, in the column in which this share is largest."""
    size = np.abs(a).max(axis=0)
    allowed = np.maximum(TOLERANCE * spread, 1e-6 * size)
    return float((np.abs(a.astype(np.float64) - b) > allowed).mean(axis=0).max())


def _noise_problem(
    first: np.ndarray, second: np.ndarray, third: np.ndarray, *, names: np.ndarray, alone: np.ndarray, batches: np.ndarray
) -> str:
    """Why the differences are not noise, in a few words; empty if they may be noise."""
    early, late = (first - second).astype(np.float64), (second - third).astype(np.float64)
    scale = np.sqrt((early**2 + late**2).mean(axis=0) / 2)
    moving = scale > 0
    if not moving.any():
        return ""
    early, late = early[:, moving] / scale[moving], late[:, moving] / scale[moving]
    if (worst := _max_mean_error(early)) > LIMIT:
        return f"the first codes have another mean than the later ones ({worst:.1f} standard errors)"
    power, power_late = (early**2).mean(axis=1), (late**2).mean(axis=1)
    groups = [(power, power_late, "the first codes differ by more, or by less, than the later ones")]
    groups += [(power[alone], power[~alone], "a picture alone gets another noise than a picture in a batch")]
    groups += [(power_late[alone], power_late[~alone], "a picture alone gets another noise than a picture in a batch")]
    for number in np.unique(names):
        groups += [(power[names == number], power[names != number], "one of the sets gets another noise than the others")]
    for a, b, problem in groups:
        if _mean_difference(a, b) > LIMIT:
            return problem
    shared = [rows for number in range(batches.max() + 1) if len(rows := np.flatnonzero(batches == number)) > 1]
    for values in (early, late, _standardised(power)[:, None], _standardised(power_late)[:, None]):
        if _dependence(values, shared) > LIMIT:
            return "pictures of one batch share their noise"
    return ""


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-12)


def _max_mean_error(values: np.ndarray) -> float:
    """The largest absolute mean of a column, in standard errors."""
    return float((np.abs(values.mean(axis=0)) / (values.std(axis=0) / np.sqrt(len(values)) + 1e-12)).max())


def _mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The difference of two means in standard errors. A tenth of the larger mean is allowed, because the pictures differ."""
    if min(len(a), len(b)) < 2:
        return 0.0
    error = np.sqrt(a.var() / len(a) + b.var() / len(b))
    difference = abs(a.mean() - b.mean()) - 0.1 * max(a.mean(), b.mean())
    return float(max(difference, 0.0) / (error + 1e-12))


def _dependence(values: np.ndarray, batches: list[np.ndarray]) -> float:
    """The sum of the products of all pairs in a batch, in standard errors. Its expectation is 0 for independent pictures.

    For n values v of mean 0 and variance 1, (sum v)^2 - sum v^2 has variance 2 n (n - 1); its mean over columns has at most this.
    """
    total = sum(((values[b].sum(axis=0) ** 2 - (values[b] ** 2).sum(axis=0)).mean() for b in batches), 0.0)
    return float(total / np.sqrt(sum(2 * len(b) * (len(b) - 1) for b in batches) or 1))

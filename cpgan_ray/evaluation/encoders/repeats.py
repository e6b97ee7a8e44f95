"""Whether an encoder gives a picture the same code when it is asked again: in other batches, in another order, by itself.

All numbers about an encoder hold only if its code depends on the picture and on nothing else: not on how many pictures it has seen,
nor on its neighbours in the batch. So the codes of some pictures of every set are computed twice more, after all sets were encoded.

*Deterministic* (the default): in each column of the codes, at most TOLERATED of the pictures may differ, by more than TOLERANCE of
the column's standard deviation. Sums in another order change float32 results by about 1e-6 of it, which may move a value that is
rounded (a quantised code, a network with integer weights) by a whole step; that happens to few pictures. The share is counted by
column, since one column may carry everything.

*Stochastic* (declared): the differences between answers must be noise: without a mean, of one size in all sets, in the first answer
as in the later ones, in a batch as by itself, and independent from picture to picture. Each test is a difference in standard errors
of which LIMIT are allowed. The noise itself is not evaluated: it is part of what is attacked.

Not found by this: an encoder that recognises pictures (it may answer whatever its maker likes for the pictures of a public data
set), differences below the tolerance, and correlations that none of the tests asks for.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cpgan_ray.errors import InputError

SAMPLE = 200
"""Pictures of each set that are asked for again."""
SINGLE = 20
"""Of these, how many by themselves."""
SIZES = (3, 2, 5, 17, 64, 101)
"""Sizes of the other batches, in turn."""
TOLERANCE = 1e-3
"""Share of a column's standard deviation by which two answers may differ."""
TOLERATED = 0.01
"""Share of pictures, in each column, that may differ by more."""
LIMIT = 7.0
"""Standard errors that a difference may have: by chance, more occurs in one test of 10^11."""
REMEDY = "export it in eval mode and without state, or declare a stochastic release with --encoder.stochastic"


def check_repeats(
    codes: Mapping[str, np.ndarray],
    pictures: Callable[[str, np.ndarray], np.ndarray],
    encode: Callable[[np.ndarray], np.ndarray],
    *,
    what: str,
    stochastic: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """What was compared, for the report.

    codes: all sets, (N, k) each; pictures: name of a set and row numbers -> what `encode` takes.

    Raises: InputError where answers differ that must not.
    """
    sets = [(name, rng.permutation(len(z))[:SAMPLE]) for name, z in codes.items()]
    where = [(name, row) for name, rows in sets for row in rows]
    alone = np.concatenate([np.arange(len(rows)) < SINGLE for _, rows in sets])
    first = np.concatenate([codes[name][rows] for name, rows in sets])

    def ask() -> tuple[np.ndarray, np.ndarray]:
        """Codes of the sample and the number of the batch each was in."""
        answers, batches = np.empty_like(first), np.empty(len(where), np.int64)
        for number, rows in enumerate(_batches(alone, rng)):
            asked = [pictures(where[i][0], np.array([where[i][1]])) for i in rows]
            answers[rows], batches[rows] = encode(np.concatenate(asked)), number
        return answers, batches

    (second, batches), (third, _) = ask(), ask()
    names = np.concatenate([np.full(len(rows), number) for number, (_, rows) in enumerate(sets)])
    if not stochastic:
        spread = np.concatenate(list(codes.values())).std(axis=0, dtype=np.float64)
        share = max(_differing(first, second, spread), _differing(first, third, spread))
        if share > TOLERATED:
            raise InputError(
                f"{what} gives {100 * share:.3g} % of {len(where)} pictures another code when they are asked for again, in other "
                f"batches and another order: its codes depend on more than the picture; {REMEDY}"
            )
        return {"pictures": len(where), "differing": share}
    problem = _not_noise(first, second, third, names=names, alone=alone, batches=batches)
    if problem:
        raise InputError(
            f"{what} is declared as stochastic, but its answers differ by more than noise: {problem}; export it without state"
        )
    return {"pictures": len(where), "noise_std": float(np.sqrt(((second - third).astype(np.float64) ** 2).mean() / 2))}


def _batches(alone: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of each batch: some by themselves, the others in batches of several sizes, in a random order."""
    batches = [np.array([row]) for row in np.flatnonzero(alone)]
    rest, start, turn = rng.permutation(np.flatnonzero(~alone)), 0, int(rng.integers(len(SIZES)))
    while start < len(rest):
        batches.append(rest[start : start + SIZES[turn % len(SIZES)]])
        start, turn = start + len(batches[-1]), turn + 1
    return [batches[i] for i in rng.permutation(len(batches))]


def _differing(one: np.ndarray, other: np.ndarray, spread: np.ndarray) -> float:
    """The largest share of pictures, over the columns, for which two answers are not the same."""
    size = np.abs(one).max(axis=0)
    allowed = np.maximum(TOLERANCE * spread, 1e-6 * size)
    return float((np.abs(one.astype(np.float64) - other) > allowed).mean(axis=0).max())


def _not_noise(
    first: np.ndarray, second: np.ndarray, third: np.ndarray, *, names: np.ndarray, alone: np.ndarray, batches: np.ndarray
) -> str:
    """In a few words what shows that the differences are no noise; empty if nothing does."""
    early, late = (first - second).astype(np.float64), (second - third).astype(np.float64)
    scale = np.sqrt((early**2 + late**2).mean(axis=0) / 2)
    moving = scale > 0
    if not moving.any():
        return ""
    early, late = early[:, moving] / scale[moving], late[:, moving] / scale[moving]
    if (worst := _errors(early)) > LIMIT:
        return f"the first answers are others on average ({worst:.1f} standard errors)"
    power, power_late = (early**2).mean(axis=1), (late**2).mean(axis=1)
    groups = [(power, power_late, "the first answers differ by more, or less, than the later ones")]
    groups += [(power[alone], power[~alone], "a picture by itself gets another noise than one in a batch")]
    groups += [(power_late[alone], power_late[~alone], "a picture by itself gets another noise than one in a batch")]
    for number in np.unique(names):
        groups += [(power[names == number], power[names != number], "one of the sets gets another noise than the others")]
    for one, other, problem in groups:
        if _apart(one, other) > LIMIT:
            return problem
    shared = [rows for number in range(batches.max() + 1) if len(rows := np.flatnonzero(batches == number)) > 1]
    for values in (early, late, _standardised(power)[:, None], _standardised(power_late)[:, None]):
        if _dependence(values, shared) > LIMIT:
            return "pictures of one batch share their noise"
    return ""


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-12)


def _errors(values: np.ndarray) -> float:
    """The largest mean of a column, in standard errors."""
    return float((np.abs(values.mean(axis=0)) / (values.std(axis=0) / np.sqrt(len(values)) + 1e-12)).max())


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """The difference of two means, in standard errors, of which a tenth of the mean is free: the pictures are others."""
    if min(len(one), len(other)) < 2:
        return 0.0
    error = np.sqrt(one.var() / len(one) + other.var() / len(other))
    difference = abs(one.mean() - other.mean()) - 0.1 * max(one.mean(), other.mean())
    return float(max(difference, 0.0) / (error + 1e-12))


def _dependence(values: np.ndarray, batches: list[np.ndarray]) -> float:
    """The sum of the products of all pairs in a batch, in standard errors of what it is for independent pictures, 0.

    Of n values v without a mean and of variance 1, (sum v)^2 - sum v^2 has variance 2 n (n - 1); its mean over columns, no more.
    """
    total = sum(((values[b].sum(axis=0) ** 2 - (values[b] ** 2).sum(axis=0)).mean() for b in batches), 0.0)
    return float(total / np.sqrt(sum(2 * len(b) * (len(b) - 1) for b in batches) or 1))

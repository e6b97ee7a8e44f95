"""Several codes of one person: how much more does an attacker recover who knows that n codes show the same person?

The attacker averages the reconstructions of the n codes; what the pictures have in common, for example the shape of the face, adds
up, and errors that differ from picture to picture cancel. For linkage the attacker averages the codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cpgan_ray.common.rng import stream
from cpgan_ray.data.discriminant import FisherDiscriminant
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, predict, to_pixels
from cpgan_ray.evaluation.scoring import RowErrors, interval

NUMBERS = (2, 5, 20)
"""Numbers of codes of one person."""
MIN_PEOPLE = 10
"""Fewer people with enough pictures are no evidence."""
MAX_PEOPLE = 1000
"""Largest number of people that are compared for linkage: the work grows with its square."""
RESAMPLES = 200


@dataclass(frozen=True)
class SeveralCodes:
    """What n codes of one person give away, and for comparison what one code of the same people does. The intervals are 95 %
    bootstrap intervals over people."""

    codes: int
    people: int
    """With at least `codes` pictures in the score set."""
    r2: float
    """Share of the variance of the people's mean pictures that the averaged reconstructions recover."""
    low: float
    high: float
    single_r2: float
    """R2 of single pictures of the same people."""
    linkage_people: int = 0
    """With at least one picture more: that is what the codes are compared with."""
    linkage_auc: float | None = None
    """Area under the ROC curve when the averaged codes of a person are compared with the code of another picture."""
    linkage_low: float | None = None
    linkage_high: float | None = None
    single_linkage_auc: float | None = None
    """The same with one code of each of these people."""


def several_codes(data: AttackData, attack: Fitted, *, numbers: Sequence[int] = NUMBERS) -> list[SeveralCodes]:
    """One entry for each number of codes that enough people of the score set have; the attack is the strongest one."""
    results = []
    for number in numbers:
        groups = groups_of(data.score.identity, number)
        people = len(np.unique(data.score.identity[groups[:, 0]])) if len(groups) else 0
        if people < MIN_PEOPLE:
            continue
        pooled, single = pooled_errors(data, attack, groups)
        low, high = interval(pooled, seed=data.seed)
        numbers_of_linkage = link_averages(data, groups_of(data.score.identity, number + 1, once=True))
        results.append(SeveralCodes(number, people, pooled.r2, low, high, single.r2, *numbers_of_linkage))
    return results


def groups_of(identity: np.ndarray, size: int, *, once: bool = False) -> np.ndarray:
    """Disjoint groups of `size` rows of one person each, in order: (G, size). once: at most one group of each person."""
    order = np.argsort(identity, kind="stable")
    _, counts = np.unique(identity, return_counts=True)
    groups = []
    for rows in np.split(order, np.cumsum(counts)[:-1]):
        number = min(len(rows) // size, 1) if once else len(rows) // size
        groups.append(rows[: number * size].reshape(number, size))
    return np.concatenate(groups) if groups else np.empty((0, size), np.int64)


def pooled_errors(data: AttackData, attack: Fitted, groups: np.ndarray) -> tuple[RowErrors, RowErrors]:
    """Errors of the averaged reconstructions against the mean pictures of the groups (G, n), and errors of the single pictures."""
    pooled, pooled_mean = np.empty((2, len(groups)))
    single, single_mean = np.empty(groups.shape), np.empty(groups.shape)
    size = max(1, data.score.pixel_rows // groups.shape[1])
    for start in range(0, len(groups), size):
        block = slice(start, start + size)
        rows = torch.from_numpy(groups[block])
        x = data.score.pixels[rows.flatten()].view(*rows.shape, -1)
        x_hat = to_pixels(data, attack, data.score.z[rows.flatten()]).view_as(x)
        single[block] = (x_hat - x).double().square().mean(2).cpu().numpy()
        single_mean[block] = x.double().square().mean(2).cpu().numpy()
        mean, mean_hat = x.mean(1), x_hat.mean(1)
        pooled[block] = (mean_hat - mean).double().square().mean(1).cpu().numpy()
        pooled_mean[block] = mean.double().square().mean(1).cpu().numpy()
    people = data.score.identity[groups]
    return (
        RowErrors(pooled, pooled_mean, people[:, 0]),
        RowErrors(single.ravel(), single_mean.ravel(), people.ravel()),
    )


def link_averages(data: AttackData, groups: np.ndarray) -> tuple[int, float | None, float | None, float | None, float | None]:
    """Linkage by codes. groups: (P, n + 1) rows, one group for each person; the last row is compared with the average of the
    others.

    Returns the number of people, the AUC with its interval, and the AUC with only one code of each person; None if there are too
    few people, or if the verifier has nothing to learn from.
    """
    groups = groups[:MAX_PEOPLE]
    plain = slice(0, len(data.fit) // data.views)  # followed by the other views of the same pictures
    nothing = (len(groups), None, None, None, None)
    if len(groups) < MIN_PEOPLE:
        return nothing
    standardise = CodeMap(data.fit.z, how="standardised")
    try:
        verifier = FisherDiscriminant(predict(standardise, data.fit.z[plain]).cpu().numpy(), data.fit.identity[plain])
    except ValueError:
        return nothing
    codes = standardise(data.score.z[torch.from_numpy(groups.ravel())]).cpu().numpy().reshape(*groups.shape, -1)
    gallery = verifier.embed(codes[:, -1])
    averaged, single = (verifier.embed(probe) @ gallery.T for probe in (codes[:, :-1].mean(axis=1), codes[:, 0]))
    rng = stream(data.seed, "several codes")
    resampled = [auc(averaged, rng.integers(len(groups), size=len(groups))) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    everyone = np.arange(len(groups))
    return len(groups), auc(averaged, everyone), float(low), float(high), auc(single, everyone)


def auc(scores: np.ndarray, people: np.ndarray) -> float:
    """Probability that a score of one person (on the diagonal) is higher than a score of two people, over the people (n,) of a
    bootstrap sample. scores: (P, P)."""
    from sklearn.metrics import roc_auc_score  # takes 0.8 s

    same = people[:, None] == people
    chosen = scores[np.ix_(people, people)]
    positive = np.diagonal(chosen)
    negative = chosen[~same]
    truth = np.repeat([1.0, 0.0], [len(positive), len(negative)])
    return float(roc_auc_score(truth, np.concatenate([positive, negative])))

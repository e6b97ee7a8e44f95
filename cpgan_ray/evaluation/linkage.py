"""Identity linkage: does a code or its reconstruction identify the person?

The encoder is Fisher's linear discriminant on identities (data/discriminant.py). It is fitted on the people of `train` and applied
to people it has never seen: two pictures are judged to show the same person if their embeddings have a similar direction.
"""

from dataclasses import dataclass

import numpy as np

from cpgan_ray.common.rng import stream
from cpgan_ray.data.discriminant import BLOCK_ROWS

NEGATIVES_PER_PAIR = 20
"""Pairs of different people per pair of the same person."""
MAX_NEGATIVES = 1_000_000
"""Maximal number of pairs of different people."""
FALSE_ACCEPT_RATE = 0.01
RESAMPLES = 200


@dataclass(frozen=True)
class Linkage:
    """How well pairs of the same person are separated from pairs of two people: area under the ROC curve with its 95 % interval,
    and the rate of true accepts at 1 % false accepts."""

    pairs: int  # of the same person
    auc: float
    low: float
    high: float
    tar_at_1_far: float


def linkage(a: np.ndarray, b: np.ndarray, identity: np.ndarray, *, seed: int) -> Linkage | None:
    """How well pairs of the same person are recognised by the cosine of their embeddings.

    None if nobody has two pictures, or if all pictures show the same person.

    a, b: (N, q) embeddings of the same N pictures, in two forms or twice in the same form; identity: (N,). A picture is never
    paired with itself. The interval resamples people.
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # takes 0.8 s

    same = same_pairs(identity)
    if not len(same):
        return None
    rng = stream(seed, "linkage")
    different = rng.integers(len(identity), size=(min(NEGATIVES_PER_PAIR * len(same), MAX_NEGATIVES), 2))
    different = different[identity[different[:, 0]] != identity[different[:, 1]]]
    if not len(different):
        return None
    positive, negative = (cosines(a, b, pairs) for pairs in (same, different))
    truth = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    scores = np.concatenate([positive, negative])
    false_rate, true_rate, _ = roc_curve(truth, scores)
    _, person = np.unique(identity[same[:, 0]], return_inverse=True)
    members = [np.flatnonzero(person == p) for p in range(person.max() + 1)]
    order = np.argsort(negative)
    below, up_to = (np.searchsorted(negative[order], positive, side=side) for side in ("left", "right"))
    aucs = []
    for _ in range(RESAMPLES):  # roc_auc_score would sort all pairs again each time
        positive_rows = np.concatenate([members[p] for p in rng.integers(len(members), size=len(members))])
        negative_counts = np.bincount(rng.integers(len(negative), size=len(negative)), minlength=len(negative))
        cumulative = np.append(0, np.cumsum(negative_counts[order]))
        aucs.append((cumulative[below] + cumulative[up_to])[positive_rows].mean() / (2 * len(negative)))  # a tie counts half
    low, high = np.quantile(aucs, [0.025, 0.975])
    return Linkage(
        pairs=len(same),
        auc=float(roc_auc_score(truth, scores)),
        low=float(low),
        high=float(high),
        tar_at_1_far=float(true_rate[false_rate <= FALSE_ACCEPT_RATE].max()),
    )


def cosines(a: np.ndarray, b: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Scalar products (n,) of the unit vectors of each pair (n, 2): a row of `a` with a row of `b`."""
    products = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK_ROWS):
        p = pairs[start : start + BLOCK_ROWS]
        products[start : start + BLOCK_ROWS] = np.einsum("nq,nq->n", a[p[:, 0]], b[p[:, 1]])
    return products


def same_pairs(identity: np.ndarray) -> np.ndarray:
    """All ordered pairs (n, 2) of different rows of the same person."""
    order = np.argsort(identity, kind="stable")
    people = np.split(order, np.flatnonzero(np.diff(identity[order])) + 1)
    pairs = np.concatenate([np.stack([np.repeat(rows, len(rows)), np.tile(rows, len(rows))], axis=1) for rows in people])
    return pairs[pairs[:, 0] != pairs[:, 1]]

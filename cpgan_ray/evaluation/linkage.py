"""Identity linkage: does a code or its reconstruction identify the person?

The encoder is Fisher's linear discriminant on identities (Belhumeur et al., "Eigenfaces vs. Fisherfaces", PAMI 1997). It is fitted
on the people of `train` and applied to people it has never seen: two pictures are judged to show the same person if their
embeddings have a similar direction.
"""

from dataclasses import dataclass

import numpy as np

from cpgan_ray.common.rng import stream

DIMENSIONS = 64
SHRINKAGE = 0.1
NEGATIVES_PER_PAIR = 20
"""Pairs of different people per pair of the same person."""
MAX_NEGATIVES = 1_000_000
"""Maximal number of pairs of different people."""
BLOCK_ROWS = 4096
"""Rows that are converted to float64 at once."""
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


class Verifier:
    """Embeds vectors (N, p) by the discriminant directions of the people on whom it was fitted."""

    def __init__(self, vectors: np.ndarray, identity: np.ndarray) -> None:
        """Raises: ValueError if fewer than two people have two pictures: there is nothing to fit."""
        from scipy.linalg import eigh
        from sklearn.covariance import shrunk_covariance  # takes 0.8 s

        _, person, counts = np.unique(identity, return_inverse=True, return_counts=True)
        people = int((counts > 1).sum())
        if people < 2:
            raise ValueError("identity linkage needs at least two people with two pictures each in the training split")
        within, between, varying = scatter(vectors, person, counts)
        self.directions = np.zeros((len(varying), 1))
        if varying.any():  # otherwise the code has collapsed and distinguishes nobody
            within, between = (shrunk_covariance(s[np.ix_(varying, varying)], SHRINKAGE) for s in (within, between))
            eigenvectors = eigh(between, within)[1][:, ::-1][:, : min(DIMENSIONS, people - 1)]  # by decreasing eigenvalue
            self.directions = np.zeros((len(varying), eigenvectors.shape[1]))
            self.directions[varying] = eigenvectors

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        """Unit vectors (N, q)."""
        embedded = np.empty((len(vectors), self.directions.shape[1]))
        for start in range(0, len(vectors), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            embedded[block] = vectors[block].astype(np.float64) @ self.directions
        return embedded / np.linalg.norm(embedded, axis=1, keepdims=True).clip(1e-12)


def scatter(vectors: np.ndarray, person: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariance within people and between their means, each (p, p), and which of the features vary, (p,) bool. Only people with at
    least two pictures count.

    vectors: (N, p); person: (N,) from 0; counts: number of pictures of each person. Works on a few people at a time: scikit-learn's
    discriminant would copy all rows in float64 more than once, and search all of them for each person.
    """
    repeated = counts[person] > 1
    order = np.argsort(person, kind="stable")
    order, counts = order[repeated[order]], counts[counts > 1]
    mean = vectors.mean(axis=0, dtype=np.float64, where=repeated[:, None])
    p, start = vectors.shape[1], 0
    within, between = np.zeros((2, p, p))
    low, high = np.full(p, np.inf), np.full(p, -np.inf)
    for sizes in np.array_split(counts, min(len(counts), -(-len(order) // BLOCK_ROWS))):
        x = vectors[order[start : (start := start + sizes.sum())]].astype(np.float64)
        low, high = np.minimum(low, x.min(axis=0)), np.maximum(high, x.max(axis=0))
        x -= mean
        means = np.add.reduceat(x, np.cumsum(sizes) - sizes) / sizes[:, None]
        between += (means * sizes[:, None]).T @ means
        x -= np.repeat(means, sizes, axis=0)
        within += x.T @ x
    return within / len(order), between / len(order), high > low


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

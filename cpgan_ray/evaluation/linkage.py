"""Identity linkage: do a code or its reconstruction tell who it is?

The encoder is Fisher's linear discriminant on identities (Belhumeur et al., "Eigenfaces vs. Fisherfaces", PAMI 1997), fitted on the
people of `train` and used on people it has never seen: two pictures are one person's if their embeddings point the same way.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from sklearn.covariance import shrunk_covariance
from sklearn.metrics import roc_auc_score, roc_curve

from cpgan_ray.common.rng import stream

DIMENSIONS = 64
SHRINKAGE = 0.1
OTHERS = 20
"""Pairs of different people per pair of one person, ..."""
MOST_OTHERS = 1_000_000
"""... and at most."""
BLOCK_ROWS = 4096
"""Rows that are worked on in float64 at once."""
FALSE_ACCEPTS = 0.01
RESAMPLES = 200


@dataclass(frozen=True)
class Linkage:
    """How well pairs of one person are told from pairs of two: area under the ROC curve, and true accepts at 1 % false ones."""

    pairs: int  # of one person
    auc: float
    low: float
    high: float
    tar_at_1_far: float


class Verifier:
    """Embeds vectors (N, p) by the discriminant directions of the people it was fitted on."""

    def __init__(self, vectors: np.ndarray, identity: np.ndarray) -> None:
        """Raises: ValueError where nobody has two pictures: there is nothing to learn from."""
        _, person, counts = np.unique(identity, return_inverse=True, return_counts=True)
        people = int((counts > 1).sum())
        if people < 2:
            raise ValueError("identity linkage needs at least two people with two pictures each in the training split")
        within, between, varying = scatter(vectors, person, counts)
        self.directions = np.zeros((len(varying), 1))
        if varying.any():  # else a collapsed code, which tells nobody from anybody
            within, between = (shrunk_covariance(s[np.ix_(varying, varying)], SHRINKAGE) for s in (within, between))
            found = eigh(between, within)[1][:, ::-1][:, : min(DIMENSIONS, people - 1)]  # by falling eigenvalue
            self.directions = np.zeros((len(varying), found.shape[1]))
            self.directions[varying] = found

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        """Unit vectors (N, q)."""
        embedded = np.empty((len(vectors), self.directions.shape[1]))
        for start in range(0, len(vectors), BLOCK_ROWS):
            here = slice(start, start + BLOCK_ROWS)
            embedded[here] = vectors[here].astype(np.float64) @ self.directions
        return embedded / np.linalg.norm(embedded, axis=1, keepdims=True).clip(1e-12)


def scatter(vectors: np.ndarray, person: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariance within people and between their means, each (p, p), and which of the features vary, (p,); of the people with two
    pictures or more.

    vectors: (N, p); person: (N,) from 0; counts: pictures of each. Some people at a time: scikit-learn's discriminant would copy
    all rows in float64 more than once, and look through all of them for each person.
    """
    kept = counts[person] > 1
    order = np.argsort(person, kind="stable")
    order, counts = order[kept[order]], counts[counts > 1]
    mean = vectors.mean(axis=0, dtype=np.float64, where=kept[:, None])
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


def linkage(one: np.ndarray, other: np.ndarray, identity: np.ndarray, *, seed: int) -> Linkage | None:
    """How well pairs of one person are recognised, by the cosine of their embeddings.

    None where nobody has two pictures or all are one person's.

    one, other: (N, q) embeddings of the same N pictures, in two forms or in one; identity: (N,). A picture is never paired with
    itself. The interval resamples people.
    """
    same = same_pairs(identity)
    if not len(same):
        return None
    rng = stream(seed, "linkage")
    apart = rng.integers(len(identity), size=(min(OTHERS * len(same), MOST_OTHERS), 2))
    apart = apart[identity[apart[:, 0]] != identity[apart[:, 1]]]
    if not len(apart):
        return None
    alike, unlike = (cosines(one, other, p) for p in (same, apart))
    truth = np.concatenate([np.ones(len(alike)), np.zeros(len(unlike))])
    scores = np.concatenate([alike, unlike])
    false, true, _ = roc_curve(truth, scores)
    _, person = np.unique(identity[same[:, 0]], return_inverse=True)
    members = [np.flatnonzero(person == p) for p in range(person.max() + 1)]
    order = np.argsort(unlike)
    below, up_to = (np.searchsorted(unlike[order], alike, side=side) for side in ("left", "right"))
    aucs = []
    for _ in range(RESAMPLES):  # roc_auc_score would sort all pairs anew each time
        drawn = np.concatenate([members[p] for p in rng.integers(len(members), size=len(members))])
        others = np.bincount(rng.integers(len(unlike), size=len(unlike)), minlength=len(unlike))
        passed = np.append(0, np.cumsum(others[order]))
        aucs.append((passed[below] + passed[up_to])[drawn].mean() / (2 * len(unlike)))  # a tie counts half
    low, high = np.quantile(aucs, [0.025, 0.975])
    return Linkage(
        pairs=len(same),
        auc=float(roc_auc_score(truth, scores)),
        low=float(low),
        high=float(high),
        tar_at_1_far=float(true[false <= FALSE_ACCEPTS].max()),
    )


def cosines(one: np.ndarray, other: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Scalar products (n,) of the unit vectors of each pair (n, 2): a row of `one`, a row of `other`."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK_ROWS):
        p = pairs[start : start + BLOCK_ROWS]
        found[start : start + BLOCK_ROWS] = np.einsum("nq,nq->n", one[p[:, 0]], other[p[:, 1]])
    return found


def same_pairs(identity: np.ndarray) -> np.ndarray:
    """All ordered pairs (n, 2) of different rows of one person."""
    order = np.argsort(identity, kind="stable")
    people = np.split(order, np.flatnonzero(np.diff(identity[order])) + 1)
    found = np.concatenate([np.stack([np.repeat(rows, len(rows)), np.tile(rows, len(rows))], axis=1) for rows in people])
    return found[found[:, 0] != found[:, 1]]

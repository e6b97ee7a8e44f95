"""Identity linkage: do a code or its reconstruction tell who it is?

The encoder is Fisher's linear discriminant on identities (Belhumeur et al., "Eigenfaces vs. Fisherfaces", PAMI 1997), fitted on the
people of `train` and used on people it has never seen: two pictures are one person's if their embeddings point the same way.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score, roc_curve

from cpgan_ray.streams import stream

DIMENSIONS = 64
OTHERS = 20
"""Pairs of different people per pair of one person."""
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
        people, person, counts = np.unique(identity, return_inverse=True, return_counts=True)
        kept = counts[person] > 1
        if (counts > 1).sum() < 2:
            raise ValueError("identity linkage needs at least two people with two pictures each in the training split")
        self.varying = vectors[kept].std(axis=0) > 0
        self.model: LinearDiscriminantAnalysis | None = None
        if not self.varying.any():  # a collapsed code tells nobody from anybody
            return
        dimensions = min(DIMENSIONS, int(self.varying.sum()), int((counts > 1).sum()) - 1)
        self.model = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1, n_components=dimensions)
        chosen = vectors[kept][:, self.varying].astype(np.float64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")  # two pictures a person are usual
            self.model.fit(chosen, identity[kept])

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        """Unit vectors (N, q)."""
        if self.model is None:
            return np.zeros((len(vectors), 1))
        embedded = self.model.transform(vectors[:, self.varying].astype(np.float64))
        return embedded / np.linalg.norm(embedded, axis=1, keepdims=True).clip(1e-12)


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
    apart = rng.integers(len(identity), size=(OTHERS * len(same), 2))
    apart = apart[identity[apart[:, 0]] != identity[apart[:, 1]]]
    if not len(apart):
        return None
    alike, unlike = (np.einsum("nq,nq->n", one[p[:, 0]], other[p[:, 1]]) for p in (same, apart))
    truth = np.concatenate([np.ones(len(alike)), np.zeros(len(unlike))])
    scores = np.concatenate([alike, unlike])
    false, true, _ = roc_curve(truth, scores)
    _, person = np.unique(identity[same[:, 0]], return_inverse=True)
    members = [np.flatnonzero(person == p) for p in range(person.max() + 1)]
    aucs = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([members[p] for p in rng.integers(len(members), size=len(members))])
        others = rng.integers(len(unlike), size=len(unlike))
        aucs.append(roc_auc_score(np.repeat([1, 0], [len(drawn), len(others)]), np.concatenate([alike[drawn], unlike[others]])))
    low, high = np.quantile(aucs, [0.025, 0.975])
    return Linkage(
        pairs=len(same),
        auc=float(roc_auc_score(truth, scores)),
        low=float(low),
        high=float(high),
        tar_at_1_far=float(true[false <= FALSE_ACCEPTS].max()),
    )


def same_pairs(identity: np.ndarray) -> np.ndarray:
    """All ordered pairs (n, 2) of different rows of one person."""
    order = np.argsort(identity, kind="stable")
    found = [
        (i, j)
        for rows in np.split(order, np.flatnonzero(np.diff(identity[order])) + 1)
        for i in rows.tolist()
        for j in rows.tolist()
        if i != j
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 2)

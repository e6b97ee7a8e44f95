"""Fisher's linear discriminant on identities (Belhumeur et al., "Eigenfaces vs. Fisherfaces", PAMI 1997): the directions in which
people differ most, compared with how much the pictures of one person differ."""

import numpy as np

DIMENSIONS = 64
"""Largest number of directions."""
SHRINKAGE = 0.1
BLOCK_ROWS = 4096
"""Rows that are converted to float64 at once."""


class FisherDiscriminant:
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

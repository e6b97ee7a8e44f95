"""Identification: which rank has the true picture among all pictures of the score set, by their likeness to a reconstruction?"""

from dataclasses import dataclass

import numpy as np

from cpgan_ray.common.rng import stream

RESAMPLES = 1000
BLOCK_ROWS = 1024
"""Reconstructions that are compared with all pictures at once."""


@dataclass(frozen=True)
class Identification:
    """Ranks of the true picture among `candidates` pictures; 1 is the most similar one, (candidates + 1) / 2 the mean by chance."""

    candidates: int
    mean_rank: float
    median_rank: float
    top_1: float  # share of the pictures with rank 1
    top_1_low: float  # 95 % bootstrap interval over people
    top_1_high: float


def identification(probes: np.ndarray, gallery: np.ndarray, identity: np.ndarray, *, seed: int) -> Identification:
    """Ranks of the own picture of each probe. Other pictures of the same person are candidates like all others.

    probes, gallery: unit vectors (N, q), row by row of the same pictures; identity: (N,).
    """
    own_ranks = ranks(probes, gallery)
    hits = (own_ranks == 1).astype(np.float64)
    _, person, counts = np.unique(identity, return_inverse=True, return_counts=True)
    sums = np.bincount(person, weights=hits)
    drawn = stream(seed, "identification").integers(len(counts), size=(RESAMPLES, len(counts)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return Identification(
        len(gallery), float(own_ranks.mean()), float(np.median(own_ranks)), float(hits.mean()), float(low), float(high)
    )


def ranks(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """For each probe the rank (N,) of its own picture, by the cosine; pictures with the same cosine share the mean of their
    ranks."""
    result = np.empty(len(probes))
    for start in range(0, len(probes), BLOCK_ROWS):
        cosines = probes[start : start + BLOCK_ROWS] @ gallery.T
        own = cosines[np.arange(len(cosines)), start + np.arange(len(cosines))][:, None]
        result[start : start + BLOCK_ROWS] = (cosines > own).sum(axis=1) + ((cosines == own).sum(axis=1) + 1) / 2
    return result

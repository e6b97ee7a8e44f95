"""Long codes in fewer numbers, because an attack on k numbers computes with k x k matrices.

Each number is standardised and added, with a random sign, to one of m sums: a random projection that keeps distances between codes
on average (the count sketch of Charikar, Chen and Farach-Colton, 2002; as a projection Weinberger et al., 2009, section 2). Signs
and sums come from a stream of their own, so that they are the same in every attack on codes of this length.
"""

import numpy as np

from cpgan_ray.common.rng import stream


class Sketch:
    """A map of codes (B, k) to (B, m)."""

    def __init__(self, codes: np.ndarray, *, numbers: int) -> None:
        """codes: (n, k), by which each number is standardised; numbers: m."""
        from scipy import sparse  # takes 0.1 s

        length = codes.shape[1]
        rng = stream(0, "sketch", length)
        spread = codes.std(axis=0, dtype=np.float64)
        factors = rng.choice((-1.0, 1.0), length) * np.divide(1.0, spread, out=np.zeros(length), where=spread > 0)
        sums = rng.permutation(length) % numbers
        self.origin = codes.mean(axis=0, dtype=np.float64)
        self.matrix = sparse.csr_array((factors, (np.arange(length), sums)), shape=(length, numbers))

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Codes (B, k) -> (B, m) float32."""
        return ((codes - self.origin) @ self.matrix).astype(np.float32)

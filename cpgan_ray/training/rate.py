"""The rate term: the mean length of finite codes in bits, and its gradient."""

import numpy as np

from cpgan_ray.common.codec import level_range


def rate_term(z: np.ndarray, *, step: float, levels: int) -> tuple[float, np.ndarray]:
    """The mean length R of the codes of a batch in bits, and dR / dz, (B, k) float32.

    With n = z / step, the level of each number, and q, the frequencies of the levels among all numbers of the batch,

        R = 1 / B sum_i sum_j -log2 q(n_ij)        q(l) = (count(l) + 1) / (B k + levels)

    is the length of an ideal entropy code with the table q (C. Shannon, 1948), and no code is shorter than the entropy of the
    levels on average. One table serves all numbers, and each level counts once more than it occurs: both as in the codec that sends
    the codes (common/codec.py), so that R estimates `code/bits`. The cross-entropy with a model of the code's distribution as a
    term of the loss is that of J. Balle, V. Laparra, E. Simoncelli (ICLR 2017).

    R is a step function of z. Its slope at a level is the central difference of -log2 q between the two neighbouring levels, at the
    first and the last level the difference to the only neighbour, divided by the step; the rounding itself has slope 1
    (straight-through). q is not differentiated: as it is (nearly) the distribution of the levels, sum_l q(l) d log q(l) is 0.

    z: (B, k), whole multiples of the step from `level_range(levels)`.
    """
    lowest, _ = level_range(levels)
    symbols = np.rint(z / np.float32(step)).astype(np.int64) - lowest
    counts = np.bincount(symbols.ravel(), minlength=levels) + 1
    bits = np.log2(counts.sum()) - np.log2(counts)
    slopes = np.gradient(bits) / step
    return float(bits[symbols].sum(axis=1).mean()), (slopes[symbols] / len(z)).astype(np.float32)

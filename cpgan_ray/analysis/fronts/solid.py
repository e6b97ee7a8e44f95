"""The front in three dimensions: utility, R2 and bits on the wire.

Mixtures of codes (fronts.py) also interpolate the expected number of bits, and sending nothing takes none. The attained region is
therefore the convex hull of all outcomes and of (guess, R2 = 0, 0 bits), and everything that is worse than a point of it. The
hypervolume is the volume of that region up to the reference, with bits as a share of the reference's: the mean gain of utility over
the guess, over all bounds on R2 from 0 to 1 and all budgets of bits up to the reference's.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from cpgan_ray.analysis.fronts.trials import Point


def solid(points: Sequence[Point], *, guess: float, bits: float) -> tuple[list[Point], float]:
    """The points that are vertices of the hull, in the given order, and its volume.

    guess, bits: the reference. Points that are degenerate, no better than the guess, of unknown length, or longer than the
    reference do not count.

    The hull is that of the corners of the boxes of everything that is worse than a point (C. B. Barber, D. P. Dobkin and
    H. Huhdanpaa, The quickhull algorithm for convex hulls, ACM TOMS 22, 1996; by scipy).
    """
    from scipy.spatial import ConvexHull  # takes 0.2 s

    counted = [
        p
        for p in points
        if not p.degenerate and p.bits is not None and p.bits <= bits and p.strongest_r2 <= 1 and p.utility > guess
    ]
    if not counted or bits <= 0:
        return [], 0.0
    gain = max(p.utility for p in counted) - guess
    outcomes = np.array([outcome(p, guess=guess, bits=bits, gain=gain) for p in counted])
    boxes = [np.array(list(itertools.product((r2, 1.0), (length, 1.0), (0.0, utility)))) for r2, length, utility in outcomes]
    base = np.array(list(itertools.product((0.0, 1.0), (0.0, 1.0), (0.0,))))
    hull = ConvexHull(np.unique(np.concatenate([base, *boxes]), axis=0))
    vertices = hull.points[hull.vertices]
    best = [p for p, at in zip(counted, outcomes, strict=True) if np.isclose(vertices, at, rtol=0, atol=1e-12).all(axis=1).any()]
    return best, float(hull.volume * gain)


def outcome(point: Point, *, guess: float, bits: float, gain: float) -> tuple[float, float, float]:
    """R2, bits as a share of the reference, and gain of utility as a share of the largest one."""
    return max(point.strongest_r2, 0.0), (point.bits or 0.0) / bits, (point.utility - guess) / gain

"""The best codes of the Gaussian mixture, for each accuracy and each weight, and how far a code is from them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import linalg, optimize, special
from threadpoolctl import threadpool_limits

from cpgan_ray.data.datasets.gaussian import mixture
from cpgan_ray.errors import InputError
from cpgan_ray.theory.mixture import Moments, _accuracy, _label_variance, sample_moments

Attacker = Literal["linear", "exact"]
"""The best linear reconstruction (`lmmse`), or the best of any kind (`mmse`)."""
GRID = 121
"""Points of the frontier among which a weight's best is taken, before it is refined. The frontier need not be convex: a small
change of the weight may jump over a stretch of it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A direction of the frontier."""

    direction: np.ndarray  # float64 (d,), of unit variance: a' total a = 1, a'mean >= 0
    accuracy: float
    """Of the best classifier on z."""
    mse: float
    """Of the best attack on z, per dimension."""


def least_leaking(accuracy: float, *, moments: Moments, attacker: Attacker = "linear") -> Point:
    """The direction of the largest MSE among those of some accuracy; codes of more dimensions do no better.

    Linear attacker: among those of at least that accuracy. Exact one, that of the mixture with this mean, within and prior (`total`
    plays no part): among those of just that accuracy. Above the best accuracy of all, where a measured one may be by chance, it is
    the most accurate direction, Fisher's.

    It minimises a quadratic form b'K b (the leak) on the sphere |b| = 1 under b'Q b <= 0 or = 0 (the accuracy). The minimum equals
    the largest, over nu, of the smallest eigenvalue of K + nu Q, because two quadratic forms on a sphere have a convex range
    (Brickman 1961; the S-lemma): a concave function of one variable, so what is found is global. `_Curve` has the forms for the
    linear attacker, `_exact_point` those for the exact one.
    """
    signal = _signal(accuracy, moments.prior)
    return _Curve(moments).point(signal) if attacker == "linear" else _exact_point(signal, moments)


def rank1_optimum(lambda_: float, *, moments: Moments) -> Point:
    """The direction that maximises lambda alpha^2 + d MSE, the original's objective, over codes of any size.

    Of the points of the frontier on a grid the best is taken, and refined until the frontier's slope fits lambda: the condition
    for a stationary direction.

    Raises:
        InputError: lambda is negative.
    """
    return _Curve(moments).optimum(lambda_)


def frontier(lambdas: Sequence[float], *, moments: Moments) -> list[Point]:
    """`rank1_optimum` for each of the weights.

    Raises:
        InputError: a weight is negative.
    """
    with threadpool_limits(1, user_api="blas"):  # on matrices as small as these several wait longer than they work
        curve = _Curve(moments)
        return [curve.optimum(value) for value in lambdas]


def theory_lines(lambdas: Sequence[float], *, seed: int) -> list[dict[str, float]]:
    """What the best code of the Gaussian mixture reaches for each weight of utility: its accuracy, and the MSE of the best linear
    attack, per dimension. The covariances are those of the test points, as the original's.

    Raises: InputError where the seed cannot be used, or a weight is negative.
    """
    drawn = mixture(seed)
    points = frontier(lambdas, moments=sample_moments(drawn.x[drawn.test], y=drawn.y[drawn.test], mean=drawn.mean))
    return [{"lambda": w, "accuracy": p.accuracy, "mse": p.mse} for w, p in zip(lambdas, points, strict=True)]


def frontier_mse(accuracy: Sequence[float] | np.ndarray, *, moments: Moments, attacker: Attacker = "linear") -> np.ndarray:
    """The largest MSE that a code of each accuracy (n,) can have, per dimension (n,): `least_leaking`."""
    signals = [_signal(value, moments.prior) for value in accuracy]
    with threadpool_limits(1, user_api="blas"):
        curve = _Curve(moments)
        return np.array([(curve.point(s) if attacker == "linear" else _exact_point(s, moments)).mse for s in signals])


def shortfall(
    accuracy: Sequence[float] | np.ndarray,
    mse: Sequence[float] | np.ndarray,
    *,
    moments: Moments,
    attacker: Attacker = "linear",
    accuracy_tolerance: float = 0.0,
) -> np.ndarray:
    """By what share the MSE of each measured point (n,) lies below the frontier's at the same accuracy (n,); negative: above it.

    1 - mse / frontier_mse(accuracy + accuracy_tolerance). The points may be those of codes of any size k. A point is within 2 % of
    the frontier at equal accuracy within 0.005 where `shortfall(..., accuracy_tolerance=0.005) <= 0.02`. The frontier is steep near
    the best accuracy: on the reference data 0.005 of accuracy are up to an eighth of the MSE there.
    """
    reached = np.asarray(accuracy) + accuracy_tolerance
    return 1 - np.asarray(mse) / frontier_mse(reached, moments=moments, attacker=attacker)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether a point (accuracy, MSE) is no worse than another in both, and better in one; larger is better."""
    return one[0] >= other[0] and one[1] >= other[1] and one != other


class _Curve:
    """The frontier against the linear attacker, in coordinates in which `total` is the identity: a = R b, |b| = 1.

    The leak is b'K b with K = R' total^2 R, diagonal; the signal, (u'b)^2 / (b'M b), is at least s where b'(s M - uu')b <= 0.
    """

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self.leaks, basis = np.linalg.eigh(moments.total)
        self.back = basis / np.sqrt(self.leaks)
        self.u, self.m = self.back.T @ moments.mean, self.back.T @ moments.within @ self.back
        fisher = linalg.solve(self.m, self.u, assume_a="pos")
        self.fisher, self.most = fisher / np.linalg.norm(fisher), float(self.u @ fisher)
        self.least = self.signal(np.eye(len(self.u))[0])

    def signal(self, b: np.ndarray) -> float:
        return float((self.u @ b) ** 2 / (b @ self.m @ b))

    def at(self, signal: float) -> tuple[np.ndarray, float]:
        """The least leaking b of at least a signal, and the multiplier nu of that bound: the leak's slope is nu b'M b."""
        if signal <= self.least:
            return np.eye(len(self.u))[0], 0.0
        if signal >= self.most * (1 - 1e-13):
            return self.fisher, math.inf
        return _least(np.diag(self.leaks), signal * self.m - np.outer(self.u, self.u))

    def point(self, signal: float) -> Point:
        b, _ = self.at(signal)
        b = b * (1 if self.u @ b >= 0 else -1)
        accuracy = _accuracy(2 * math.sqrt(self.signal(b)), self.moments.prior)
        leak = float((self.leaks * b**2).sum())
        return Point(direction=self.back @ b, accuracy=accuracy, mse=self.moments.mean_mse - leak / len(b))

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Signals, denser towards both ends, and the leaks there."""
        share = special.expit(np.linspace(-12, 12, GRID))
        signals = np.concatenate([[self.least], self.least + (self.most - self.least) * share, [self.most]])
        return signals, np.array([(self.leaks * self.at(s)[0] ** 2).sum() for s in signals])

    def optimum(self, lambda_: float) -> Point:
        if not lambda_ >= 0:
            raise InputError(f"lambda is {lambda_!r}; the weight of utility is at least 0")
        if math.isinf(lambda_):
            return self.point(self.most)

        def root(signal: float) -> float:
            """Of the distance to the end, where the slope grows like one over it."""
            return math.sqrt(max(self.most - signal, 1e-12 * self.most))

        def rise(root: float) -> float:
            """Slope of the objective over the signal."""
            b, nu = self.at(self.most - root**2)
            return 4 * lambda_ - nu * float(b @ self.m @ b)

        signals, leaks = self.grid
        best = int(np.argmax(4 * lambda_ * signals - leaks))
        here = root(signals[best])
        other = best + 1 if rise(here) > 0 else best - 1  # the slope changes its sign on the way there: both neighbours are lower
        there = root(signals[min(max(other, 0), len(signals) - 1)])
        if rise(here) * rise(there) >= 0:
            return self.point(signals[best])
        return self.point(self.most - _zero(rise, here, there) ** 2)


def _exact_point(signal: float, moments: Moments) -> Point:
    """The point of some signal s on the frontier against the exact attacker, in coordinates in which `within` is the identity.

    With D = E[1 - E[y|z]^2], which depends on s alone, d MMSE = tr(within) + D |mean|^2 - b'K b (`mmse`), where a = R b, |b| = 1,
    K = (1 - D s) R' within^2 R + D (u w' + w u'), u = R'mean, w = R' within mean, under (u'b)^2 = s.
    """
    d = len(moments.mean)
    values, basis = np.linalg.eigh(moments.within)
    back = basis / np.sqrt(values)
    u = back.T @ moments.mean
    most = float(u @ u)
    signal = min(max(signal, 1e-12 * most), most) if d > 1 else most
    doubt = _label_variance(math.sqrt(signal), moments.prior)
    cross = np.outer(u, values * u)
    leak = (1 - doubt * signal) * np.diag(values) + doubt * (cross + cross.T)
    if signal >= most * (1 - 1e-13):
        b = u / math.sqrt(most)
    else:
        b, _ = _least(leak, signal * np.eye(d) - np.outer(u, u), equal=True)
    a = back @ b
    a *= math.copysign(1 / math.sqrt(a @ moments.total @ a), u @ b)
    mse = (values.sum() + doubt * moments.mean @ moments.mean - b @ leak @ b) / d
    return Point(direction=a, accuracy=_accuracy(2 * math.sqrt(signal), moments.prior), mse=float(mse))


def _least(leak: np.ndarray, bound: np.ndarray, *, equal: bool = False) -> tuple[np.ndarray, float]:
    """The b (d,) on the sphere of the least b' leak b under b' bound b <= 0 (or = 0), and the multiplier nu: see `least_leaking`.

    The bound must change its sign on the sphere; unless `equal`, the least b of all must lie outside of it.
    """

    def lowest(nu: float) -> tuple[np.ndarray, np.ndarray]:
        return np.linalg.eigh(leak + nu * bound)

    def slack(nu: float) -> float:
        b = lowest(nu)[1][:, 0]
        return float(b @ bound @ b)

    sign = -1 if equal and slack(0.0) < 0 else 1
    end = sign * 1e-3 * float(np.abs(leak).max())
    while sign * slack(end) > 0:
        end *= 4
    nu = _zero(slack, 0.0, end)
    values, vectors = lowest(nu)
    # Where the smallest eigenvalue is a double one, a mixture of its vectors meets the bound, and none of them alone.
    span = vectors[:, values <= values[0] + 1e-10 * np.abs(values).max()]
    side, ways = np.linalg.eigh(span.T @ bound @ span)
    if side[0] < 0 < side[-1]:
        share = side[-1] / (side[-1] - side[0])
        return span @ (math.sqrt(share) * ways[:, 0] + math.sqrt(1 - share) * ways[:, -1]), nu
    return vectors[:, 0], nu


def _signal(accuracy: float, prior: float) -> float:
    """The signal alpha^2 / 4 that some accuracy asks for."""
    if accuracy <= max(prior, 1 - prior):
        return 0.0
    if accuracy >= 1:
        return math.inf
    high = 1.0
    while _accuracy(high, prior) < accuracy:
        high *= 2
    return (_zero(lambda alpha: _accuracy(alpha, prior) - accuracy, 0.0, high) / 2) ** 2


def _zero(function: Callable[[float], float], one: float, other: float) -> float:
    """Where a function changes its sign between two points, as precisely as numbers allow."""
    found = optimize.brentq(function, one, other, xtol=1e-15 * max(abs(one), abs(other)))
    return float(found)  # pyright: ignore[reportArgumentType]

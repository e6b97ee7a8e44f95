"""The best codes of the Gaussian mixture for each accuracy and each weight, and the distance of a code from them."""

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
"""The best linear reconstruction (`lmmse`), or the best reconstruction of any kind (`mmse`)."""
GRID = 121
"""Number of frontier points among which the best for a weight is chosen before it is refined. The frontier may not be convex: a
small change of the weight may jump over a part of it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A direction on the frontier."""

    direction: np.ndarray  # float64 (d,), of unit variance: a' total a = 1, a'mean >= 0
    accuracy: float
    """Accuracy of the best classifier on z."""
    mse: float
    """MSE of the best attack on z, per dimension."""


def least_leaking_point(accuracy: float, *, moments: Moments, attacker: Attacker = "linear") -> Point:
    """The direction with the largest MSE for a given accuracy; codes of more dimensions are no better.

    For the linear attacker: among the directions with at least that accuracy. For the exact attacker (of the mixture with this
    mean, within and prior; `total` is not used): among the directions with exactly that accuracy. If the accuracy is above the best
    possible one, as a measured accuracy may be by chance, it is the most accurate direction (Fisher's).

    It minimises a quadratic form b'K b (the leak) on the sphere |b| = 1 under b'Q b <= 0 or = 0 (the accuracy). The minimum equals
    the maximum over nu of the smallest eigenvalue of K + nu Q, because two quadratic forms on a sphere have a convex range
    (Brickman 1961; the S-lemma). This is a concave function of one variable, so the result is the global minimum. `_Curve` has the
    forms for the linear attacker, `_exact_point` the forms for the exact one.
    """
    signal = _signal(accuracy, moments.prior)
    return _Curve(moments).point(signal) if attacker == "linear" else _exact_point(signal, moments)


def rank1_optimum(lambda_: float, *, moments: Moments) -> Point:
    """The direction that maximises lambda alpha^2 + d MSE, the objective of the reference implementation, over codes of any size.

    The best frontier point on a grid is refined until the slope of the frontier matches lambda, the condition for a stationary
    direction.

    Raises:
        InputError: lambda is negative.
    """
    return _Curve(moments).optimum(lambda_)


def frontier(lambdas: Sequence[float], *, moments: Moments) -> list[Point]:
    """`rank1_optimum` for each of the weights.

    Raises:
        InputError: a weight is negative.
    """
    with threadpool_limits(1, user_api="blas"):  # for small matrices several threads are slower
        curve = _Curve(moments)
        return [curve.optimum(value) for value in lambdas]


def theory_lines(lambdas: Sequence[float], *, seed: int) -> list[dict[str, float]]:
    """For each utility weight: the accuracy of the best code of the Gaussian mixture, and the MSE of the best linear attack on it,
    per dimension. The covariances are computed from the test rows, as in the reference implementation.

    Raises:
        InputError: the seed is out of range, or a weight is negative.
    """
    data = mixture(seed)
    points = frontier(lambdas, moments=sample_moments(data.x[data.test], y=data.y[data.test], mean=data.mean))
    return [{"lambda": w, "accuracy": p.accuracy, "mse": p.mse} for w, p in zip(lambdas, points, strict=True)]


def frontier_mse(accuracy: Sequence[float] | np.ndarray, *, moments: Moments, attacker: Attacker = "linear") -> np.ndarray:
    """The largest MSE per dimension (n,) that a code can have at each accuracy (n,): see `least_leaking_point`."""
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
    """The share by which the MSE of each measured point (n,) is below the frontier at the same accuracy (n,); negative above it.

    1 - mse / frontier_mse(accuracy + accuracy_tolerance). The points may come from codes of any size k. A point with
    `shortfall(..., accuracy_tolerance=0.005) <= 0.02` is within 2 % of the frontier at an accuracy that differs by at most 0.005.
    The frontier is steep near the best accuracy: there, on the reference data, 0.005 of accuracy correspond to up to an eighth of
    the MSE.
    """
    target_accuracy = np.asarray(accuracy) + accuracy_tolerance
    return 1 - np.asarray(mse) / frontier_mse(target_accuracy, moments=moments, attacker=attacker)


def dominates(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether a point (accuracy, MSE) is no worse than another in both values and better in one; larger is better."""
    return first[0] >= second[0] and first[1] >= second[1] and first != second


class _Curve:
    """The frontier against the linear attacker, in coordinates in which `total` is the identity: a = R b, |b| = 1.

    The leak is b'K b with the diagonal matrix K = R' total^2 R. The signal (u'b)^2 / (b'M b) is at least s if b'(s M - uu')b <= 0.
    """

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self.leaks, basis = np.linalg.eigh(moments.total)
        self.transform = basis / np.sqrt(self.leaks)
        self.u, self.m = self.transform.T @ moments.mean, self.transform.T @ moments.within @ self.transform
        fisher = linalg.solve(self.m, self.u, assume_a="pos")
        self.fisher, self.max_signal = fisher / np.linalg.norm(fisher), float(self.u @ fisher)
        self.min_signal = self.signal(np.eye(len(self.u))[0])

    def signal(self, b: np.ndarray) -> float:
        return float((self.u @ b) ** 2 / (b @ self.m @ b))

    def minimiser(self, signal: float) -> tuple[np.ndarray, float]:
        """The b with the smallest leak and at least the given signal, and the multiplier nu of this bound: the slope of the leak is
        nu b'M b."""
        if signal <= self.min_signal:
            return np.eye(len(self.u))[0], 0.0
        if signal >= self.max_signal * (1 - 1e-13):
            return self.fisher, math.inf
        return _minimise_leak(np.diag(self.leaks), signal * self.m - np.outer(self.u, self.u))

    def point(self, signal: float) -> Point:
        b, _ = self.minimiser(signal)
        b = b * (1 if self.u @ b >= 0 else -1)
        accuracy = _accuracy(2 * math.sqrt(self.signal(b)), self.moments.prior)
        leak = float((self.leaks * b**2).sum())
        return Point(direction=self.transform @ b, accuracy=accuracy, mse=self.moments.mean_mse - leak / len(b))

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Signals, denser towards both ends, and their leaks."""
        fractions = special.expit(np.linspace(-12, 12, GRID))
        signals = np.concatenate(
            [[self.min_signal], self.min_signal + (self.max_signal - self.min_signal) * fractions, [self.max_signal]]
        )
        return signals, np.array([(self.leaks * self.minimiser(s)[0] ** 2).sum() for s in signals])

    def optimum(self, lambda_: float) -> Point:
        if not lambda_ >= 0:
            raise InputError(f"lambda is {lambda_!r}; the weight of utility is at least 0")
        if math.isinf(lambda_):
            return self.point(self.max_signal)

        def root_distance(signal: float) -> float:
            """Square root of the distance to the largest signal; the slope grows like its inverse."""
            return math.sqrt(max(self.max_signal - signal, 1e-12 * self.max_signal))

        def slope(root_distance: float) -> float:
            """Slope of the objective with respect to the signal."""
            b, nu = self.minimiser(self.max_signal - root_distance**2)
            return 4 * lambda_ - nu * float(b @ self.m @ b)

        signals, leaks = self.grid
        best = int(np.argmax(4 * lambda_ * signals - leaks))
        start = root_distance(signals[best])
        neighbour = best + 1 if slope(start) > 0 else best - 1  # the slope changes its sign in between: both neighbours are lower
        end = root_distance(signals[min(max(neighbour, 0), len(signals) - 1)])
        if slope(start) * slope(end) >= 0:
            return self.point(signals[best])
        return self.point(self.max_signal - _find_root(slope, start, end) ** 2)


def _exact_point(signal: float, moments: Moments) -> Point:
    """The point with signal s on the frontier against the exact attacker, in coordinates in which `within` is the identity.

    With D = E[1 - E[y|z]^2], which depends only on s, d MMSE = tr(within) + D |mean|^2 - b'K b (`mmse`), with a = R b, |b| = 1,
    K = (1 - D s) R' within^2 R + D (u w' + w u'), u = R'mean, w = R' within mean, under (u'b)^2 = s.
    """
    d = len(moments.mean)
    values, basis = np.linalg.eigh(moments.within)
    transform = basis / np.sqrt(values)
    u = transform.T @ moments.mean
    max_signal = float(u @ u)
    signal = min(max(signal, 1e-12 * max_signal), max_signal) if d > 1 else max_signal
    label_variance = _label_variance(math.sqrt(signal), moments.prior)
    cross = np.outer(u, values * u)
    leak = (1 - label_variance * signal) * np.diag(values) + label_variance * (cross + cross.T)
    if signal >= max_signal * (1 - 1e-13):
        b = u / math.sqrt(max_signal)
    else:
        b, _ = _minimise_leak(leak, signal * np.eye(d) - np.outer(u, u), equal=True)
    a = transform @ b
    a *= math.copysign(1 / math.sqrt(a @ moments.total @ a), u @ b)
    mse = (values.sum() + label_variance * moments.mean @ moments.mean - b @ leak @ b) / d
    return Point(direction=a, accuracy=_accuracy(2 * math.sqrt(signal), moments.prior), mse=float(mse))


def _minimise_leak(leak: np.ndarray, bound: np.ndarray, *, equal: bool = False) -> tuple[np.ndarray, float]:
    """The b (d,) on the sphere that minimises b' leak b under b' bound b <= 0 (or = 0), and the multiplier nu: see
    `least_leaking_point`.

    The form `bound` must change its sign on the sphere; unless `equal`, the unconstrained minimum must violate the bound.
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
    nu = _find_root(slack, 0.0, end)
    values, vectors = lowest(nu)
    # If the smallest eigenvalue is a double one, only a mixture of its eigenvectors meets the bound.
    span = vectors[:, values <= values[0] + 1e-10 * np.abs(values).max()]
    bounds, directions = np.linalg.eigh(span.T @ bound @ span)
    if bounds[0] < 0 < bounds[-1]:
        share = bounds[-1] / (bounds[-1] - bounds[0])
        return span @ (math.sqrt(share) * directions[:, 0] + math.sqrt(1 - share) * directions[:, -1]), nu
    return vectors[:, 0], nu


def _signal(accuracy: float, prior: float) -> float:
    """The signal alpha^2 / 4 that gives an accuracy."""
    if accuracy <= max(prior, 1 - prior):
        return 0.0
    if accuracy >= 1:
        return math.inf
    high = 1.0
    while _accuracy(high, prior) < accuracy:
        high *= 2
    return (_find_root(lambda alpha: _accuracy(alpha, prior) - accuracy, 0.0, high) / 2) ** 2


def _find_root(function: Callable[[float], float], start: float, end: float) -> float:
    """The root of a function that changes its sign between two points, to floating-point precision."""
    root = optimize.brentq(function, start, end, xtol=1e-15 * max(abs(start), abs(end)))
    return float(root)  # pyright: ignore[reportArgumentType]

"""Theory of linear codes z = A x of a Gaussian mixture: accuracy and reconstruction error.

The label y is +1 with probability `prior` and -1 otherwise, and x ~ N(y mean, within) has dimension d. A is a matrix (k, d) or one
direction (d,); z may have noise of variance `noise_variance` in each component. Mean squared errors are **per dimension**, as in
`Final_theory.csv` of the reference implementation; multiplied by d they are the sums over dimensions in its other tables.

Without noise one direction is enough (`sufficient_direction`). The frontier of privacy against utility is therefore a curve of
directions a. Each has a signal s(a) = (a'mean)^2 / (a' within a), which alone determines the accuracy, and a leak
g(a) = (a' total^2 a) / (a' total a), the variance that the best linear attack recovers. `least_leaking_point` computes its points.

An attack need not be linear: on the linear frontier of the reference data the MSE of the exact conditional mean is up to an eighth
lower. Functions of the frontier therefore have a parameter `attacker`; one direction is enough against both kinds.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import integrate, linalg, stats


@dataclass(frozen=True, kw_only=True)
class Moments:
    """The moments of a mixture that the theory needs: of the population (`population_moments`) or of drawn rows
    (`sample_moments`)."""

    mean: np.ndarray  # float64 (d,), mean of class +1; the mean of class -1 is its negative
    within: np.ndarray  # float64 (d, d), covariance within a class
    total: np.ndarray  # float64 (d, d), covariance of x
    prior: float = 0.5  # probability of class +1

    @property
    def mean_mse(self) -> float:
        """MSE per dimension of an attack that always predicts the mean of x: the upper bound for any code."""
        return float(np.trace(self.total) / len(self.mean))


def population_moments(mean: np.ndarray, *, within: np.ndarray, prior: float = 0.5) -> Moments:
    """Moments of the mixture itself: total = within + 4 prior (1 - prior) mean mean'."""
    return Moments(mean=mean, within=within, total=within + 4 * prior * (1 - prior) * np.outer(mean, mean), prior=prior)


def sample_moments(x: np.ndarray, *, y: np.ndarray, mean: np.ndarray) -> Moments:
    """Moments of rows x (N, d) with labels y (N,), +1 or -1: covariances around the means of the rows, divided by their number, and
    the given population mean of class +1. On the test rows of seed 9 they give the figures of the reference implementation."""
    prior = float((y == 1).mean())
    within = prior * np.cov(x[y == 1].T, ddof=0) + (1 - prior) * np.cov(x[y == -1].T, ddof=0)
    return Moments(mean=mean, within=within, total=np.cov(x.T, ddof=0), prior=prior)


def bayes_accuracy(
    a: np.ndarray, *, mean: np.ndarray, within: np.ndarray, noise_variance: float = 0.0, prior: float = 0.5
) -> float:
    """Accuracy of the best classifier on z = A x + noise: linear discriminant analysis.

    Phi(alpha/2 + h/alpha) prior + Phi(alpha/2 - h/alpha) (1 - prior), where h = ln(prior / (1 - prior)) and
    alpha^2 = (2 A mean)' (A within A' + noise_variance I)^-1 (2 A mean): Phi(alpha/2) for equal priors.
    """
    a = _as_rows(a, independent=noise_variance == 0)
    shift = 2 * a @ mean
    spread = a @ within @ a.T + noise_variance * np.eye(len(a))
    return _accuracy(math.sqrt(max(shift @ np.linalg.solve(spread, shift), 0.0)), prior)


def lmmse(a: np.ndarray, *, total: np.ndarray, noise_variance: float = 0.0) -> float:
    """Mean squared error per dimension of the best linear (affine) reconstruction of x from z = A x + noise.

    tr(total - total A' (A total A' + noise_variance I)^-1 A total) / d.
    """
    a = _as_rows(a, independent=noise_variance == 0)
    cross = a @ total
    coefficients = np.linalg.solve(cross @ a.T + noise_variance * np.eye(len(a)), cross)
    return float((np.trace(total) - (cross * coefficients).sum()) / len(total))


def mmse(a: np.ndarray, *, mean: np.ndarray, within: np.ndarray, noise_variance: float = 0.0, prior: float = 0.5) -> float:
    """Mean squared error per dimension of the best reconstruction of any kind, E[x|z], from z = a'x + noise, a (d,).

    With v = a' within a + noise_variance and m = a'mean:
    E[x|z] = within a z / v + (mean - within a m / v) E[y|z], E[y|z] = tanh(m z / v + ln(prior / (1 - prior)) / 2), and
    d MMSE = tr(within) - a' within^2 a / v + |mean - within a m / v|^2 E[1 - E[y|z]^2].
    """
    (a,) = _as_rows(a)
    v, m = a @ within @ a + noise_variance, a @ mean
    if v == 0:
        return float((np.trace(within) + 4 * prior * (1 - prior) * mean @ mean) / len(mean))
    remainder = mean - within @ a * (m / v)
    label_variance = _label_variance(float(abs(m)) / math.sqrt(v), prior)
    return float((np.trace(within) - a @ within @ within @ a / v + remainder @ remainder * label_variance) / len(mean))


def sufficient_direction(a: np.ndarray, *, mean: np.ndarray, within: np.ndarray) -> np.ndarray:
    """The direction (d,) in the row space of A that is as accurate as A, and leaks no more.

    A' (A within A')^-1 A mean. It leaks no more, to linear and to all other attacks, because its code is a linear function of the
    code of A.
    """
    a = _as_rows(a, independent=True)
    return a.T @ np.linalg.solve(a @ within @ a.T, a @ mean)


def _as_rows(a: np.ndarray, *, independent: bool = False) -> np.ndarray:
    """A as a matrix (k, d); if `independent`, an orthonormal basis of its row space, because without noise only that matters."""
    a = np.atleast_2d(np.asarray(a, np.float64))
    return linalg.orth(a.T).T if independent else a


def _accuracy(alpha: float, prior: float) -> float:
    """Accuracy of the best classifier of two Gaussians of unit variance whose means have the distance alpha."""
    if alpha == 0 or prior in (0, 1):
        return max(prior, 1 - prior)
    bias = math.log(prior / (1 - prior)) / alpha
    return float(prior * stats.norm.cdf(alpha / 2 + bias) + (1 - prior) * stats.norm.cdf(alpha / 2 - bias))


def _label_variance(ratio: float, prior: float) -> float:
    """E[Var(y|z)] for z ~ N(y ratio, 1): 4 pi+ pi- exp(-ratio^2 / 2) E[1 / (pi+ exp(ratio t) + pi- exp(-ratio t))], t ~ N(0, 1)."""
    if prior in (0, 1):
        return 0.0
    plus, minus = math.log(prior), math.log(1 - prior)

    def density(t: float) -> float:
        return math.exp(-(t**2 + ratio**2) / 2 - np.logaddexp(plus + ratio * t, minus - ratio * t)) / math.sqrt(2 * math.pi)

    peak = min(max((minus - plus) / (2 * ratio), -8.0), 8.0) if ratio else 0.0
    value, _ = integrate.quad(density, -40, 40, points=[peak - 1, peak, peak + 1], limit=200, epsabs=1e-13, epsrel=1e-11)
    return 4 * prior * (1 - prior) * value

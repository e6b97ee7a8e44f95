"""The bit budget: how much any attacker can learn from a code that carries at most so many bits about the picture.

All numbers of information are in bits. X is the picture, Y its code without noise, Z the code that is released.
"""

import math

import numpy as np


def clipped_information(k: int, *, clip: float, noise: float) -> float:
    """Largest I(X; Z) of Z = Y + N for codes of k numbers in [-clip, clip] and Gaussian noise N with standard deviation `noise`:

        I <= (k / 2) log2(1 + clip^2 / noise^2).

    Derivation: I(X; Z) <= I(Y; Z) = h(Z) - h(N). The components of N are independent, so h(Z) <= sum h(Z_i); of all distributions
    with variance v the Gaussian has the largest entropy, log2(2 pi e v) / 2; and Var(Z_i) = Var(Y_i) + noise^2 <= clip^2 + noise^2.
    It uses no sample. Rounding Z later can only lower it.
    """
    return k / 2 * math.log2(1 + (clip / noise) ** 2)


def gaussian_information(y: np.ndarray, *, noise: float) -> float:
    """The same bound with the covariance of the codes y (N, k) in place of the clip: log2 det(I + Cov(Y) / noise^2) / 2.

    Derivation: of all distributions with covariance C the Gaussian has the largest entropy, log2 det(2 pi e C) / 2, and Z has the
    covariance Cov(Y) + noise^2 I. The covariance is estimated from these codes, so it holds for pictures like these.
    """
    covariance = np.atleast_2d(np.cov(y.astype(np.float64), rowvar=False))
    _, logarithm = np.linalg.slogdet(np.eye(len(covariance)) + covariance / noise**2)
    return float(logarithm / (2 * math.log(2)))


def largest_success(information: float, *, prior: float) -> float:
    """The largest probability that a guess is right after seeing Z, if the best guess without it is right with probability `prior`:
    the largest s with KL(Bern(s) || Bern(prior)) <= I.

    Derivation: let W be whether the guess is right. Under the true joint distribution P(W) = s. With an independent copy of Z it is
    at most the prior. The divergence between the two joint distributions is I(X; Z), and processing cannot raise it. For a prior of
    1 / N this sharpens Fano's inequality; see H. Xiao and S. Devadas, PAC privacy, CRYPTO 2023.
    """
    if prior >= 1 or information >= -math.log2(prior):  # KL(Bern(1) || Bern(prior))
        return 1.0
    low, high = prior, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle, prior) <= information else (low, middle)
    return high


def divergence(a: float, b: float) -> float:
    """KL(Bern(a) || Bern(b)) in bits, for 0 < b < 1."""
    return sum(p * math.log2(p / q) for p, q in ((a, b), (1 - a, 1 - b)) if p > 0)


def success_by_leakage(log2_codes: float, *, prior: float) -> float:
    """The largest probability that any guess about the picture is right, if there are at most 2^log2_codes different codes.

    Maximal leakage (I. Issa, A. Wagner and S. Kamath, IEEE Trans. Inf. Theory 66, 2020): sum over z of max_x P(z | x) is at most
    the number of codes, so the probability of a right guess grows at most by this factor, for whatever is guessed.
    """
    return min(1.0, prior * 2.0 ** min(log2_codes, 1000.0))


def gaussian_r2(information: float) -> float:
    """The best R2 on a scalar Gaussian source from this information: 1 - 2^(-2 I), which a Gaussian channel reaches exactly.

    A reference only: for a given covariance the Gaussian is the hardest source, so it bounds nothing for pictures.
    """
    return 1 - 2 ** (-2 * information)

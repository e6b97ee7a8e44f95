"""The gallery bound: an attacker who is helped by a genie is still wrong by the posterior variance.

Draw n held-out pictures x_1, ..., x_n of n people; one of them, i, is released. A genie shows the attacker which n pictures these
are, and their codes without noise y_1, ..., y_n. The posterior of i is then known exactly: with Gaussian noise of standard
deviation s it is p_j ~ exp(-|z - y_j|^2 / (2 s^2)), without noise it is uniform over the candidates whose code is z. The smallest
mean squared error is that of the posterior mean, which is the posterior variance

    V(z) = sum_j p_j |x_j|^2 - |sum_j p_j x_j|^2.

An attacker who knows less (no gallery, or z only after rounding) does no better, because it could ignore the help. So the expected
error of *any* attacker is at least E V, for any distribution of pictures and codes of any length, and R2 <= 1 - E V / MSE(mean
picture). The same holds for identification in such a gallery: no guess of i is right more often than E max_j p_j. With n the help
becomes smaller, and the bound tighter.

The expectations are means over disjoint galleries, which are independent: intervals are those of Student's t over galleries.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.common.rng import stream

SIZES = (2, 8, 32, 128, 512)
MIN_GALLERIES = 2
"""One gallery has no interval."""
MAX_GALLERIES, MAX_PICTURES = 200, 4096
"""Of one size."""
DRAWS = 4
"""Number of draws of the noise for each picture."""
LEVEL = 0.99
"""Level of the interval in `exceeds`, which every attack of every run is compared with."""


@dataclass(frozen=True, eq=False)
class Galleries:
    """The galleries of one size."""

    rows: np.ndarray
    """(G, n), each row number of one person's picture."""
    variances: np.ndarray
    """(G, n): mean posterior variance per value when this picture is released, see `V` above."""
    mean_errors: np.ndarray
    """(G, n): squared error per value of the mean picture."""
    largest: np.ndarray
    """(G, n): mean largest posterior."""


@dataclass(frozen=True)
class GalleryBound:
    """What no attacker exceeds who must recover one of `n` held-out pictures, with 95 % intervals over galleries."""

    n: int
    galleries: int
    r2: float
    low: float
    high: float
    identification: float
    identification_low: float
    identification_high: float


def bound_of(galleries: Galleries) -> GalleryBound:
    """The bound that follows from galleries of one size.

    The interval of R2 = 1 - sum of variances / sum of errors is that of the ratio to first order: of the mean over galleries of
    (variance - (1 - R2) error) / mean error.
    """
    ratio = galleries.variances.sum() / galleries.mean_errors.sum()
    scale = galleries.mean_errors.mean()
    half = half_width((galleries.variances - ratio * galleries.mean_errors).mean(axis=1) / scale)
    found, found_half = float(galleries.largest.mean()), half_width(galleries.largest.mean(axis=1))
    count, n = galleries.rows.shape
    r2 = float(1 - ratio)
    return GalleryBound(
        n, count, r2, max(r2 - half, 0.0), min(r2 + half, 1.0), found, max(found - found_half, 0.0), min(found + found_half, 1.0)
    )


def half_width(values: np.ndarray, *, level: float = 0.95) -> float:
    """Half the width of the interval of the mean of independent values (G,), by Student's t with G - 1 degrees of freedom."""
    from scipy import special  # takes 0.2 s

    t = special.stdtrit(len(values) - 1, (1 + level) / 2)
    return float(t * values.std(ddof=1) / len(values) ** 0.5)


def exceeds(errors: np.ndarray, galleries: Galleries) -> bool:
    """Whether an attack with these errors (N,) per score row is better than any attack can be, beyond the interval: on the same
    pictures, the difference between its errors and the posterior variances has an interval that lies below 0."""
    differences = (errors[galleries.rows] - galleries.variances).mean(axis=1)
    return bool(differences.mean() + half_width(differences, level=LEVEL) < 0)


def draw_galleries(
    pictures: Callable[[np.ndarray], Tensor], y: np.ndarray, identity: np.ndarray, *, n: int, noise: float, seed: int
) -> Galleries | None:
    """Disjoint galleries of n people, one picture of each; None if there are too few people for two galleries.

    pictures: function from row numbers (n,) to the pictures minus the mean picture (n, D); y: (N, k) codes without noise, rounded
    if `noise` is 0; noise: its standard deviation; identity: (N,).
    """
    rng = stream(seed, "bounds", "gallery", n)
    order = rng.permutation(len(identity))
    rows = order[np.unique(identity[order], return_index=True)[1]]  # a random picture of each person
    count = min(len(rows) // n, MAX_GALLERIES, max(MIN_GALLERIES, MAX_PICTURES // n))
    if count < MIN_GALLERIES:
        return None
    drawn = rng.permutation(rows)[: count * n].reshape(count, n)
    parts = [gallery(pictures(members), y[members], noise=noise, rng=rng) for members in drawn]
    variances, mean_errors, largest = (np.stack(column) for column in zip(*parts, strict=True))
    return Galleries(drawn, variances, mean_errors, largest)


def gallery(x: Tensor, y: np.ndarray, *, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one gallery with pictures x (n, D) minus the mean picture, and codes y (n, k): for each released picture the posterior
    variance per value, the squared error per value of the mean picture, and the largest posterior; (n,) float64 each."""
    draws = DRAWS if noise else 1
    squares = x.double().square().sum(1)
    variance, largest = np.zeros((2, len(x)))
    for _ in range(draws):
        p = torch.from_numpy(posterior(y, noise=noise, rng=rng)).to(x.device)
        mean = p @ x.double()
        variance += ((p @ squares - mean.square().sum(1)).clamp(min=0) / x.shape[1] / draws).cpu().numpy()
        largest += p.amax(1).cpu().numpy() / draws
    return variance, (squares / x.shape[1]).cpu().numpy(), largest


def posterior(y: np.ndarray, *, noise: float, rng: np.random.Generator) -> np.ndarray:
    """(n, n) float64: row i is the posterior over the candidates when the picture with code y_i (k,) is released."""
    y = y.astype(np.float64)
    if not noise:
        same = (y[:, None] == y[None]).all(2).astype(np.float64)
        return same / same.sum(1, keepdims=True)
    z = y + noise * rng.standard_normal(y.shape)
    distances = (z**2).sum(1)[:, None] - 2 * z @ y.T + (y**2).sum(1)
    logits = -(distances - distances.min(1, keepdims=True)) / (2 * noise**2)
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True)

"""The whole job of jobs/reproduce.py."""

from collections.abc import Sequence

from cpgan_ray.data.gaussian import mixture
from cpgan_ray.theory import frontier, sample_moments


def theory_lines(lambdas: Sequence[float], *, seed: int) -> list[dict[str, float]]:
    """What the best code of the Gaussian mixture reaches for each weight of utility: its accuracy, and the MSE of the best linear
    attack, per dimension. The covariances are those of the test points, as the original's (SPEC 2.4).

    Raises:
        InputError: the seed cannot be used, or a weight is negative.
    """
    drawn = mixture(seed)
    moments = sample_moments(drawn.x[drawn.test], y=drawn.y[drawn.test], mean=drawn.mean)
    points = frontier(lambdas, moments=moments)
    return [{"lambda": w, "accuracy": p.accuracy, "mse": p.mse} for w, p in zip(lambdas, points, strict=True)]

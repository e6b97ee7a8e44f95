"""The Gaussian mixture of the paper's synthetic experiment: y = +-1, x ~ N(y mean, covariance), whose theory is known."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpgan_ray.data.samples import Samples
from cpgan_ray.errors import InputError

SHIFT = 2.0
"""Every component of the mean of class +1."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of two Gaussians, equally likely, and rows drawn from it."""

    mean: np.ndarray  # float64 (d,), mean of class +1; the mean of class -1 is its negative
    covariance: np.ndarray  # float64 (d, d), within a class
    x: np.ndarray  # float64 (N, d), all rows of class +1, then all of class -1
    y: np.ndarray  # int8 (N,), +1 or -1
    test: np.ndarray  # bool (N,), the held-out rows, the same number of each class


def mixture(seed: int = 9, *, dimension: int = 32, num_per_class: int = 11_000, num_test_per_class: int = 1_000) -> Mixture:
    """Draw a mixture and its rows. The default arguments (seed 9) give the reference data.

    The covariance is C'C with the elements of C uniform on [0, 1). NumPy's legacy generator draws, in this order, C, the rows of
    class +1 and the rows of class -1. Then Python's own generator, with the same seed, draws without replacement the held-out rows
    of class +1 and of class -1. The legacy generator uses a singular value decomposition of the covariance, so the last bits of x
    may differ between machines.

    Raises:
        InputError: a size or the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; the seed of a mixture must be between 0 and {2**32 - 1}")
    if dimension < 1:
        raise InputError(f"dimension is {dimension}; it must be at least 1")
    if not 1 <= num_test_per_class < num_per_class:
        raise InputError(
            f"num_test_per_class is {num_test_per_class}; it must be at least 1 and below num_per_class, {num_per_class}"
        )
    numpy_generator, python_generator = np.random.RandomState(seed), random.Random(seed)  # noqa: NPY002 (the reference data come from this generator)
    c = numpy_generator.rand(dimension, dimension)
    mean, covariance = np.full(dimension, SHIFT), c.T @ c
    x = np.concatenate([numpy_generator.multivariate_normal(y * mean, covariance, num_per_class) for y in (1, -1)])
    test = np.zeros(2 * num_per_class, bool)
    for first in (0, num_per_class):
        test[first + np.array(python_generator.sample(range(num_per_class), num_test_per_class))] = True
    y = np.repeat(np.array([1, -1], np.int8), num_per_class)
    return Mixture(mean=mean, covariance=covariance, x=x, y=y, test=test)


def files() -> list[Path]:
    """The file that determines the data set: this module."""
    return [Path(__file__)]


def read(seed: int = 9) -> Samples:
    """The rows of a mixture as samples of shape (d, 1, 1).

    The mean of the training rows is subtracted, and all values are divided by one common scale, the root of the mean variance of
    the training rows; R2 is therefore the same as for the raw values. Every tenth training row is for validation.
    """
    data = mixture(seed)
    rest, test = np.flatnonzero(~data.test), np.flatnonzero(data.test)
    val = rest[::10]
    train = np.setdiff1d(rest, val)
    offset = data.x[train].mean(axis=0)
    scale = float(np.sqrt(data.x[train].var(axis=0).mean()))
    return Samples(
        values=((data.x - offset) / scale).astype(np.float32)[:, :, None, None],
        labels=(data.y > 0).astype(np.int8),
        label_name="class",
        classes=("-1", "+1"),
        identity=np.arange(len(data.x)),
        rows={"train": train, "val": val, "test": test},
        scale=scale,
    )

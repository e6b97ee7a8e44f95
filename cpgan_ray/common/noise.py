"""The noise of a stochastic release, z = round(y + noise): in training, in evaluation and on the client. It needs only numpy."""

import numpy as np

from cpgan_ray.common.rng import stream


def draw_noise(shape: tuple[int, int], *, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Independent Gaussian noise with standard deviation `noise`, (B, k) float32."""
    return np.float32(noise) * rng.standard_normal(shape, np.float32)


def noise_of(seed: int, *path: str | int, shape: tuple[int, int], noise: float) -> np.ndarray:
    """The noise of one use of the codes in a run (a round, a set of codes), which is the same in every process."""
    return draw_noise(shape, noise=noise, rng=stream(seed, "release noise", *path))


def rounded(z: np.ndarray, step: float) -> np.ndarray:
    """z (B, k) rounded to multiples of `step`; unchanged if that is 0."""
    return np.rint(z / np.float32(step)) * np.float32(step) if step else z

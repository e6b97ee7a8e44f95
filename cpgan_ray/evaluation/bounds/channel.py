"""How a code becomes what is released: the steps that a bound needs to know."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cpgan_ray.config import PrivatizerConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class Channel:
    """z = round(clip(y) + noise): what is known about the release of codes."""

    step: float = 0.0
    """Released numbers are multiples of this; 0: they are not rounded."""
    levels: int = 0
    """Number of values that each released number can have; 0: not limited."""
    noise: float = 0.0
    """Standard deviation of the Gaussian noise of each number."""
    clip: float = 0.0
    """Numbers of y are in [-clip, clip]. Known only with noise."""
    clean: np.ndarray | None = None
    """The codes y of `test` before noise and rounding, (N, k); known only with noise."""
    random: bool = False
    """Whether the release draws random numbers of another kind, about which nothing is known."""

    @staticmethod
    def of_privatizer(config: PrivatizerConfig, *, clean: np.ndarray | None) -> "Channel":
        """The channel of a run's privatizer; clean: see the field."""
        clip = config.noise_clip if config.noise else 0.0
        return Channel(step=config.quantization_step, levels=config.levels, noise=config.noise, clip=clip, clean=clean)

    @staticmethod
    def of_mechanism(names: Sequence[str], config: PrivatizerConfig) -> "Channel":
        """The channel of a mechanism with codes of these sets. A mechanism that draws noise of its own has several draws."""
        return Channel(step=config.quantization_step, levels=config.levels, random=any("_draw" in name for name in names))

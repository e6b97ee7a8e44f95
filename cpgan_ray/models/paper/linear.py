"""Linear networks without bias, which the reference implementation uses for the Gaussian mixture: every player is a matrix."""

import math
from itertools import pairwise

from torch import nn

from cpgan_ray.models.paper.same_padding import initialise


def linear_stages(image_shape: tuple[int, int, int], *, widths: tuple[int, ...] = (16,)) -> nn.Sequential:
    """Linear maps of the given widths on flat inputs, (B, C, H, W) -> (B, widths[-1]): (16,) for CPGAN, (24,) for DNN, () for
    RAN."""
    sizes = pairwise((math.prod(image_shape), *widths))
    return initialise(nn.Sequential(nn.Flatten(), *(nn.Linear(a, b, bias=False) for a, b in sizes)))

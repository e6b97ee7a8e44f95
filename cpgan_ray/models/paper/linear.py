"""Bias-free linear networks, the original's on the Gaussian mixture: every player is a matrix."""

import math
from itertools import pairwise

from torch import nn

from cpgan_ray.models.paper.same_padding import initialised


def linear_stages(image_shape: tuple[int, int, int], *, widths: tuple[int, ...] = (16,)) -> nn.Sequential:
    """Flat inputs through maps of these widths, (B, C, H, W) -> (B, widths[-1]): (16,) of CPGAN, (24,) of DNN, () of RAN."""
    sizes = pairwise((math.prod(image_shape), *widths))
    return initialised(nn.Sequential(nn.Flatten(), *(nn.Linear(a, b, bias=False) for a, b in sizes)))


def linear_map(k: int, *, outputs: int) -> nn.Linear:
    """One matrix, (B, k) -> (B, outputs): the utility head (2 outputs) and the reconstructor (as many as the input has)."""
    return initialised(nn.Linear(k, outputs, bias=False))

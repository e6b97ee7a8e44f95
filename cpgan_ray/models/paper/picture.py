"""Privatizers of the reference implementation for CIFAR-10 and SVHN, and parts of heads that read a code that is a picture."""

import math
from itertools import pairwise

from torch import Tensor, nn

from cpgan_ray.errors import InputError
from cpgan_ray.models.paper.same_padding import Same, initialise, weights_of
from cpgan_ray.models.pointwise import StridedPointwise


class PreactivationUnit(nn.Module):
    """batch norm - ReLU - conv, twice, with dropout between, plus a skip (He et al. 2016; Zagoruyko and Komodakis 2016).

    The skip is the identity, or a strided 1x1 convolution of the activated input if the shape changes.
    """

    def __init__(self, channels: int, out: int, *, stride: int = 1, dropout: float = 0.0, momentum: float = 0.1) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(channels, momentum=momentum), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out, momentum=momentum),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
        )
        same = stride == 1 and channels == out
        self.skip = None if same else StridedPointwise(channels, out, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        return self.branch(activated) + (x if self.skip is None else self.skip(activated))


def residual_g(channels: int, *, units: int = 9, momentum: float = 0.1) -> nn.Sequential:
    """The residual privatizer of the reference implementation: (B, C, H, W) -> the same shape, so it does not compress. 1,647
    parameters.

    A 3x3 convolution and `units` pre-activation units with the picture's number of channels; weights are truncated normal with
    standard deviation 1, without biases. `momentum` is the momentum of the batch statistics as torch defines it (0.01 on SVHN).
    """
    stages = [PreactivationUnit(channels, channels, momentum=momentum) for _ in range(units)]
    net = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), *stages)
    for weight in weights_of(net):
        nn.init.trunc_normal_(weight)
    return net


def picture_conv(channels: int) -> nn.Sequential:
    """The other reference privatizer for SVHN: (B, C, H, W) -> the same shape, with 3x3 convolutions to 32, 64, 128, 256 and C
    channels, each with leaky ReLU 0.2. 395,331 parameters."""
    stages: list[nn.Module] = []
    for inputs, out in pairwise((channels, 32, 64, 128, 256, channels)):
        stages += [nn.Conv2d(inputs, out, 3, padding=1), nn.LeakyReLU(0.2)]
    return initialise(nn.Sequential(*stages))


def generator_conv(channels: int) -> nn.Sequential:
    """The compressing reference privatizer: three strided 3x3 convolutions, ReLU before batch norm; 32x32 -> (B, 128, 4, 4)."""
    stages: list[nn.Module] = []
    for inputs, out in ((channels, 32), (32, 64), (64, 128)):
        stages += [Same(3, stride=2), nn.Conv2d(inputs, out, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(out)]
    return initialise(nn.Sequential(*stages))


def as_picture(k: int, *, image_shape: tuple[int, int, int], network: str) -> nn.Unflatten:
    """(B, k) -> (B, C, H, W), the inverse of flattening a picture-shaped code.

    Raises:
        InputError: k is not H * W * C.
    """
    height, width, channels = image_shape
    if k != math.prod(image_shape):
        raise InputError(
            f"k is {k}; the {network} network reads a code that is itself a picture: set k to {height}x{width}x{channels} = "
            f"{math.prod(image_shape)} with a privatizer that keeps the shape, or choose another one"
        )
    return nn.Unflatten(1, (channels, height, width))

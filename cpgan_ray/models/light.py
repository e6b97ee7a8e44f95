"""Privatizers for clients that can spend little: most of the work is one strided convolution, and the rest mixes channels.

Multiply-adds for a picture of H x W pixels and C channels, at width w: the first convolution of both families has stride equal to
its kernel and costs H W C w, whatever its kernel; a convolution of 3 x 3 with stride 2 would cost 9/4 of that.
"""

import math

from torch import Tensor, nn

from cpgan_ray.errors import InputError

STEM = 4
"""Side of the first patches of `separable`: two of its halvings at once."""
GRID = 8
"""The patches of `patch` are an eighth of the shorter side of the picture."""


class DepthwiseSeparable(nn.Module):
    """A 3x3 convolution of each channel alone with stride 2, then a 1x1 convolution over channels, each with batch norm and leaky
    ReLU 0.2 (A. Howard et al., MobileNets, arXiv:1704.04861): (B, C, H, W) -> (B, out, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2),
            *pointwise(channels, out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ResidualPointwise(nn.Module):
    """A 1x1 convolution with batch norm and leaky ReLU, added to its input (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*pointwise(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def pointwise(channels: int, out: int) -> list[nn.Module]:
    """A 1x1 convolution with batch norm and leaky ReLU 0.2."""
    return [nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]


def patches(channels: int, out: int, *, side: int, image_shape: tuple[int, int, int]) -> list[nn.Module]:
    """The embedding of all patches of `side` x `side` pixels, without overlap: a picture whose sides are no multiples is padded by
    zeros, so that no pixel is left out."""
    padding = [(math.ceil(length / side) * side - length + 1) // 2 for length in image_shape[:2]]
    embedding = nn.Conv2d(channels, out, side, stride=side, padding=(padding[0], padding[1]), bias=False)
    return [embedding, nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]


def separable_stages(image_shape: tuple[int, int, int], *, width: int, depth: int) -> nn.Sequential:
    """Patches of 4 x 4 pixels, which count as two stages, then `depth - 2` depthwise-separable stages, each of which doubles the
    channels: `depth` halvings of the picture in all.

    Raises: InputError if the depth is less than 2.
    """
    if depth < 2:
        raise InputError(
            f"privatizer.depth is {depth}, but the first layer of 'separable' counts as two stages: set it to 2 or more"
        )
    stages = patches(image_shape[2], width, side=STEM, image_shape=image_shape)
    stages += [DepthwiseSeparable(width * 2**stage, width * 2 ** (stage + 1)) for stage in range(depth - 2)]
    return nn.Sequential(*stages)


def patch_stages(image_shape: tuple[int, int, int], *, width: int, depth: int) -> nn.Sequential:
    """Patches of an eighth of the shorter side, then `depth` pointwise layers with a skip connection. Only the linear map to the
    code, behind the stages, mixes patches."""
    side = max(1, min(image_shape[:2]) // GRID)
    stages = patches(image_shape[2], width, side=side, image_shape=image_shape)
    return nn.Sequential(*stages, *(ResidualPointwise(width) for _ in range(depth)))

"""TensorFlow's SAME padding and initialisation, which the networks of the reference implementation use.

SAME puts the odd zero after the picture, while torch's `padding=1` puts one on each side: at stride 2 the grids differ by a pixel.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from cpgan_ray.models.paper.series import transposed_conv1d

M = TypeVar("M", bound=nn.Module)


def same_padding(size: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """Numbers of zeros before and after `size` values for ceil(size / stride) outputs; the odd zero goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Same(nn.Module):
    """Pads (B, C, H, W) for the next layer: a convolution (`value` 0) or max-pool (`value` -inf) with this kernel and stride."""

    def __init__(self, kernel: int, *, stride: int, value: float = 0.0) -> None:
        super().__init__()
        self.kernel, self.stride, self.value = kernel, stride, value

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_padding(x.shape[2], kernel=self.kernel, stride=self.stride)
        left, right = same_padding(x.shape[3], kernel=self.kernel, stride=self.stride)
        return nn.functional.pad(x, (left, right, top, bottom), value=self.value)


class TransposedSame(nn.Module):
    """Transposed convolution (B, C, H, W) -> (B, out, H * s0, W * s1): the adjoint of the SAME convolution with the same stride."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: tuple[int, int]) -> None:
        super().__init__()
        before = [max(kernel - s, 0) // 2 for s in stride]
        output_padding = [max(s - kernel + 2 * b, 0) for s, b in zip(stride, before, strict=True)]
        self.stride = stride
        self.conv = nn.ConvTranspose2d(channels, out, kernel, stride, padding=before, output_padding=output_padding)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        series = x.shape[3] == 1 and self.stride[1] == 1
        out = transposed_conv1d(self.conv, x) if series else self.conv(x)
        return out[:, :, : x.shape[2] * self.stride[0], : x.shape[3] * self.stride[1]]


class FlattenLast(nn.Module):
    """(B, C, H, W) -> (B, H * W * C), row by row with the channel last: the order of TensorFlow and of the store."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


def weights_of(module: nn.Module) -> list[Tensor]:
    """Weights of linear maps and convolutions, without the weights of normalisation layers."""
    return [p for name, p in module.named_parameters() if name.endswith("weight") and p.ndim > 1]


@torch.no_grad()
def initialise(module: M, *, normal: float = 0.0) -> M:
    """Initialise a module like TensorFlow: weights Xavier-uniform, or N(0, `normal`) if given; biases 0. Returns the module."""
    for weight in weights_of(module):
        if normal:
            nn.init.normal_(weight, std=normal)
        else:
            nn.init.xavier_uniform_(weight)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    return module

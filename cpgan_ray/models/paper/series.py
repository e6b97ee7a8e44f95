"""Convolutions of series (pictures of width 1) in networks with two-dimensional kernels.

Only the middle column of such a kernel sees the series, the other columns see padding. Leaving them out changes no value and no
gradient.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class SeriesConv2d(nn.Conv2d):
    """Conv2d that keeps the width, on (B, C, H, 1)."""

    def forward(self, input: Tensor) -> Tensor:
        rows, middle = self.padding
        out = F.conv1d(input[..., 0], self.weight[..., int(middle)], self.bias, self.stride[0], int(rows))
        return out[..., None]


class SeriesConvTranspose2d(nn.ConvTranspose2d):
    """ConvTranspose2d that keeps the width, on (B, C, H, 1)."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return transposed_conv1d(self, input)


def transposed_conv1d(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Apply `conv`, which keeps the width, to x (B, C, H, 1)."""
    rows, middle = conv.padding
    weight = conv.weight[..., int(middle)]
    out = F.conv_transpose1d(x[..., 0], weight, conv.bias, conv.stride[0], int(rows), conv.output_padding[0])
    return out[..., None]

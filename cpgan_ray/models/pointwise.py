"""1x1 convolutions with a stride.

torch uses oneDNN's implementation for channels-last pictures on x86. In the gradient of the weights it writes past its workspace if
there are fewer channels than it processes at a time (8 with AVX2, 16 with AVX-512): memory is damaged, gradients are wrong, or it
hangs (https://github.com/uxlfoundation/oneDNN/issues/6035; torch 2.13).
"""

from torch import Tensor, nn
from torch.nn import functional as F


class StridedPointwise(nn.Conv2d):
    """Conv2d with kernel 1 and a stride, (B, C, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)): selects the pixels first,
    then applies a convolution without a stride."""

    def __init__(self, channels: int, out: int, *, stride: int, bias: bool = False) -> None:
        super().__init__(channels, out, 1, stride=stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        down, across = self.stride
        return F.conv2d(input[:, :, ::down, ::across], self.weight, self.bias)

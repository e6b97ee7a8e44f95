"""1x1 convolutions that leave pixels out.

oneDNN's own, which torch calls for pictures with the channel last on x86, writes past its workspace in the gradient of the weights
where there are fewer channels than it takes at a time, 8 with AVX2 and 16 with AVX-512: memory is damaged, gradients are wrong, or
it hangs (https://github.com/uxlfoundation/oneDNN/issues/6035; torch 2.13).
"""

from torch import Tensor, nn
from torch.nn import functional as F


class StridedPointwise(nn.Conv2d):
    """Conv2d of kernel 1 with a stride, (B, C, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)), as one without a stride on
    the pixels that it reads."""

    def __init__(self, channels: int, out: int, *, stride: int, bias: bool = False) -> None:
        super().__init__(channels, out, 1, stride=stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        down, across = self.stride
        return F.conv2d(input[:, :, ::down, ::across], self.weight, self.bias)

"""Shake-Shake residual networks, the reference utility head for CIFAR-10 (Gastaldi 2017, arXiv 1705.07485)."""

import torch
from torch import Tensor, nn

from cpgan_ray.errors import InputError
from cpgan_ray.models.paper.picture import as_picture
from cpgan_ray.models.paper.same_padding import initialise
from cpgan_ray.models.pointwise import StridedPointwise


def shake(first: Tensor, second: Tensor, *, training: bool) -> Tensor:
    """A mixture of two branches (B, C, H, W): a * first + (1 - a) * second, with a drawn per sample in training and 1/2 otherwise.

    a = r1 / (r1 + r2) with r uniform in [0, 1); the gradient uses a second, independent draw. Draws come from torch's global
    generator: call this inside `process.torch_stream`.
    """
    if not training:
        return (first + second) / 2
    r = torch.rand(2, 2, len(first), 1, 1, 1, dtype=first.dtype, device=first.device)
    forward, backward = r[:, 0] / r.sum(1).clamp_min(torch.finfo(first.dtype).tiny)
    difference = first - second
    return second + backward * difference + ((forward - backward) * difference).detach()


class Branch(nn.Sequential):
    """ReLU - conv - batch norm - ReLU - conv - batch norm."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )


class ShiftedSkip(nn.Module):
    """Skip for a change of shape: two strided 1x1 convolutions of half the width, the second on the input shifted by a pixel."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.straight = StridedPointwise(channels, out // 2, stride=stride)
        self.shifted = StridedPointwise(channels, out - out // 2, stride=stride)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        moved = nn.functional.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        return self.norm(torch.cat([self.straight(x), self.shifted(moved)], 1))


class ShakeBlock(nn.Module):
    """A random mixture of two branches, plus a skip."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.one, self.other = Branch(channels, out, stride=stride), Branch(channels, out, stride=stride)
        same = stride == 1 and channels == out
        self.skip = nn.Identity() if same else ShiftedSkip(channels, out, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + shake(self.one(x), self.other(x), training=self.training)


class ShakeShake(nn.Module):
    """Shake-Shake depth 2 x width d on a code that is a picture: (B, k) -> (B, outputs).

    3x3 convolution to 16 channels with batch norm; three stages of (depth - 2) / 6 blocks with `width`, 2 `width` and 4 `width`
    channels, strides 1, 2, 2; ReLU; global average pool; linear. The momentum of batch norm is 0.1 as torch defines it, 0.9 as
    TensorFlow does.

    Raises:
        InputError: k is not H * W * C, or the depth is not 6n + 2.
    """

    def __init__(self, k: int, *, outputs: int, image_shape: tuple[int, int, int], depth: int = 26, width: int = 32) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise InputError(
                f"depth is {depth}; the depth of a Shake-Shake network is 6 times the blocks of a stage plus 2: 8, 14, 20, 26, ..."
            )
        self.unflatten = as_picture(k, image_shape=image_shape, network="shake")
        stages: list[nn.Module] = [nn.Conv2d(image_shape[2], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
        channels = 16
        for out, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for block in range((depth - 2) // 6):
                stages.append(ShakeBlock(channels, out, stride=1 if block else stride))
                channels = out
        self.stages = nn.Sequential(*stages, nn.ReLU())
        self.last = nn.Linear(channels, outputs)
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.stages(self.unflatten(z)).mean((2, 3)))

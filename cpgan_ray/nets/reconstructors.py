"""Neural reconstructors: codes (B, k) -> flat targets (B, p).

Pictures are in [-1, 1], flattened in the store's order (H, W, C); an `mlp` may aim at principal components instead. None ends in a
tanh: the range of the target is no business of the network's. Normalisation never mixes rows, so that a row's reconstruction is its
own. The original's decoders (paper_decoders.py) are there to be compared with, and may do both.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from cpgan_ray.config import NeuralConfig
from cpgan_ray.nets.paper_decoders import PaperDecoder


def mlp(config: NeuralConfig, *, k: int, target: int) -> nn.Module:
    """`depth` hidden layers of `width` units with layer norm, and a linear output."""
    layers: list[nn.Module] = []
    inputs = k
    for _ in range(config.depth):
        layers += [nn.Linear(inputs, config.width), nn.LayerNorm(config.width), nn.ReLU(), nn.Dropout(config.dropout)]
        inputs = config.width
    return nn.Sequential(*layers, nn.Linear(inputs, target))


class Decoder(nn.Module):
    """A linear map to a small grid of features, stages that each double its side, cropped to the picture, flattened (H, W, C)."""

    def __init__(self, config: NeuralConfig, *, k: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.height, self.width, channels = image_shape
        side, doublings = max(self.height, self.width), 0
        while side > 7:
            side, doublings = (side + 1) // 2, doublings + 1
        widths = [config.width * 2**i for i in reversed(range(max(doublings, 1)))]
        self.grid = (widths[0], side, side)
        self.stem = nn.Sequential(nn.Linear(k, widths[0] * side * side), nn.LayerNorm(widths[0] * side * side), nn.ReLU())
        stage = STAGES[config.architecture]
        self.stages = nn.Sequential(*(stage(a, b, config) for a, b in pairwise(widths)))
        self.last = (
            nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1) if doublings else nn.Conv2d(widths[-1], channels, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        pictures = self.last(self.stages(self.stem(z).unflatten(1, self.grid)))
        return pictures[:, :, : self.height, : self.width].permute(0, 2, 3, 1).flatten(1)


def normalise(channels: int) -> nn.Module:
    """Group normalisation in at most 8 groups."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def transposed_stage(inputs: int, outputs: int, config: NeuralConfig) -> nn.Module:
    """Transposed convolution with stride 2 (the paper's decoders)."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False), normalise(outputs), nn.ReLU())


def upsample_stage(inputs: int, outputs: int, config: NeuralConfig) -> nn.Module:
    """Bilinear up-sampling and a convolution."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        normalise(outputs),
        nn.LeakyReLU(0.2),
    )


class Residual(nn.Module):
    """conv - norm - ReLU - conv - norm beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            normalise(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            normalise(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


def residual_stage(inputs: int, outputs: int, config: NeuralConfig) -> nn.Module:
    """Up-sampling followed by `depth` residual blocks."""
    return nn.Sequential(upsample_stage(inputs, outputs, config), *(Residual(outputs) for _ in range(config.depth)))


STAGES: dict[str, Callable[[int, int, NeuralConfig], nn.Module]] = {
    "conv": transposed_stage,
    "upsample": upsample_stage,
    "resnet": residual_stage,
}


def build_reconstructor(config: NeuralConfig, *, k: int, image_shape: tuple[int, int, int], target: int) -> nn.Module:
    """The reconstructor that the configuration names: (B, k) -> (B, target); `target` differs from H*W*C for an `mlp` only.

    Raises: InputError where a code of k numbers is not what the original's decoder for such pictures takes.
    """
    if config.architecture == "paper":
        return PaperDecoder(k, image_shape=image_shape, bounded=config.bounded)
    if config.architecture == "mlp":
        return mlp(config, k=k, target=target)
    return Decoder(config, k=k, image_shape=image_shape)

"""Neural reconstructors: codes (B, k) -> flat targets (B, p).

Pictures are in [-1, 1], flattened in the store's order (H, W, C); an `mlp` may predict principal components instead. No network
ends in a tanh, so that the range of the output is not limited. Normalisation never mixes rows, so that the reconstruction of a row
depends only on that row. The decoders of the reference implementation (paper/decoders.py) are for comparison and may do both.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from cpgan_ray.common.registry import remember
from cpgan_ray.config import NeuralConfig
from cpgan_ray.models.linear import Linear
from cpgan_ray.models.paper.decoders import PaperDecoder
from cpgan_ray.models.paper.series import SeriesConv2d, SeriesConvTranspose2d


def mlp(config: NeuralConfig, *, k: int, target: int) -> nn.Module:
    """`depth` hidden layers of `width` units with layer norm, and a linear output."""
    layers: list[nn.Module] = []
    inputs = k
    for _ in range(config.depth):
        layers += [Linear(inputs, config.width), nn.LayerNorm(config.width), nn.ReLU(), nn.Dropout(config.dropout)]
        inputs = config.width
    return nn.Sequential(*layers, Linear(inputs, target))


class Decoder(nn.Module):
    """A linear map to a small grid of features, then stages that each double its side; the result is cropped to the picture and
    flattened (H, W, C).

    For a series (a picture of width 1), sides are doubled and kernels extend only along time.
    """

    def __init__(self, config: NeuralConfig, *, k: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.height, self.width, channels = image_shape
        side, doublings = max(self.height, self.width), 0
        while side > 7:
            side, doublings = (side + 1) // 2, doublings + 1
        widths = [config.width * 2**i for i in reversed(range(max(doublings, 1)))]
        series = self.width == 1
        self.grid = (widths[0], side, 1 if series else side)
        flat = math.prod(self.grid)
        self.stem = nn.Sequential(Linear(k, flat), nn.LayerNorm(flat), nn.ReLU())
        stage = STAGES[config.architecture]
        self.stages = nn.Sequential(*(stage(a, b, config, series=series) for a, b in pairwise(widths)))
        self.last = (
            transposed_conv(widths[-1], channels, series=series, bias=True) if doublings else nn.Conv2d(widths[-1], channels, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        pictures = self.last(self.stages(self.stem(z).unflatten(1, self.grid)))
        return pictures[:, :, : self.height, : self.width].permute(0, 2, 3, 1).flatten(1)


def normalise(channels: int) -> nn.Module:
    """Group normalisation in at most 8 groups."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def conv(channels: int, out: int, *, series: bool) -> nn.Conv2d:
    """3x3 convolution (3x1 for a series) that keeps the size."""
    if series:
        return SeriesConv2d(channels, out, (3, 1), padding=(1, 0), bias=False)
    return nn.Conv2d(channels, out, 3, padding=1, bias=False)


def transposed_conv(channels: int, out: int, *, series: bool, bias: bool = False) -> nn.ConvTranspose2d:
    """4x4 transposed convolution (4x1 for a series) that doubles the size."""
    if series:
        return SeriesConvTranspose2d(channels, out, (4, 1), stride=(2, 1), padding=(1, 0), bias=bias)
    return nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1, bias=bias)


def transposed_stage(inputs: int, outputs: int, config: NeuralConfig, *, series: bool) -> nn.Module:
    """Transposed convolution with stride 2 (the paper's decoders)."""
    return nn.Sequential(transposed_conv(inputs, outputs, series=series), normalise(outputs), nn.ReLU())


def upsample_stage(inputs: int, outputs: int, config: NeuralConfig, *, series: bool) -> nn.Module:
    """Bilinear up-sampling (linear for a series) and a convolution."""
    return nn.Sequential(
        nn.Upsample(scale_factor=(2, 1) if series else 2, mode="bilinear"),
        conv(inputs, outputs, series=series),
        normalise(outputs),
        nn.LeakyReLU(0.2),
    )


class Residual(nn.Module):
    """conv - norm - ReLU - conv - norm, plus the identity."""

    def __init__(self, channels: int, *, series: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv(channels, channels, series=series),
            normalise(channels),
            nn.ReLU(),
            conv(channels, channels, series=series),
            normalise(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


def residual_stage(inputs: int, outputs: int, config: NeuralConfig, *, series: bool) -> nn.Module:
    """Up-sampling followed by `depth` residual blocks."""
    stage = upsample_stage(inputs, outputs, config, series=series)
    return nn.Sequential(stage, *(Residual(outputs, series=series) for _ in range(config.depth)))


STAGES: dict[str, Callable[..., nn.Module]] = {
    "conv": transposed_stage,
    "upsample": upsample_stage,
    "resnet": residual_stage,
}
remember(__name__, "STAGES")


def build_reconstructor(config: NeuralConfig, *, k: int, image_shape: tuple[int, int, int], target: int) -> nn.Module:
    """The reconstructor that the configuration names: (B, k) -> (B, target); `target` differs from H*W*C only for an `mlp`.

    Raises:
        InputError: the reference decoder for these pictures does not accept a code of length k.
    """
    if config.architecture == "paper":
        return PaperDecoder(k, image_shape=image_shape, tanh_output=config.tanh_output, name=config.paper_decoder)
    if config.architecture == "mlp":
        return mlp(config, k=k, target=target)
    return Decoder(config, k=k, image_shape=image_shape)

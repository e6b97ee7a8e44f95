"""Privatizers, the networks that the client runs: float32 pictures (B, C, H, W) in [-1, 1], or signals -> codes z (B, k).

z is normalised (batch statistics, no affine part) unless configured otherwise, so that a privatizer gains nothing by rescaling it.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.codec import level_range
from cpgan_ray.common.plugins import Parts
from cpgan_ray.common.registry import remember
from cpgan_ray.config import PrivatizerConfig
from cpgan_ray.errors import InputError
from cpgan_ray.models.light import patch_stages, separable_stages
from cpgan_ray.models.own import build_network
from cpgan_ray.models.paper.celeba import SubNets, halves_map, leaky_stages
from cpgan_ray.models.paper.lenet import lenet_stages
from cpgan_ray.models.paper.linear import linear_stages
from cpgan_ray.models.paper.picture import generator_conv, picture_conv, residual_g
from cpgan_ray.models.pointwise import StridedPointwise
from cpgan_ray.models.pretrained import load_weights, timm_family


def conv_stages(channels: int, *, width: int, depth: int) -> nn.Sequential:
    """`depth` strided 3x3 convolutions, each with batch norm and leaky ReLU 0.2, like the reference network for one attribute of
    CelebA."""
    stages: list[nn.Module] = []
    for stage in range(depth):
        out = width * 2**stage
        stages += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
        channels = out
    return nn.Sequential(*stages)


class ResidualBlock(nn.Module):
    """Pre-activation residual block with stride: batch norm - ReLU - conv, twice, plus a strided 1x1 convolution of the input."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
        )
        same = stride == 1 and channels == out
        self.skip = nn.Identity() if same else StridedPointwise(channels, out, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.skip(x)


def residual_stages(channels: int, *, width: int, depth: int) -> nn.Sequential:
    """A strided stem and `depth - 1` strided residual blocks."""
    stages: list[nn.Module] = [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)]
    for stage in range(1, depth):
        stages.append(ResidualBlock(width * 2 ** (stage - 1), width * 2**stage, stride=2))
    last = width * 2 ** (depth - 1)
    return nn.Sequential(*stages, nn.BatchNorm2d(last), nn.ReLU())


class Whitening(nn.Module):
    """Maps samples (B, C, H, W) to their principal components, each with unit variance (B, p), so that plain gradient steps do not
    favour directions of large variance. It is the identity until `fit` is called."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        size = math.prod(image_shape)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("matrix", torch.eye(size))

    def fit(self, mean: np.ndarray, components: np.ndarray, coordinates: np.ndarray) -> None:
        """Set the map from mean (D,), components (D, D) and the training samples' coordinates (N, D), all in the order H, W, C."""
        self.mean.copy_(torch.from_numpy(np.array(mean)))
        self.matrix.copy_(torch.from_numpy(components.T / coordinates.std(axis=0)))

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1).flatten(1) - self.mean) @ self.matrix


def strided_family(
    stages: Callable[[tuple[int, int, int], int, int], nn.Module],
) -> Callable[[PrivatizerConfig, tuple[int, int, int]], nn.Module]:
    """A family whose stages halve the picture `depth` times. stages: of image shape, width and depth."""

    def build(config: PrivatizerConfig, image_shape: tuple[int, int, int]) -> nn.Module:
        height, width = image_shape[:2]
        side = 2**config.depth
        if min(height, width) < side:
            raise InputError(
                f"privatizer.depth is {config.depth}, which needs pictures of {side} pixels; the store has {height}x{width}"
            )
        return stages(image_shape, config.width, config.depth)

    return build


Family = Callable[..., nn.Module]
"""A function from the configuration, the image shape (H, W, C) and the options to the stages: (B, C, H, W) -> (B, ...)."""
_built_in: dict[str, Family] = {
    "conv": strided_family(lambda shape, width, depth: conv_stages(shape[2], width=width, depth=depth)),
    "residual": strided_family(lambda shape, width, depth: residual_stages(shape[2], width=width, depth=depth)),
    "separable": strided_family(lambda shape, width, depth: separable_stages(shape, width=width, depth=depth)),
    "patch": lambda config, image_shape: patch_stages(image_shape, width=config.width, depth=config.depth),
    "lenet": lambda config, image_shape: lenet_stages(image_shape),
    "generator": lambda config, image_shape: generator_conv(image_shape[2]),
    "picture": lambda config, image_shape: residual_g(image_shape[2], momentum=config.norm_momentum),
    "picture_conv": lambda config, image_shape: picture_conv(image_shape[2]),
    "celeba_single": lambda config, image_shape: leaky_stages(image_shape[2]),
    "celeba_multi": lambda config, image_shape: SubNets(image_shape[2]),
    "linear": lambda config, image_shape: linear_stages(image_shape, widths=()),
    "whitened": lambda config, image_shape: Whitening(image_shape),
}
FAMILIES: Parts[Family] = Parts(
    _built_in, kind="privatizer", group="cpgan_ray.privatizers", field="privatizer.family", libraries={"timm": timm_family}
)
CODE_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "normalised": lambda k: nn.BatchNorm1d(k, affine=False),
    "relu": lambda k: nn.ReLU(),
    "raw": lambda k: nn.Identity(),
}
remember(__name__, "FAMILIES", "CODE_ACTIVATIONS")


def build_stages(config: PrivatizerConfig, image_shape: tuple[int, int, int]) -> nn.Module:
    """The stages of the configuration's family, with its pretrained weights if there are any.

    Raises: InputError if the family does not accept the options or pictures, or the weights do not belong to it.
    """
    stages = build_network(FAMILIES, config.family, config, image_shape, options=config.options, role="privatizer")
    if config.frozen_stages and not config.family.startswith("timm:"):
        raise InputError(
            f"privatizer.frozen_stages is {config.frozen_stages}, but only networks of timm have it and the family is "
            f"{config.family!r}: set it to 0"
        )
    if config.weights is not None:
        load_weights(stages, config.weights)
    return stages


class Gain(nn.Module):
    """A learned positive factor for each number of a code (B, k), 1 at first.

    Finite codes have it behind the normalisation: a number that is not worth its bits shrinks until it is always the middle level,
    which the normalisation alone forbids, and others spread over more levels. Nothing hides in a small factor, because the code is
    rounded afterwards. The parameter is a logarithm, and counts `SPEED` times: Adam moves it by up to the learning rate in a round,
    so that in 100 rounds at 0.001 a factor can become exp(SPEED / 10) times as large or small.
    """

    SPEED = 20.0

    def __init__(self, k: int) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.zeros(k))

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.exp(self.SPEED * self.logarithm)


class Privatizer(nn.Module):
    """Stages, a linear map to k numbers, and their activation, normalisation, noise and rounding.

    With `config.noise` the released code is round(clip(y) + noise). The caller draws the noise; without it the network returns
    clip(y), neither noisy nor rounded, which is not to be released.
    """

    def __init__(self, config: PrivatizerConfig, *, k: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        height, width, channels = image_shape
        self.symmetric, self.step, self.levels = config.symmetric, config.quantization_step, config.levels
        self.clip = config.noise_clip if config.noise else None
        self.stages = build_stages(config, image_shape)
        try:
            with torch.no_grad():
                flat = self.stages.eval()(torch.zeros(1, channels, height, width)).numel()
        except RuntimeError as e:
            size = f"{height}x{width}x{channels}"
            raise InputError(f"privatizer.family {config.family!r} does not accept samples of {size}: choose another one") from e
        self.stages.train()
        if not config.bottleneck and k != flat:
            raise InputError(f"k is {k}, but without a bottleneck the code is the {flat} features: set k to {flat}")
        to_code = halves_map if config.family == "celeba_multi" else nn.Linear
        self.code = to_code(flat, k) if config.bottleneck else nn.Identity()
        self.normalise = CODE_ACTIVATIONS[config.code_activation](k)
        noisy_or_rounded = self.step or config.noise  # both are in standard deviations of the code
        if noisy_or_rounded and config.code_activation != "normalised":
            self.normalise = nn.Sequential(self.normalise, CODE_ACTIVATIONS["normalised"](k))
        if self.levels:
            self.normalise = nn.Sequential(self.normalise, Gain(k))

    def encode(self, x: Tensor) -> Tensor:
        return self.code(self.stages(x).flatten(1)).float()  # codes are float32 also in mixed precision

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pictures (B, C, H, W) and their noise (B, k), if the code has noise -> codes (B, k)."""
        if self.symmetric:
            both_codes = self.encode(torch.cat([x, x.flip(3)]))
            plain, mirrored = both_codes.view(2, x.shape[0], -1).unbind(
                0
            )  # `chunk` would fix the batch size of an exported program
            z = self.normalise((plain + mirrored) / 2)
        else:
            z = self.normalise(self.encode(x))
        if self.clip is not None:
            z = z.clamp(-self.clip, self.clip)
            if noise is None:
                return z
            z = z + noise
        return round_to(z, self.step, self.levels) if self.step else z


def round_to(z: Tensor, step: float, levels: int = 0) -> Tensor:
    """z rounded to multiples of `step`; the gradient ignores the rounding (straight-through).

    With a number of levels L, the level n = round(z / step), or round(z / step - 1 / 2) if L is even, is clipped to
    `level_range(L)`, and the code is n step: finite scalar quantisation (F. Mentzer et al., ICLR 2024) with a clipped identity
    instead of tanh before the rounding. The gradient is 1 within the cells of the levels and 0 outside.
    """
    if not levels:
        return z + (torch.round(z / step) * step - z).detach()
    lowest, highest = level_range(levels)
    numbers = z / step - (0.0 if levels % 2 else 0.5)
    bounded = numbers.clamp(lowest - 0.5, highest + 0.5)
    whole = torch.round(numbers).clamp(lowest, highest)
    return (whole + (bounded - bounded.detach())) * step

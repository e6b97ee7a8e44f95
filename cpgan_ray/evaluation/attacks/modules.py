"""Fitted attacks as torch modules that torch.export can export: codes z (B, k) -> pictures (B, C, H, W).

An attack computes in blocks, and partly in float64. A module computes a batch at once, in float32. Attacks of these families have
one: ridge, kernel (exact, and with random features), mlp and the decoders, and averages and stacks of them.
"""

import copy
import math

import torch
from torch import Tensor, nn

from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, Mean, Reconstructor
from cpgan_ray.evaluation.attacks.closed_form import Affine
from cpgan_ray.evaluation.attacks.kernel_system import KernelMap
from cpgan_ray.evaluation.attacks.neural import ResidualOnRidge
from cpgan_ray.evaluation.attacks.stack import Stack


class NoModuleError(ValueError):
    """An attack of another family: the message is the name of its class."""


class Prepare(nn.Module):
    """`CodeMap` in float32."""

    origin: Tensor
    matrix: Tensor

    def __init__(self, code_map: CodeMap) -> None:
        super().__init__()
        self.register_buffer("origin", code_map.origin.float())
        self.register_buffer("matrix", code_map.matrix.float())

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.origin) @ self.matrix


class AffineModule(nn.Module):
    """`Affine`: W' phi(P(z)) + b, with P the map of the codes, and phi the identity or random Fourier features."""

    weight: Tensor
    bias: Tensor
    omega: Tensor
    phase: Tensor

    def __init__(self, fit: Affine) -> None:
        super().__init__()
        self.prepare, self.has_features = Prepare(fit.prepare), fit.features is not None
        self.register_buffer("weight", fit.weight)
        self.register_buffer("bias", fit.bias)
        if fit.features is not None:
            self.register_buffer("omega", fit.features.omega[: fit.prepare.matrix.shape[1]] / fit.width)
            self.register_buffer("phase", fit.features.phase)

    def forward(self, z: Tensor) -> Tensor:
        inputs = self.prepare(z)
        if self.has_features:
            inputs = math.sqrt(2 / len(self.phase)) * torch.cos(inputs @ self.omega + self.phase)
        return inputs @ self.weight + self.bias


class KernelModule(nn.Module):
    """`KernelMap`: mean(x) + k(P(z), codes) alpha."""

    codes: Tensor
    norms: Tensor
    alpha: Tensor
    mean: Tensor

    def __init__(self, fit: KernelMap) -> None:
        super().__init__()
        self.prepare, self.kernel, self.width = Prepare(fit.prepare), fit.kernel, fit.width
        self.register_buffer("codes", fit.codes.T.contiguous())
        self.register_buffer("norms", fit.codes.square().sum(1))
        self.register_buffer("alpha", fit.alpha)
        self.register_buffer("mean", fit.mean)

    def forward(self, z: Tensor) -> Tensor:
        prepared = self.prepare(z)
        squared = (prepared.square().sum(1, keepdim=True) + self.norms - 2 * (prepared @ self.codes)).clamp(min=0)
        exponent = squared / (-2 * self.width**2) if self.kernel == "rbf" else squared.sqrt() / -self.width
        return exponent.exp() @ self.alpha + self.mean


class ResidualModule(nn.Module):
    """`ResidualOnRidge`: the ridge reconstruction plus a network's output."""

    def __init__(self, fit: ResidualOnRidge) -> None:
        super().__init__()
        self.base, self.prepare, self.scale = AffineModule(fit.base), Prepare(fit.prepare), fit.scale
        self.network = copy.deepcopy(fit.network)

    def forward(self, z: Tensor) -> Tensor:
        return self.base(z) + self.network(self.prepare(z)) * self.scale


class MeanModule(nn.Module):
    """`Mean`: the average of several attacks."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([part(z) for part in self.parts]).mean(0)


class Pixels(nn.Module):
    """An attack's reconstruction in pixels relative to the mean picture, clipped like `pixels_of`."""

    components: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, inner: nn.Module, data: AttackData, *, space: str) -> None:
        super().__init__()
        self.inner, self.in_components = inner, space == "components"
        if self.in_components:
            self.register_buffer("components", data.components)
        assert data.bounds is not None
        self.register_buffer("low", data.bounds[0])
        self.register_buffer("high", data.bounds[1])

    def forward(self, z: Tensor) -> Tensor:
        pixels = self.inner(z)
        if self.in_components:
            pixels = pixels @ self.components
        return torch.minimum(torch.maximum(pixels, self.low), self.high)


class StackModule(nn.Module):
    """`Stack`: the weighted sum of clipped reconstructions."""

    def __init__(self, parts: list[nn.Module], weights: list[float]) -> None:
        super().__init__()
        self.parts, self.weights = nn.ModuleList(parts), weights

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([weight * part(z) for part, weight in zip(self.parts, self.weights, strict=True)]).sum(0)


class Eve(nn.Module):
    """z (B, k) -> pictures (B, C, H, W) in [0, 255]. Pixels in [-1, 1] become 127.5 (x + 1)."""

    def __init__(self, pixels: Pixels, *, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.pixels, self.shape = pixels, image_shape

    def forward(self, z: Tensor) -> Tensor:
        grey = 127.5 * (self.pixels(z) - self.pixels.low)  # low is -1 minus the mean picture
        return grey.clamp(0, 255).unflatten(1, self.shape).permute(0, 3, 1, 2).contiguous()


def eve_of(fitted: Fitted, data: AttackData) -> Eve:
    """A fitted attack as a module on the CPU, without gradients.

    Raises: NoModuleError if it is of a family that has no module, or reconstructs no pictures.
    """
    if data.bounds is None or data.image_shape is None or not data.pictures:
        raise NoModuleError("an attack on data that are no pictures")
    pixels = Pixels(module_of(fitted.reconstruct, data), data, space=fitted.space)
    return Eve(pixels, image_shape=data.image_shape).cpu().eval().requires_grad_(False)


def module_of(reconstruct: Reconstructor, data: AttackData) -> nn.Module:
    """Raises: NoModuleError if there is none."""
    match reconstruct:
        case Affine():
            return AffineModule(reconstruct)
        case KernelMap():
            return KernelModule(reconstruct)
        case ResidualOnRidge():
            return ResidualModule(reconstruct)
        case Mean():
            return MeanModule([module_of(part, data) for part in reconstruct.parts])
        case Stack():
            members = reconstruct.members
            parts: list[nn.Module] = [Pixels(module_of(m.reconstruct, data), data, space=m.space) for m in members]
            return StackModule(parts, [m.weight for m in members])
        case _:
            raise NoModuleError(type(reconstruct).__name__)

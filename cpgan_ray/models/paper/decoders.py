"""Neural reconstructors of the reference implementation: codes (B, k) -> flat targets (B, H * W * C), channel last.

Each decoder is a function of k and the shape of the picture that returns layers (B, k) -> (B, C, at least H, at least W). To add
one, write the function and add an entry to PAPER_DECODERS.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from cpgan_ray.common.registry import remember
from cpgan_ray.errors import InputError
from cpgan_ray.models.paper.picture import as_picture
from cpgan_ray.models.paper.same_padding import TransposedSame, initialise

Shape = tuple[int, int, int]


class FoldLast(nn.Module):
    """(B, steps * C) -> (B, C, steps, 1); the channel is last in the flat code."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (self.steps, 1, -1)).permute(0, 3, 1, 2)


def transposed_layers(widths: list[int], *, activation: Callable[[], nn.Module] = nn.ReLU, stride: int = 2) -> list[nn.Module]:
    """Transposed 3x3 convolutions (SAME) between the given widths, with activations between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [TransposedSame(a, b, 3, stride=(stride, stride)), activation()]
    return layers[:-1]


def halvings(image_shape: Shape) -> tuple[int, int]:
    """Side of the initial grid, at most 7, and the number of doublings to cover the picture: 28 -> (7, 2), 64 -> (4, 4)."""
    side, doublings = max(image_shape[:2]), 0
    while side > 7:
        side, doublings = -(-side // 2), doublings + 1
    return side, max(doublings, 1)


def plain(
    k: int,
    image_shape: Shape,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """Linear map and ReLU to a small grid; its side doubles up to the picture while its width halves down to 32 (MNIST,
    GENKI-4K)."""
    side, doublings = halvings(image_shape)
    widths = [32 << i for i in reversed(range(doublings))]
    flat = widths[0] * side * side
    stem = [nn.Linear(k, flat), activation(), *([norm(flat)] if norm else []), nn.Unflatten(1, (widths[0], side, side))]
    return initialise(nn.Sequential(*stem, *transposed_layers([*widths, image_shape[2]], activation=activation)))


def leaky(k: int, image_shape: Shape) -> nn.Sequential:
    """Like `plain`, with leaky ReLU and batch norm of the grid (CelebA-single: 7x7x256 to 112x112)."""
    return plain(k, image_shape, activation=lambda: nn.LeakyReLU(0.2), norm=nn.BatchNorm1d)


def cifar(k: int, image_shape: Shape) -> nn.Sequential:
    """Linear map to 4x4x64, ReLU and batch norm; widths 128, 64; weights N(0, 0.02) (CIFAR-10, SVHN with several adversaries)."""
    stem = [nn.Linear(k, 1024), nn.ReLU(), nn.BatchNorm1d(1024), nn.Unflatten(1, (64, 4, 4))]
    return initialise(nn.Sequential(*stem, *transposed_layers([64, 128, 64, image_shape[2]])), normal=0.02)


def picture(k: int, image_shape: Shape) -> nn.Sequential:
    """For a code that is itself a picture: convolutions at its size, widths 128, 64, 32 (SVHN with one adversary)."""
    stem = as_picture(k, image_shape=image_shape, network="picture")
    return initialise(nn.Sequential(stem, *transposed_layers([image_shape[2], 128, 64, 32, image_shape[2]], stride=1)))


def series(k: int, image_shape: Shape) -> nn.Sequential:
    """The code as 4 steps of k / 4 channels, stretched only along time, without a linear map (HAR: 4 -> 16 -> 32 -> 64 -> 128)."""
    height, width, channels = image_shape
    if width != 1 or k % 4:
        raise InputError(
            f"k is {k} and the input {height}x{width}x{channels}; the series network folds the code of a series (width 1) into "
            "4 steps without a linear map: set k to a multiple of 4, or choose another network"
        )
    layers: list[nn.Module] = [FoldLast(4)]
    strides = (max(1, -(-height // 32)), 2, 2, 2)
    for (a, b), stride in zip(pairwise((k // 4, 64, 32, 16, channels)), strides, strict=True):
        layers += [TransposedSame(a, b, 3, stride=(stride, 1)), nn.ReLU()]
    return initialise(nn.Sequential(*layers[:-1]))


def odd(k: int, image_shape: Shape) -> nn.Sequential:
    """5x5x128 after batch norm and ReLU, one doubling to 10, then VALID transposed convolutions to 21, 43, 87, 175
    (CelebA-multi)."""
    layers = [nn.Linear(k, 3200), nn.BatchNorm1d(3200), nn.ReLU(), nn.Unflatten(1, (128, 5, 5))]
    layers += [TransposedSame(128, 128, 3, stride=(2, 2)), nn.ReLU()]
    for a, b in pairwise((128, 128, 64, 32, image_shape[2])):
        layers += [nn.ConvTranspose2d(a, b, 3, stride=2), nn.ReLU()]
    return initialise(nn.Sequential(*layers[:-1]))


PAPER_DECODERS: dict[str, Callable[[int, Shape], nn.Sequential]] = {
    "plain": plain,
    "leaky": leaky,
    "cifar": cifar,
    "picture": picture,
    "series": series,
    "odd": odd,
}
remember(__name__, "PAPER_DECODERS")
BY_SIZE = {(32, 32): "cifar", (112, 112): "leaky", (175, 175): "odd"}
"""Picture sizes whose decoder is not `plain`; pictures of width 1 use `series`."""
MAX_SIDES = {"cifar": 32, "odd": 175}
"""Largest picture side of the decoders with a fixed size."""


class PaperDecoder(nn.Module):
    """The reference decoder for pictures of this shape, or the named one: (B, k) -> (B, H * W * C), channel last.

    tanh_output: end in a tanh, like the reference decoders for pictures; the output is then limited to [-1, 1].

    Raises:
        InputError: the decoder does not accept this k or is too small for the pictures.
    """

    def __init__(self, k: int, *, image_shape: Shape, tanh_output: bool = False, name: str = "auto") -> None:
        super().__init__()
        self.height, self.width, _ = image_shape
        self.tanh_output = tanh_output
        by_shape = "series" if self.width == 1 else BY_SIZE.get((self.height, self.width), "plain")
        name = by_shape if name == "auto" else name
        if (max_side := MAX_SIDES.get(name, max(image_shape))) < max(image_shape[:2]):
            raise InputError(
                f"pictures are {self.height}x{self.width}; the {name} decoder covers at most {max_side} pixels: use the plain one"
            )
        self.layers = PAPER_DECODERS[name](k, image_shape)

    def forward(self, z: Tensor) -> Tensor:
        flat = self.layers(z)[:, :, : self.height, : self.width].permute(0, 2, 3, 1).flatten(1)
        return torch.tanh(flat) if self.tanh_output else flat

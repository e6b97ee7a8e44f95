"""Convolutional decoders for attacks, which may predict at half the side of a picture; their output is enlarged to the picture.

What a code gives away beyond the ridge reconstruction is smooth: at half the side a decoder reaches the same R2 in less
time. The error is still that of the whole picture, because the enlarged output is compared with it.
"""

import math

import torch
from torch import Tensor, nn

from cpgan_ray.config import NeuralConfig
from cpgan_ray.models.decoders import Decoder, mlp
from cpgan_ray.models.linear import Linear

TRUNK = 512
"""Width of the perceptron in front of a decoder."""
MIN_HALVED_SIDE = 48
"""Pictures with a shorter side than this, and series, are predicted at their own side: these decoders are fast as they are."""

Shape = tuple[int, int, int]
"""(H, W, C)"""


def predicted_shape(image_shape: Shape) -> Shape:
    """The shape at which pictures are predicted: half of both sides, or the pictures' own shape if they are small."""
    return image_shape if min(image_shape[:2]) < MIN_HALVED_SIDE else divided(image_shape, 2)


def divided(shape: Shape, divisor: int) -> Shape:
    """The shape with sides divided by a number and rounded up."""
    height, width, channels = shape
    return -(-height // divisor), -(-width // divisor), channels


class Enlarge(nn.Module):
    """Bilinear enlargement of flat pictures (B, h * w * C) to (B, H * W * C), as two matrix products.

    It is linear in the picture and along each side, x -> R x Q', with the weights of `torch.nn.functional.interpolate` in R (H, h)
    and Q. The gradient of the products takes a tenth of the time of the interpolation's.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, small: Shape, large: Shape) -> None:
        super().__init__()
        self.small = small
        rows, columns = (weights(small[side], large[side]) for side in (0, 1))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", torch.kron(columns, torch.eye(small[2])).T.contiguous(), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        height, width, channels = self.small
        columns = pictures.reshape(-1, width * channels) @ self.columns  # (B * h, W * C)
        return (self.rows @ columns.unflatten(0, (-1, height))).flatten(1)


def weights(small: int, large: int) -> Tensor:
    """The weights (large, small) of linear interpolation from `small` to `large` evenly spaced values."""
    return nn.functional.interpolate(torch.eye(small)[None], size=large, mode="linear")[0].T.contiguous()


class CoarseToFineDecoder(nn.Module):
    """A perceptron predicts a picture at a quarter of the side, which is enlarged; a convolutional decoder predicts the rest, at
    the side of `fine`, which is enlarged, too, if it is not the side of the picture.

    Without the perceptron, a decoder takes ten times as many steps to improve on the ridge reconstruction that it starts from.
    """

    def __init__(self, config: NeuralConfig, *, k: int, image_shape: Shape, fine: Shape) -> None:
        super().__init__()
        small = divided(image_shape, 4)
        self.trunk = mlp(NeuralConfig(architecture="mlp", width=TRUNK, depth=1), k=k, target=TRUNK)
        self.coarse = Linear(TRUNK, math.prod(small))
        self.enlarge_coarse = Enlarge(small, fine)
        self.fine = Decoder(config, k=TRUNK, image_shape=fine)
        self.enlarge = nn.Identity() if fine == image_shape else Enlarge(fine, image_shape)

    def forward(self, z: Tensor) -> Tensor:
        """Pictures (B, H * W * C) from prepared codes (B, k)."""
        hidden = torch.relu(nn.functional.layer_norm(self.trunk(z), (TRUNK,)))
        return self.enlarge(self.fine(hidden) + self.enlarge_coarse(self.coarse(hidden)))

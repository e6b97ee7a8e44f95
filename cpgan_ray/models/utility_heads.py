"""Utility heads: the classifiers that the cloud runs on z."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cpgan_ray.common.plugins import Parts
from cpgan_ray.common.registry import remember
from cpgan_ray.config import UtilityConfig
from cpgan_ray.errors import InputError
from cpgan_ray.models.heavy_heads import HEAD_WIDTH, EnsembleHead, ResidualHead, TransformerHead
from cpgan_ray.models.own import build_network
from cpgan_ray.models.paper.celeba import GroupedHead, leaky_head
from cpgan_ray.models.paper.lenet import lenet_head
from cpgan_ray.models.paper.shake_shake import ShakeShake
from cpgan_ray.models.paper.wide_resnet import WideResNet

Shape = tuple[int, int, int]


class AnswersHead(nn.Module):
    """Answers (B, L) of family `answers` -> logits (B, L): a scale and a shift for each label, so that Bob's probabilities are
    right on average."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((k,), 4.0))
        self.shift = nn.Parameter(torch.full((k,), 2.0))  # the levels -1 and 0 are at first the logits -2 and 2

    def forward(self, z: Tensor) -> Tensor:
        return z * self.scale + self.shift


def build_head(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """Classifier on z: (B, k) -> (B, num_logits) logits.

    Raises:
        InputError: the family does not accept this code length, image shape or number of logits.
    """
    return build_network(
        HEADS,
        config.family,
        config,
        options=config.options,
        k=k,
        num_logits=num_logits,
        image_shape=image_shape,
        role="utility head",
    )


def mlp_head(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """Two hidden layers with batch norm and dropout; a linear map if `config.hidden` is 0."""
    if config.hidden == 0:
        return nn.Linear(k, num_logits)
    layers: list[nn.Module] = []
    for width_in in (k, config.hidden):
        layers += [
            nn.Linear(width_in, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(config.dropout),
        ]
    return nn.Sequential(*layers, nn.Linear(config.hidden, num_logits))


def residual(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """A residual perceptron of `config.depth` blocks (3 if 0), `config.hidden` units wide."""
    if config.hidden == 0:
        raise InputError("utility.hidden is 0, but the residual perceptron has hidden units: set it to 256 for example")
    return ResidualHead(k, num_logits=num_logits, width=config.hidden, depth=config.depth or 3, dropout=config.dropout)


def transformer(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """A transformer of `config.depth` layers (2 if 0) over the coordinates of the code, `config.width` wide (64 if 0)."""
    width = config.width or 64
    if width % HEAD_WIDTH:
        raise InputError(f"utility.width is {width}, but the transformer's must be a multiple of {HEAD_WIDTH}: set it to 64")
    return TransformerHead(k, num_logits=num_logits, width=width, depth=config.depth or 2, dropout=config.dropout)


def ensemble(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """`config.members` perceptrons, whose logits are averaged."""
    members = [mlp_head(config, k=k, num_logits=num_logits, image_shape=image_shape) for _ in range(config.members)]
    return EnsembleHead(members)


def answers(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """What Bob makes of answers."""
    if k != num_logits:
        raise InputError(
            f"utility.family 'answers' reads one number for each of the {num_logits} logits, but k is {k}: set --k {num_logits}"
        )
    return AnswersHead(k)


def lenet(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """The fully connected head of LeNet."""
    return lenet_head(k, outputs=num_logits)


def shake(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """Shake-Shake, for codes that are pictures."""
    size = {"depth": config.depth or 26, "width": config.width or 32}
    return ShakeShake(k, outputs=num_logits, image_shape=image_shape, **size)


def wide(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """A wide residual network, for codes that are pictures."""
    size = {"depth": config.depth or 16, "widen": config.width or 8}
    return WideResNet(k, outputs=num_logits, image_shape=image_shape, dropout=config.dropout, **size)


def celeba_single(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """The head of the reference implementation for one attribute of CelebA."""
    return leaky_head(k, outputs=num_logits, dropout=config.dropout)


def celeba_multi(config: UtilityConfig, *, k: int, num_logits: int, image_shape: Shape) -> nn.Module:
    """The head of the reference implementation for all attributes of CelebA."""
    head = GroupedHead(k, dropout=config.dropout)
    if num_logits != head.outputs:
        raise InputError(
            f"utility.family 'celeba_multi' is for {head.outputs} logits, one for each attribute; the task has "
            f"{num_logits}: use 'mlp'"
        )
    return head


Head = Callable[..., nn.Module]
"""A function from the configuration, k, num_logits, image_shape and the options to a classifier: (B, k) -> (B, num_logits)."""
HEADS: Parts[Head] = Parts(
    {
        "mlp": mlp_head,
        "residual": residual,
        "transformer": transformer,
        "ensemble": ensemble,
        "answers": answers,
        "lenet": lenet,
        "shake": shake,
        "wide": wide,
        "celeba_single": celeba_single,
        "celeba_multi": celeba_multi,
    },
    kind="utility head",
    group="cpgan_ray.heads",
    field="utility.family",
)
remember(__name__, "HEADS")

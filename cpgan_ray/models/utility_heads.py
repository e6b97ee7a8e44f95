"""Utility heads: the classifiers that the cloud runs on z."""

from torch import nn

from cpgan_ray.config import UtilityConfig
from cpgan_ray.errors import InputError
from cpgan_ray.models.paper.celeba import GroupedHead, leaky_head
from cpgan_ray.models.paper.lenet import lenet_head
from cpgan_ray.models.paper.shake_shake import ShakeShake
from cpgan_ray.models.paper.wide_resnet import WideResNet


def build_head(config: UtilityConfig, *, k: int, num_logits: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Classifier on z: (B, k) -> (B, num_logits) logits.

    Raises:
        InputError: the family does not accept this code length, image shape or number of logits.
    """
    match config.family:
        case "lenet":
            return lenet_head(k, outputs=num_logits)
        case "shake":
            size = {"depth": config.depth or 26, "width": config.width or 32}
            return ShakeShake(k, outputs=num_logits, image_shape=image_shape, **size)
        case "wide":
            size = {"depth": config.depth or 16, "widen": config.width or 8}
            return WideResNet(k, outputs=num_logits, image_shape=image_shape, dropout=config.dropout, **size)
        case "celeba_single":
            return leaky_head(k, outputs=num_logits, dropout=config.dropout)
        case "celeba_multi":
            head = GroupedHead(k, dropout=config.dropout)
            if num_logits != head.outputs:
                raise InputError(
                    f"utility.family 'celeba_multi' is for {head.outputs} logits, one for each attribute; the task has "
                    f"{num_logits}: use 'mlp'"
                )
            return head
        case "mlp":
            return mlp_head(config, k=k, num_logits=num_logits)


def mlp_head(config: UtilityConfig, *, k: int, num_logits: int) -> nn.Module:
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

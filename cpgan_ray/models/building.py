"""The privatizer that a configuration names."""

from torch import nn

from cpgan_ray.config import PrivatizerConfig
from cpgan_ray.config.players import ANSWERS
from cpgan_ray.models.answers import AnswersPrivatizer
from cpgan_ray.models.privatizers import Privatizer


def build_privatizer(config: PrivatizerConfig, *, k: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The privatizer that the configuration names, for pictures of `image_shape` (H, W, C).

    Raises:
        InputError: the pictures are too small for the depth or the family, or the code length is impossible.
    """
    kind = AnswersPrivatizer if config.family == ANSWERS else Privatizer
    return kind(config, k=k, image_shape=image_shape)

"""What a network costs its user: parameters, and multiply-adds per input."""

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cpgan_ray.config import Config
from cpgan_ray.models.privatizers import build_privatizer
from cpgan_ray.models.utility_heads import build_head


class Cost(NamedTuple):
    parameters: int
    multiply_adds: int
    """Of one input, in convolutions and linear maps; additions of biases, normalisation and activations are not counted."""


def count(module: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Cost of a module in use, for one input of `input_shape`, without the batch: (C, H, W) or (k,). Nothing is computed."""
    shadow = copy.deepcopy(module).eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *input_shape, device="meta"))
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2)


def costs(config: Config, *, image_shape: tuple[int, int, int], outputs: int) -> dict[str, dict[str, int]]:
    """What the client pays for the privatizer, and the cloud for the utility head, for pictures (H, W, C)."""
    height, width, channels = image_shape
    with torch.random.fork_rng(devices=()):
        privatizer = build_privatizer(config.privatizer, k=config.k, image_shape=image_shape)
        head = build_head(config.utility, k=config.k, num_labels=outputs, image_shape=image_shape)
    found = {"privatizer": count(privatizer, (channels, height, width)), "utility_head": count(head, (config.k,))}
    return {name: cost._asdict() for name, cost in found.items()}

"""What a network costs its user: parameters, and multiply-adds per input (SPEC 7, C9)."""

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


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

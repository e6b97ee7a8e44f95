"""The cost of using a network: parameters, and multiply-adds per input."""

import copy
import time
from statistics import median
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cpgan_ray.common.plugins.names import label
from cpgan_ray.config import Config
from cpgan_ray.errors import InputError
from cpgan_ray.models.building import build_privatizer
from cpgan_ray.models.own import has_own_code
from cpgan_ray.models.utility_heads import build_head

WARM_UPS, TIMED_CALLS = 2, 9


class Cost(NamedTuple):
    parameters: int
    multiply_adds: int
    """For one input, in convolutions and linear maps; bias additions, normalisation and activations are not counted."""


def count(module: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Cost of a module in evaluation mode, for one input of `input_shape` without the batch dimension: (C, H, W) or (k,). The
    network is not executed on real data."""
    device = "cpu" if has_own_code(module) else "meta"  # a user's code may compute with numbers, which `meta` does not have
    own_copy = copy.deepcopy(module).eval().to(device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        own_copy(torch.zeros(1, *input_shape, device=device))
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2)


def milliseconds(module: nn.Module, input_shape: tuple[int, ...]) -> float:
    """Median time of a module in evaluation mode for one input on one thread of this machine."""
    own_copy = copy.deepcopy(module).eval().cpu()
    x, times = torch.zeros(1, *input_shape), list[float]()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(WARM_UPS + TIMED_CALLS):
                started = time.perf_counter()
                own_copy(x)
                times.append(1000 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(threads)
    return median(times[WARM_UPS:])


def ensure_within_budget(config: Config, *, image_shape: tuple[int, int, int]) -> None:
    """Raises: InputError if the client spends more multiply-adds on a picture (H, W, C) than `privatizer.max_multiply_adds`."""
    height, width, channels = image_shape
    p = config.privatizer
    if p.max_multiply_adds is None:
        return
    with torch.random.fork_rng(devices=()):
        spent = count(build_privatizer(p, k=config.k, image_shape=image_shape), (channels, height, width)).multiply_adds
    if spent > p.max_multiply_adds:
        raise InputError(
            f"privatizer.max_multiply_adds is {p.max_multiply_adds:,}, but the client would spend {spent:,} multiply-adds on a "
            f"sample of {height}x{width}x{channels} (family {label(p.family)!r}, width {p.width}, depth {p.depth}, k {config.k}): "
            "lower the width, the depth or k, or set --privatizer.family to separable or patch"
        )


def costs(config: Config, *, image_shape: tuple[int, int, int], outputs: int) -> dict[str, dict[str, int]]:
    """Costs of the privatizer (for the client, with its budget if it has one) and of the utility head (for the cloud), for
    pictures (H, W, C)."""
    height, width, channels = image_shape
    with torch.random.fork_rng(devices=()):
        privatizer = build_privatizer(config.privatizer, k=config.k, image_shape=image_shape)
        head = build_head(config.utility, k=config.k, num_logits=outputs, image_shape=image_shape)
    network_costs = {"privatizer": count(privatizer, (channels, height, width)), "utility_head": count(head, (config.k,))}
    result = {name: cost._asdict() for name, cost in network_costs.items()}
    if config.privatizer.max_multiply_adds is not None:
        result["privatizer"]["max_multiply_adds"] = config.privatizer.max_multiply_adds
    return result

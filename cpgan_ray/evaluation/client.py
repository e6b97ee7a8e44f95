"""What a code costs the client: multiply-adds, parameters and time for one sample, and the bytes that it sends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from cpgan_ray.common.types import Metrics
from cpgan_ray.models.cost import count, milliseconds

MAX_LEVELS = 256
"""A coordinate with at most so many values is sent as the number of its value; any other as a float32."""
ROWS_PER_LEVEL = 4
"""A coordinate counts as finite only if there are so many times more rows than values."""
FLOAT_BITS = 32


@dataclass(frozen=True, kw_only=True)
class ClientCost:
    """The client's cost for one sample. The first three are None if its network is not known."""

    multiply_adds: int | None = None
    """In convolutions and linear maps."""
    parameters: int | None = None
    ms: float | None = None
    """Median time on one thread of this machine."""
    bytes: float
    """Of the code, before entropy coding."""


def client_cost(
    network: nn.Module | None, codes: np.ndarray, *, image_shape: tuple[int, int, int], bits: float | None = None
) -> ClientCost:
    """The cost of a client that computes `network` and sends codes like these.

    codes: those of `train`, (N, k); image_shape: (H, W, C); bits: of a code, if they do not follow from the codes.
    """
    sent = (code_bits(codes) if bits is None else bits) / 8
    if network is None:
        return ClientCost(bytes=sent)
    height, width, channels = image_shape
    cost = count(network, (channels, height, width))
    ms = milliseconds(network, (channels, height, width))
    return ClientCost(multiply_adds=cost.multiply_adds, parameters=cost.parameters, ms=ms, bytes=sent)


def cost_metrics(report: Mapping[str, Any]) -> Metrics:
    """The metrics of the client's and of the cloud's cost in a report; those that are not known are left out."""
    client = {f"client/{name}": value for name, value in report.get("client", {}).items() if value is not None}
    return client | {f"cloud/{name}": value for name, value in report.get("cost", {}).get("utility_head", {}).items()}


def code_bits(codes: np.ndarray) -> int:
    """The bits of a code (N, k) of fixed length: ceil(log2 levels) for a coordinate with few values, 32 for any other."""
    levels = [len(np.unique(column)) for column in codes.T]
    limit = min(MAX_LEVELS, len(codes) // ROWS_PER_LEVEL)
    return sum(math.ceil(math.log2(number)) if number <= limit else FLOAT_BITS for number in levels)

"""Compares this package's layers with torch's layers: a forward and a backward pass each, with one thread."""

import itertools
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cpgan_ray.devtools.bench.settings import Settings
from cpgan_ray.models.paper.decoders import PaperDecoder
from cpgan_ray.models.paper.lenet import lenet_stages
from cpgan_ray.models.paper.same_padding import TransposedSame
from cpgan_ray.models.paper.series import SeriesConv2d
from cpgan_ray.models.pointwise import StridedPointwise

SERIES = (128, 1, 9)
"""Shape of UCI HAR's series: time steps, one column, signals."""


class Plane(nn.Module):
    """A convolution of a series as a convolution of a plane, with all columns of its kernel."""

    def __init__(self, conv: SeriesConv2d | TransposedSame) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.conv, SeriesConv2d):
            return nn.Conv2d.forward(self.conv, x)
        return self.conv.conv(x)[:, :, : x.shape[2] * self.conv.stride[0], :1]


def measure_layers(s: Settings, folder: Path) -> dict[str, Any]:
    """Milliseconds of the networks for series with series and with plane convolutions, and of strided 1x1 convolutions (32 channels
    of 32 x 32 to 64, channels last) of this package and of torch. `speedup` is the median ratio over the turns."""
    torch.set_num_threads(1)
    decoder = PaperDecoder(32, image_shape=SERIES).layers
    result = compare("privatizer", series(lenet_stages(SERIES)), torch.randn(s.batch_size, 9, 128, 1), s)
    result |= compare("decoder", series(decoder), torch.randn(s.batch_size, 32), s)
    pictures = torch.randn(s.batch_size, 32, 32, 32).to(memory_format=torch.channels_last)
    sides = {"pixels_read": StridedPointwise(32, 64, stride=2), "torch": nn.Conv2d(32, 64, 1, stride=2, bias=False)}
    return result | compare("pointwise", sides, pictures, s)


def series(net: nn.Sequential) -> dict[str, nn.Module]:
    """A network for series, and the same network with plane convolutions."""
    plane = nn.Sequential(*(Plane(m) if isinstance(m, SeriesConv2d | TransposedSame) else m for m in net))
    return {"series": net, "plane": plane}


def compare(name: str, sides: Mapping[str, nn.Module], x: Tensor, s: Settings) -> dict[str, float]:
    """Times of two variants that alternate: first this package's layers, second the layers that a user would write."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn, (side, net) in itertools.product(range(s.warmup + s.repeats * s.rounds), sides.items()):
        milliseconds = step_ms(net, x)
        if turn >= s.warmup:
            times[side].append(milliseconds)
    medians = {f"{name}_{side}_ms": statistics.median(values) for side, values in times.items()}
    own, baseline = times.values()
    return medians | {f"{name}_speedup": statistics.median(b / a for a, b in zip(own, baseline, strict=True))}


def step_ms(net: nn.Module, x: Tensor) -> float:
    started = time.perf_counter()
    net(x).square().mean().backward()
    return 1000 * (time.perf_counter() - started)

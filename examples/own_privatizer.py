"""A privatizer of your own: depthwise separable convolutions, cheap on a phone.

    python jobs/train_celeba.py --privatizer.family examples/own_privatizer.py:separable --privatizer.options '{"width": 24}'
    python -m cpgan_ray.check examples/own_privatizer.py:separable

The function gets the configuration and the shape of the pictures, and returns the stages: (B, C, H, W) in [-1, 1] -> features
(B, ...). The project puts the bottleneck of k numbers, the normalisation and the rounding behind them.
"""

from torch import nn

from cpgan_ray.config import PrivatizerConfig


def separable(
    config: PrivatizerConfig, image_shape: tuple[int, int, int], *, width: int = 16, depth: int = 3, squeeze: bool = True
) -> nn.Module:
    """`depth` stages that each halve the side and double the channels, then an average over 2 x 2 pixels if `squeeze`."""
    stages: list[nn.Module] = [
        nn.Conv2d(image_shape[2], width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for _ in range(depth - 1):
        stages += [
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
        ]
        channels *= 2
    return nn.Sequential(*stages, *([nn.AvgPool2d(2)] if squeeze else []))

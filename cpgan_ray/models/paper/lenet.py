"""The LeNet of the reference implementation for small data sets (MNIST, GENKI-4K, HAR): privatizer stages and utility head."""

from torch import nn

from cpgan_ray.errors import InputError
from cpgan_ray.models.paper.same_padding import FlattenLast, initialise
from cpgan_ray.models.paper.series import SeriesConv2d


def lenet_stages(image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Two 5x5 convolutions (SAME, then VALID) with ReLU and 2x2 max-pool: (B, C, H, W) -> (B, flat).

    Flat is 400 at 28x28x1, 3136 at 64x64x3. Series (H, 1, C) are padded in both convolutions and pooled only along H: 512 at
    128x1x9. The values have the order of the reference implementation (channel last), because its HAR decoder folds them back
    without a linear map.

    Raises:
        InputError: the pictures are too small.
    """
    height, width, channels = image_shape
    series = width == 1
    if not series and min(height, width) < 12:
        raise InputError(f"pictures are {height}x{width}; the lenet privatizer needs at least 12x12 pixels, or series of width 1")
    stages: list[nn.Module] = []
    for inputs, out, padding in ((channels, 6, 2), (6, 16, 2 if series else 0)):
        # ceil_mode equals SAME here; one column of the reference implementation's 2x2 window over a series is padding
        pool = nn.MaxPool2d((2, 1), ceil_mode=True) if series else nn.MaxPool2d(2)
        conv = SeriesConv2d if series else nn.Conv2d
        stages += [conv(inputs, out, 5, padding=padding), nn.ReLU(), pool]
    return initialise(nn.Sequential(*stages, FlattenLast()))


def lenet_head(k: int, *, outputs: int, hidden: tuple[int, int] = (120, 84)) -> nn.Sequential:
    """Two hidden layers with ReLU: (B, k) -> (B, outputs). The reference GENKI classifier on PCA codes has `hidden` (128, 128)."""
    a, b = hidden
    return initialise(nn.Sequential(nn.Linear(k, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, outputs)))

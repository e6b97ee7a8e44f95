"""How alike two pictures are: PSNR, SSIM and MS-SSIM by torchmetrics, behind a guard of their scale.

A range or type that is off by a factor makes a privacy number meaningless and goes unnoticed (the original's squared errors were
taken in uint8 and wrapped at 256; PSNR with peak 255 on [0, 1] gains 48 dB): here it raises.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales (Wang, Simoncelli & Bovik 2003, section 3.2)."""
KERNEL = 11
BLOCK_VALUES = 1 << 19
"""Values of the pictures that are compared at once: MS-SSIM needs some forty times their memory."""
TOLERANCE = 1e-4
MAX_PSNR = 100.0
"""dB; that of equal pictures would be infinite, and so would any mean with it."""


def as_unit(pictures: Tensor) -> Tensor:
    """Pictures (N, H, W, C) in [-1, 1] to (N, C, H, W) in [0, 1].

    Raises: ValueError where they are not floating point, not four-dimensional, or beyond [-1, 1].
    """
    if not pictures.is_floating_point():
        raise ValueError(f"pictures have type {pictures.dtype}: give floating point values in [-1, 1] (uint8 arithmetic wraps)")
    if pictures.dim() != 4:
        raise ValueError(f"pictures have shape {tuple(pictures.shape)}: give (N, H, W, C)")
    low, high = float(pictures.min()), float(pictures.max())
    if not (low >= -1 - TOLERANCE and high <= 1 + TOLERANCE):  # catches NaN too
        raise ValueError(f"pictures lie in [{low:.3g}, {high:.3g}]: scale them to [-1, 1]")
    return (pictures.permute(0, 3, 1, 2) + 1).div_(2).clamp_(0, 1)


def _check(one: Tensor, other: Tensor) -> None:
    for pictures in (one, other):
        if not pictures.is_floating_point():
            raise ValueError(f"pictures have type {pictures.dtype}: give floating point values in [0, 1] (uint8 arithmetic wraps)")
        low, high = float(pictures.min()), float(pictures.max())
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # catches NaN too
            raise ValueError(f"pictures lie in [{low:.3g}, {high:.3g}]: scale them to [0, 1]")
    if one.shape != other.shape or one.dim() != 4:
        raise ValueError(f"pictures have shapes {tuple(one.shape)} and {tuple(other.shape)}: give the same (N, C, H, W)")
    if float(other.max()) <= 1.5 / 255 and float(other.max()) > 0:
        raise ValueError(f"pictures reach no further than {float(other.max()):.3g}: divided by 255 twice? Scale them to [0, 1]")


def similarity(one: Tensor, other: Tensor) -> dict[str, np.ndarray]:
    """`psnr` in dB, `ssim` and, where the pictures are large enough for two scales or more, `ms_ssim` of each pair, (N,).

    one, other: (N, C, H, W) in [0, 1]. SSIM: Gaussian window of 11 pixels, sigma 1.5. MS-SSIM: as many of the five scales as the
    shorter side has room for, their weights normalised.

    Raises: ValueError where type, range or shape are off.
    """
    _check(one, other)
    size = max(1, BLOCK_VALUES // other[0].numel())
    parts = [_similarity(a, b) for a, b in zip(one.split(size), other.split(size), strict=True)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _similarity(one: Tensor, other: Tensor) -> dict[str, np.ndarray]:
    psnr = peak_signal_noise_ratio(one, other, data_range=1.0, reduction="none", dim=(1, 2, 3))
    found = {"psnr": psnr.clamp(max=MAX_PSNR).numpy()}
    if min(one.shape[2:]) >= KERNEL:
        ssim = partial(structural_similarity_index_measure, data_range=1.0, reduction="none", sigma=1.5, kernel_size=KERNEL)
        found["ssim"] = torch.as_tensor(ssim(one, other)).view(-1).numpy()
    if (scales := num_scales(min(one.shape[2:]))) > 1:
        weights = tuple(w / sum(MS_SSIM_WEIGHTS[:scales]) for w in MS_SSIM_WEIGHTS[:scales])
        multiscale = partial(multiscale_structural_similarity_index_measure, normalize="relu", data_range=1.0, reduction="none")
        found["ms_ssim"] = multiscale(one, other, betas=weights, sigma=1.5, kernel_size=KERNEL).view(-1).numpy()
    return found


def num_scales(side: int) -> int:
    """How many scales there is room for: the last no smaller than the window, and n of them (n - 1)^2 windows (so torchmetrics)."""
    return max(n for n in range(1, len(MS_SSIM_WEIGHTS) + 1) if n == 1 or side // max(2 ** (n - 1), (n - 1) ** 2) >= KERNEL)


def legacy_mse(one: Tensor, other: Tensor) -> np.ndarray:
    """The original's wrapped metric, (N,): mean of (a - b)^2 mod 256 over uint8 values, as NumPy computes it in the arrays'
    own type. Not a distance; only to compare with numbers published that way. one, other: (N, C, H, W) in [0, 1]."""
    a, b = ((p * 255).floor().to(torch.int64).flatten(1) for p in (one, other))
    return ((a - b).square() % 256).double().mean(1).numpy()

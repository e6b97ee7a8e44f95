"""Similarity of two pictures: PSNR, SSIM and MS-SSIM by torchmetrics, after a check of type and value range.

A wrong range or type makes a privacy number meaningless without any visible sign: the reference implementation computed squared
errors in uint8, which wrap at 256; PSNR with peak 255 on [0, 1] is 48 dB too high. Here such input raises an error.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales (Wang, Simoncelli & Bovik 2003, section 3.2)."""
KERNEL = 11
BLOCK_VALUES = 1 << 19
"""Number of pixel values that are compared at once: MS-SSIM needs about forty times their memory."""
TOLERANCE = 1e-4
MAX_PSNR = 100.0
"""Upper limit in dB: equal pictures would have infinite PSNR, and would make every mean infinite."""


def as_unit(pictures: Tensor) -> Tensor:
    """Pictures (N, H, W, C) in [-1, 1] to (N, C, H, W) in [0, 1].

    Raises: ValueError if they are not floating point, not four-dimensional, or outside [-1, 1].
    """
    if not pictures.is_floating_point():
        raise ValueError(f"pictures have type {pictures.dtype}: pass floating point values in [-1, 1] (uint8 arithmetic wraps)")
    if pictures.dim() != 4:
        raise ValueError(f"pictures have shape {tuple(pictures.shape)}: pass (N, H, W, C)")
    low, high = float(pictures.min()), float(pictures.max())
    if not (low >= -1 - TOLERANCE and high <= 1 + TOLERANCE):  # catches NaN too
        raise ValueError(f"pictures lie in [{low:.3g}, {high:.3g}]: scale them to [-1, 1]")
    return (pictures.permute(0, 3, 1, 2) + 1).div_(2).clamp_(0, 1)


def _check(a: Tensor, b: Tensor) -> None:
    for pictures in (a, b):
        if not pictures.is_floating_point():
            raise ValueError(f"pictures have type {pictures.dtype}: pass floating point values in [0, 1] (uint8 arithmetic wraps)")
        low, high = float(pictures.min()), float(pictures.max())
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # catches NaN too
            raise ValueError(f"pictures lie in [{low:.3g}, {high:.3g}]: scale them to [0, 1]")
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(f"pictures have shapes {tuple(a.shape)} and {tuple(b.shape)}: both must be the same (N, C, H, W)")
    if float(b.max()) <= 1.5 / 255 and float(b.max()) > 0:
        raise ValueError(f"the largest pixel value is {float(b.max()):.3g}: divided by 255 twice? Scale the pictures to [0, 1]")


def similarity(a: Tensor, b: Tensor) -> dict[str, np.ndarray]:
    """`psnr` in dB, `ssim` and, if the pictures are large enough for at least two scales, `ms_ssim` of each pair, (N,).

    a, b: (N, C, H, W) in [0, 1]. SSIM: Gaussian window of 11 pixels, sigma 1.5. MS-SSIM: as many of the five scales as fit into the
    shorter side, with normalised weights.

    Raises: ValueError if type, range or shape are wrong.
    """
    _check(a, b)
    size = max(1, BLOCK_VALUES // b[0].numel())
    blocks = [_similarity(*block) for block in zip(a.split(size), b.split(size), strict=True)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _similarity(a: Tensor, b: Tensor) -> dict[str, np.ndarray]:
    from torchmetrics.functional.image import (  # takes 0.3 s
        multiscale_structural_similarity_index_measure,
        peak_signal_noise_ratio,
    )

    psnr = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    measures = {"psnr": psnr.clamp(max=MAX_PSNR).numpy()}
    if min(a.shape[2:]) >= KERNEL:
        measures["ssim"] = _ssim(a, b)
    if (scales := num_scales(min(a.shape[2:]))) > 1:
        weights = tuple(w / sum(MS_SSIM_WEIGHTS[:scales]) for w in MS_SSIM_WEIGHTS[:scales])
        multiscale = partial(multiscale_structural_similarity_index_measure, normalize="relu", data_range=1.0, reduction="none")
        measures["ms_ssim"] = multiscale(a, b, betas=weights, sigma=1.5, kernel_size=KERNEL).view(-1).numpy()
    return measures


def ssim(a: Tensor, b: Tensor) -> np.ndarray:
    """Only the SSIM (N,) of each pair. a, b: (N, C, H, W) in [0, 1], with sides of at least KERNEL pixels.

    Raises: ValueError if type, range or shape are wrong.
    """
    _check(a, b)
    size = max(1, BLOCK_VALUES // b[0].numel())
    return np.concatenate([_ssim(*block) for block in zip(a.split(size), b.split(size), strict=True)])


def _ssim(a: Tensor, b: Tensor) -> np.ndarray:
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none", sigma=1.5, kernel_size=KERNEL)
    return torch.as_tensor(values).view(-1).numpy()


def num_scales(side: int) -> int:
    """Number of scales that fit into a side of so many pixels. torchmetrics requires that the smallest scale is not smaller than
    the window, and that n scales have a side of at least (n - 1)^2 windows."""
    return max(n for n in range(1, len(MS_SSIM_WEIGHTS) + 1) if n == 1 or side // max(2 ** (n - 1), (n - 1) ** 2) >= KERNEL)


def legacy_mse(a: Tensor, b: Tensor) -> np.ndarray:
    """The wrapped metric of the reference implementation, (N,): mean of (a - b)^2 mod 256 over uint8 values, as NumPy computes it
    in uint8. It is not a distance; use it only to compare with published numbers of this kind. a, b: (N, C, H, W) in [0, 1]."""
    bytes_a, bytes_b = ((pictures * 255).floor().to(torch.int64).flatten(1) for pictures in (a, b))
    return ((bytes_a - bytes_b).square() % 256).double().mean(1).numpy()

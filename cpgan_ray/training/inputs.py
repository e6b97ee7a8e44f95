"""The input of a privatizer: samples as tensors, with noise and cutout in training, and the whitening that is fitted to them."""

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.rng import stream
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset
from cpgan_ray.data.pca import projection
from cpgan_ray.models.privatizers import Whitening


def to_input(pictures: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, C) from the store -> float32 (B, C, H, W): uint8 pictures scaled to [-1, 1], float32 values unchanged."""
    x = torch.from_numpy(pictures)
    if device.type == "cuda":
        x = x.pin_memory()
    x = x.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x


def corrupt_inputs(x: Tensor, config: Config, *, round: int, num_rows: int, local: slice) -> Tensor:
    """Adds noise and a grey square to the pictures (B, C, H, W) of a training round, as configured (`input_noise`, `cutout`).

    Both are drawn for the whole batch of `num_rows` pictures; `local`: the rows of the batch that `x` holds.
    """
    d = config.data
    if d.input_noise:
        noise = stream(config.seed, "input noise", round).standard_normal((num_rows, *x.shape[1:]), np.float32)[local]
        x = x + d.input_noise * torch.from_numpy(noise).to(x.device)
    if d.cutout:
        sides = x.shape[2:]
        first = stream(config.seed, "cutout", round).integers(sides, size=(num_rows, 2))[local] - d.cutout // 2  # may be negative
        down, right = (np.arange(side) - start[:, None] for side, start in zip(sides, first.T, strict=True))
        covered = ((down >= 0) & (down < d.cutout))[:, :, None] & ((right >= 0) & (right < d.cutout))[:, None, :]
        x = x.masked_fill(torch.from_numpy(covered[:, None]).to(x.device), 0.0)
    return x


def fit_whitening(privatizer: nn.Module, dataset: Dataset) -> None:
    """Set the principal components of a privatizer that whitens its input, from the training samples."""
    for part in privatizer.modules():
        if isinstance(part, Whitening):
            basis = projection(dataset, components=len(part.mean), progress=False)
            part.fit(basis.mean, basis.components, basis.coordinates)

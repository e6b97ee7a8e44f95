"""The choice among several draws of a picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap

Encode = Callable[[np.ndarray], np.ndarray]
"""The privatizer: pictures (B, C, H, W) uint8 -> codes (B, k), before noise."""
BLOCK = 256


@dataclass(frozen=True, eq=False)
class Recoder:
    """Encodes draws again, to compare their codes with those on the wire. An attacker who has the privatizer can do that."""

    encode: Encode
    data: AttackData
    mean: np.ndarray  # (D,) mean picture in [-1, 1]

    def codes(self, draws: Tensor) -> Tensor:
        """Codes (N, k) of draws (N, p)."""
        assert self.data.image_shape is not None
        parts = []
        for block in draws.split(BLOCK):
            x = (block @ self.data.components).cpu().numpy() + self.mean
            pictures = np.clip((x + 1) * 127.5, 0, 255).round().astype(np.uint8)
            parts.append(self.encode(np.ascontiguousarray(pictures.reshape(-1, *self.data.image_shape).transpose(0, 3, 1, 2))))
        return torch.from_numpy(np.concatenate(parts)).to(draws.device)

    def distances(self, draws: Tensor, z: Tensor) -> Tensor:
        """|g(x_hat) - z| (n, N) for draws (n, N, p) and codes z (N, k), each number in units of its standard deviation."""
        prepare = CodeMap(self.data.fit.z, how="standardised")
        wire = prepare(z)
        return torch.stack([torch.linalg.vector_norm(prepare(self.codes(one)) - wire, dim=1) for one in draws])


def true_distances(draws: Tensor, x: Tensor) -> Tensor:
    """Distances (n, N) of draws (n, N, p) to the true pictures (N, p), which no attacker knows: an oracle."""
    return torch.linalg.vector_norm(draws - x, dim=2)


def closest(draws: Tensor, distances: Tensor) -> Tensor:
    """For each row the draw (N, p) with the smallest distance, from draws (n, N, p) and distances (n, N)."""
    rows = torch.arange(draws.shape[1], device=draws.device)
    return draws[distances.argmin(0), rows]

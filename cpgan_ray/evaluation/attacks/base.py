"""What an attack is given and what it answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.types import Batch
from cpgan_ray.data.batching import pictures
from cpgan_ray.data.pca import scale
from cpgan_ray.data.store import Split
from cpgan_ray.training.adversaries.base import Target, code_map

BLOCK = 2048
BLOCK_VALUES = 1 << 22
"""Values of a block of pictures: 16 MB of float32, whatever their size."""
GAIN = 0.005
"""An attack is saturated when doubling its budget gains less R2 than this on the tuning rows, ..."""
IDLE_DOUBLINGS = 2
"""... so many times in a row: a network that starts at the ridge reconstruction may take a while to leave it."""


class Pixels(Protocol):
    """Pictures in [-1, 1] less the mean training picture, by row: a Tensor (N, D), or the store's pictures on demand."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """Pictures of a split that stay in the memory-mapped store until they are asked for."""

    split: Split
    batch: Batch
    mean: np.ndarray  # (D,)
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.batch.rows)

    def __getitem__(self, rows: Any, /) -> Tensor:
        b = self.batch
        rows = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        part = Batch(rows=b.rows[rows], mirrored=b.mirrored[rows], shift=b.shift[rows])
        return torch.from_numpy(scale(pictures(self.split, part)) - self.mean).to(self.device)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Codes and the pictures behind them, row by row: as pixels, and on principal components."""

    z: Tensor  # (N, k)
    target: Target  # values (N, p), residual (N,)
    pixels: Pixels  # (N, D)
    identity: np.ndarray  # (N,) whose picture it is

    def __len__(self) -> int:
        return len(self.z)

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes and coordinates, block by block."""
        yield from zip(self.z.split(size), self.target.values.split(size), strict=True)

    @property
    def pixel_rows(self) -> int:
        """Pictures of a block: at most BLOCK_VALUES values."""
        return max(1, BLOCK_VALUES // self.target.dimension)

    def pixel_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes and pixels, block by block."""
        for start in range(0, len(self), self.pixel_rows):
            yield self.z[start : start + self.pixel_rows], self.pixels[slice(start, start + self.pixel_rows)]


@dataclass(frozen=True, eq=False)
class AttackData:
    """Three disjoint sets of pairs. An attack may look at `fit` and `tune`; `score` is for whoever scores it."""

    fit: Pairs
    tune: Pairs
    score: Pairs
    components: Tensor  # (p, D) orthonormal: coordinates @ components are pixels
    bounds: tuple[Tensor, Tensor] | None  # (D,) least and largest value of a reconstruction's pixels; None: unbounded
    image_shape: tuple[int, int, int] | None  # (H, W, C); None: no pictures, decoders fall back on perceptrons
    seed: int
    trained_against: tuple[str, ...] = ()  # architectures of the training adversaries
    unit: float = 127.5  # what 1 of the pixels' values is in the data set's own unit
    pictures: bool = True  # or signals, which are in the data set's own unit
    mirrored: bool = True  # whether the second half of `fit` is the mirror images of the first


class Reconstructor(Protocol):
    """Codes (B, k) -> coordinates (B, p) or pixels (B, D). Pickles, so that it can be fitted in another process."""

    def __call__(self, z: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Fitted:
    """An attack at its best settings."""

    reconstruct: Reconstructor
    space: str  # of what `reconstruct` returns: "components" or "pixels"
    tune_r2: float  # on the tuning rows
    saturated: bool  # whether more budget no longer helped
    settings: dict[str, object]
    budgets: tuple[tuple[int, float], ...] = ()  # (budget, R2 on the tuning rows), as the budget was raised
    curve: tuple[float, ...] = ()  # of a network: R2 on the tuning rows after each epoch


class CodeMap(nn.Module):
    """Standardises or whitens codes with the statistics of those fitted on, in float64 inside."""

    origin: Tensor
    matrix: Tensor

    def __init__(self, fitted: Tensor, *, how: str) -> None:
        super().__init__()
        origin, matrix = code_map(fitted, how=how)
        self.register_buffer("origin", origin)
        self.register_buffer("matrix", matrix)

    def forward(self, z: Tensor) -> Tensor:
        return ((z.double() - self.origin) @ self.matrix).float()


@dataclass(frozen=True, eq=False)
class Mean:
    """The average of several reconstructions."""

    parts: tuple[Reconstructor, ...]

    def __call__(self, z: Tensor, /) -> Tensor:
        return torch.stack([part(z) for part in self.parts]).mean(0)


@torch.no_grad()
def predict(reconstruct: Reconstructor, z: Tensor, *, rows: int = BLOCK) -> Tensor:
    """What it answers to all codes (N, ...), block by block.

    Written into one array: a block's answer, kept by itself, would lie behind the memory that it was computed in and hold it.
    """
    first = reconstruct(z[:rows])
    answers = first.new_empty(len(z), *first.shape[1:])
    answers[:rows] = first
    for start in range(rows, len(z), rows):
        answers[start : start + rows] = reconstruct(z[start : start + rows])
    return answers


def to_pixels(data: AttackData, fitted: Fitted, z: Tensor) -> Tensor:
    """Reconstructions (B, D) less the mean picture, clipped to what pixels can be, which only brings them nearer: an attack that is
    linear in unbounded codes would be as far off as a code that it has seen nothing like.

    Raises: ValueError where one is not finite.
    """
    with torch.no_grad():
        answer = fitted.reconstruct(z)
        pixels = answer @ data.components if fitted.space == "components" else answer
    if not bool(pixels.isfinite().all()):
        raise ValueError("an attack's reconstruction is not finite")
    return pixels if data.bounds is None else pixels.clamp(*data.bounds)


@torch.no_grad()
def r2_score(pairs: Pairs, reconstruct: Reconstructor, *, space: str) -> float:
    """R2 on some pairs: 1 - MSE / MSE of the mean picture."""
    errors = mean_errors = 0.0
    if space == "components":
        for start in range(0, len(pairs), BLOCK):
            target = pairs.target[start : start + BLOCK]
            errors += float(target.errors(reconstruct(pairs.z[start : start + BLOCK])).double().sum())
            mean_errors += float(target.mean_errors().double().sum())
        return 1 - errors / mean_errors
    for z, x in pairs.pixel_blocks():
        errors += float((reconstruct(z) - x).double().square().sum())
        mean_errors += float(x.double().square().sum())
    return 1 - errors / mean_errors

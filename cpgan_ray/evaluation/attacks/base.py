"""Input and output types of an attack, and functions that all attacks share."""

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
"""Number of values in a block of pictures: 16 MB of float32 for pictures of any size."""
GAIN = 0.005
"""Doubling the budget of an attack is considered useless if R2 on the tuning rows rises by less than this."""
IDLE_DOUBLINGS = 2
"""An attack is saturated after so many useless doublings in a row. One is not enough: a network starts at the ridge reconstruction
and may need some time to improve on it."""


class Pixels(Protocol):
    """Pictures in [-1, 1] minus the mean training picture, by row: a Tensor (N, D), or pictures read from the store on demand."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """Pictures of a split that stay in the memory-mapped store until they are needed."""

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
    """Codes and their pictures, row by row: as pixels, and as coordinates on the principal components."""

    z: Tensor  # (N, k)
    target: Target  # values (N, p), residual (N,)
    pixels: Pixels  # (N, D)
    identity: np.ndarray  # (N,) the person on each picture

    def __len__(self) -> int:
        return len(self.z)

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes and coordinates, block by block."""
        yield from zip(self.z.split(size), self.target.values.split(size), strict=True)

    @property
    def pixel_rows(self) -> int:
        """Number of pictures in a block of at most BLOCK_VALUES values."""
        return max(1, BLOCK_VALUES // self.target.dimension)

    def pixel_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes and pixels, block by block."""
        for start in range(0, len(self), self.pixel_rows):
            yield self.z[start : start + self.pixel_rows], self.pixels[slice(start, start + self.pixel_rows)]


@dataclass(frozen=True, eq=False)
class AttackData:
    """Three disjoint sets of pairs. An attack may only use `fit` and `tune`; `score` is for scoring it afterwards."""

    fit: Pairs
    tune: Pairs
    score: Pairs
    components: Tensor  # (p, D) orthonormal: coordinates @ components are pixels
    bounds: tuple[Tensor, Tensor] | None  # (D,) smallest and largest value of each pixel of a reconstruction; None: unbounded
    image_shape: tuple[int, int, int] | None  # (H, W, C); None: not pictures, and decoders are replaced by perceptrons
    seed: int
    trained_against: tuple[str, ...] = ()  # architectures of the training adversaries
    unit: float = 127.5  # a pixel value of 1, in the data set's own unit
    pictures: bool = True  # False: signals, which are in the data set's own unit
    face: Tensor | None = None  # (D,) bool: pixels of the face region; None if the data set has none
    views: int = 1  # how often each picture is in `fit`: first all as they are, then mirrored, then with other draws of the noise


class Reconstructor(Protocol):
    """Codes (B, k) -> coordinates (B, p) or pixels (B, D). Must be picklable, because it may be fitted in another process."""

    def __call__(self, z: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Fitted:
    """An attack, fitted with its best settings."""

    reconstruct: Reconstructor
    space: str  # space of the reconstructions: "components" or "pixels"
    tune_r2: float  # on the tuning rows
    saturated: bool  # whether more budget no longer helped
    settings: dict[str, object]
    budgets: tuple[tuple[int, float], ...] = ()  # (budget, R2 on the tuning rows), in the order in which the budget was raised
    curve: tuple[float, ...] = ()  # only for networks: R2 on the tuning rows after each epoch


class CodeMap(nn.Module):
    """Standardises or whitens codes with the statistics of the codes that the attack is fitted on. Computes in float64."""

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
    """The output for all codes z (N, ...), computed block by block.

    All blocks are written into one array: if each output were kept separately, it would keep the allocator from reusing the memory
    of its computation.
    """
    first = reconstruct(z[:rows])
    outputs = first.new_empty(len(z), *first.shape[1:])
    outputs[:rows] = first
    for start in range(rows, len(z), rows):
        outputs[start : start + rows] = reconstruct(z[start : start + rows])
    return outputs


def to_pixels(data: AttackData, fitted: Fitted, z: Tensor) -> Tensor:
    """Reconstructions (B, D) minus the mean picture, clipped to possible pixel values. Clipping can only reduce their error: for a
    code far from all codes that it was fitted on, an attack that is linear in the code would have an unbounded error.

    Raises: ValueError if a reconstruction is not finite.
    """
    with torch.no_grad():
        reconstructions = fitted.reconstruct(z)
        pixels = reconstructions @ data.components if fitted.space == "components" else reconstructions
    if not bool(pixels.isfinite().all()):
        raise ValueError("an attack's reconstruction is not finite")
    return pixels if data.bounds is None else pixels.clamp(*data.bounds)


@torch.no_grad()
def r2_score(pairs: Pairs, reconstruct: Reconstructor, *, space: str) -> float:
    """R2 = 1 - MSE / MSE(mean picture) on `pairs`. space: of the reconstructions, "components" or "pixels"."""
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

"""Input and output types of an attack, and functions that all attacks share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.types import Batch
from cpgan_ray.data.batching import pictures
from cpgan_ray.data.pca import scale
from cpgan_ray.data.store import Split
from cpgan_ray.evaluation.attacks.saturation import IDLE_DOUBLINGS, is_saturated
from cpgan_ray.training.adversaries.base import Target, code_map

BLOCK = 2048
BLOCK_VALUES = 1 << 22
"""Number of values in a block of pictures: 16 MB of float32 for pictures of any size."""


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
        rows = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        return torch.from_numpy(scale(pictures(self.split, self.batch[rows])) - self.mean).to(self.device)


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
class JoinedPixels:
    """The pictures of several sets, one after the other."""

    parts: tuple[Pixels, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, rows: Any, /) -> Tensor:
        rows = torch.arange(len(self))[rows] if isinstance(rows, slice) else torch.as_tensor(rows).cpu()
        pixels, start = None, 0
        for part in self.parts:
            here = torch.nonzero((rows >= start) & (rows < start + len(part))).squeeze(1)
            if len(here):
                values = part[rows[here] - start]
                pixels = values.new_empty(len(rows), values.shape[1]) if pixels is None else pixels
                pixels[here.to(pixels.device)] = values
            start += len(part)
        return self.parts[0][slice(0, 0)] if pixels is None else pixels


def join(sets: Iterable[Pairs | None]) -> Pairs:
    """The rows of several sets, one after the other; None is left out."""
    parts = [pairs for pairs in sets if pairs is not None and len(pairs)]
    if len(parts) == 1:
        return parts[0]
    target = Target(
        torch.cat([pairs.target.values for pairs in parts]),
        torch.cat([pairs.target.residual for pairs in parts]),
        parts[0].target.dimension,
    )
    pixels = JoinedPixels(tuple(pairs.pixels for pairs in parts))
    return Pairs(torch.cat([pairs.z for pairs in parts]), target, pixels, np.concatenate([pairs.identity for pairs in parts]))


class Copies(Protocol):
    """Further pairs that an attacker makes herself from her pictures with the privatizer; computed when they are asked for. None:
    the samples have no such copies."""

    def fit_shifted(self) -> Pairs | None:
        """Shifted copies of the pictures in `fit`."""
        ...

    def tune_mirrored(self) -> Pairs | None:
        """The mirror images of `tune`, for a last fit on `fit` and `tune` together."""
        ...

    def tune_shifted(self) -> Pairs | None:
        """Shifted copies of the pictures in `tune`, for a last fit on `fit` and `tune` together."""
        ...


@dataclass(frozen=True, eq=False)
class AttackData:
    """Three disjoint sets of pairs. An attack may only use `fit`, `tune` and `copies`; `score` is for scoring it afterwards."""

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
    copies: Copies | None = None

    def fit_with_shifted(self) -> Pairs:
        """`fit`, followed by shifted copies of its pictures."""
        return join([self.fit, self.copies.fit_shifted() if self.copies else None])

    def tune_with_mirrored(self) -> Pairs:
        """`tune`, followed by its mirror images. Only for a last fit, after all settings were chosen on `tune`."""
        return join([self.tune, self.copies.tune_mirrored() if self.copies else None])

    def all_rows(self) -> Pairs:
        """`fit` and `tune` with all copies of their pictures. Only for a last fit, after all settings were chosen on `tune`."""
        return join([self.fit_with_shifted(), self.tune_with_mirrored(), self.copies.tune_shifted() if self.copies else None])


class Reconstructor(Protocol):
    """Codes (B, k) -> coordinates (B, p) or pixels (B, D). Must be picklable, because it may be fitted in another process."""

    def __call__(self, z: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Fitted:
    """An attack, fitted with its best settings, which were chosen on the tuning rows."""

    reconstruct: Reconstructor  # fitted on `fit` and `tune` together
    space: str  # space of the reconstructions: "components" or "pixels"
    tune_r2: float  # of `before_refit`, on the tuning rows
    saturated: bool  # whether more budget no longer helped
    settings: dict[str, object]
    budgets: tuple[tuple[int, float], ...] = ()  # (budget, R2 on the tuning rows), in the order in which the budget was raised
    curve: tuple[float, ...] = ()  # only for networks: R2 on the tuning rows after each epoch
    before_refit: Reconstructor | None = None  # fitted only on `fit`; None: `reconstruct` was
    restarts: tuple[Reconstructor, ...] = ()  # the attack under each seed alone, if it has random parts
    averaged: bool = False  # whether `reconstruct` is the average of the restarts


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
    """An attack's reconstructions (B, D), see `pixels_of`."""
    return pixels_of(fitted.reconstruct, z, space=fitted.space, components=data.components, bounds=data.bounds)


@torch.no_grad()
def pixels_of(
    reconstruct: Reconstructor, z: Tensor, *, space: str, components: Tensor, bounds: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Reconstructions (B, D) minus the mean picture, clipped to possible pixel values. Clipping can only reduce their error: for a
    code far from all codes that it was fitted on, an attack that is linear in the code would have an unbounded error.

    Raises: ValueError if a reconstruction is not finite.
    """
    reconstructions = reconstruct(z)
    pixels = reconstructions @ components if space == "components" else reconstructions
    if not bool(pixels.isfinite().all()):
        raise ValueError("an attack's reconstruction is not finite")
    return pixels if bounds is None else pixels.clamp(*bounds)


@torch.no_grad()
def row_errors(pairs: Pairs, reconstruct: Reconstructor, *, space: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared error of each row, and of the mean picture, (N,) float64 each. space: see `r2_score`."""
    errors: list[Tensor] = []
    mean_errors: list[Tensor] = []
    if space == "components":
        for start in range(0, len(pairs), BLOCK):
            target = pairs.target[start : start + BLOCK]
            errors.append(target.errors(reconstruct(pairs.z[start : start + BLOCK])).double())
            mean_errors.append(target.mean_errors().double())
    else:
        for z, x in pairs.pixel_blocks():
            errors.append((reconstruct(z) - x).double().square().mean(1))
            mean_errors.append(x.double().square().mean(1))
    return torch.cat(errors).cpu().numpy(), torch.cat(mean_errors).cpu().numpy()


def r2_score(pairs: Pairs, reconstruct: Reconstructor, *, space: str) -> float:
    """R2 = 1 - MSE / MSE(mean picture) on `pairs`. space: of the reconstructions, "components" or "pixels"."""
    errors, mean_errors = row_errors(pairs, reconstruct, space=space)
    return float(1 - errors.sum() / mean_errors.sum())


def half_width(pairs: Pairs, reconstruct: Reconstructor, *, space: str) -> float:
    """Half the width of a 95 % interval of R2 on `pairs`, which treats people as independent.

    R2 = 1 - sum(e) / sum(m) is one minus a ratio. To first order its error is sum(u) / sum(m) with u = e - (1 - R2) m, summed per
    person (Cochran, Sampling techniques, 1977, section 6.3): much faster than the bootstrap, which the report's interval uses.
    """
    errors, mean_errors = row_errors(pairs, reconstruct, space=space)
    _, person = np.unique(pairs.identity, return_inverse=True)
    deviations = np.bincount(person, weights=errors - errors.sum() / mean_errors.sum() * mean_errors)
    return float(1.96 * np.sqrt(np.square(deviations).sum()) / mean_errors.sum())


def is_saturated_on(data: AttackData, reconstruct: Reconstructor, budgets: Sequence[tuple[int, float]], *, space: str) -> bool:
    """Whether raising the budget no longer helps an attack (saturation.py). reconstruct: the best so far; budgets: see `Fitted`."""
    if len(budgets) <= IDLE_DOUBLINGS:
        return False
    return is_saturated([r2 for _, r2 in budgets], half_width=half_width(data.tune, reconstruct, space=space))


def averaged_if_better(
    data: AttackData,
    before: tuple[Reconstructor, ...],
    refitted: tuple[Reconstructor, ...],
    space: str,
    saturated: bool,
    settings: dict[str, object],
    budgets: tuple[tuple[int, float], ...],
    curve: tuple[float, ...] = (),
) -> Fitted:
    """The average of an attack's restarts, or the best restart if that is better on the tuning rows.

    before, refitted: each restart, fitted on `fit`, and on `fit` and `tune` together.
    """
    r2 = [r2_score(data.tune, restart, space=space) for restart in before]
    strongest = max(range(len(r2)), key=r2.__getitem__)
    averaged_r2 = r2_score(data.tune, Mean(before), space=space) if len(before) > 1 else r2[0]
    averaged = averaged_r2 > r2[strongest]
    if len(before) > 1:
        settings = settings | {"restarts_r2": [round(value, 4) for value in r2]} | ({"averaged": len(before)} if averaged else {})
    return Fitted(
        Mean(refitted) if averaged else refitted[strongest],
        space,
        averaged_r2 if averaged else r2[strongest],
        saturated,
        settings,
        budgets,
        curve,
        before_refit=Mean(before) if averaged else before[strongest],
        restarts=refitted if len(refitted) > 1 else (),
        averaged=averaged,
    )

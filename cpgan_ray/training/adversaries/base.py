"""The interface of an adversary, and the parts that closed-form adversaries share."""

from collections import deque
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.common.process import Precision
from cpgan_ray.training.classes import Classes
from cpgan_ray.training.losses import row_errors


@dataclass(frozen=True)
class Target:
    """What is recovered from a batch of codes: pictures in [-1, 1], as pixels or as principal components, or the numbers of another
    target (training/targets.py).

    All forms are relative to the mean over the training pictures, so that the mean predictor is the zero vector.
    """

    values: Tensor  # (B, p)
    residual: Tensor  # (B,) squared norm outside the p components; 0 if there are no others
    dimension: int  # number of values that an error is the mean of: H * W * C of a picture

    def __getitem__(self, rows: slice | Tensor) -> "Target":
        return Target(self.values[rows], self.residual[rows], self.dimension)

    def errors(self, predicted: Tensor) -> Tensor:
        """Mean squared error per value of each row, (B,)."""
        return row_errors(predicted, self.values, self.residual, dimension=self.dimension)

    def mean_errors(self) -> Tensor:
        """Mean squared error per value of the mean picture for each row, (B,)."""
        return self.errors(torch.zeros_like(self.values))


MIN_RELATIVE_VARIANCE = 1e-12
"""Smallest variance relative to the largest: the square of float32's relative precision, with a margin."""
BLOCK_ROWS = 8192
"""Number of codes converted to float64 at a time."""


class Adversary(Protocol):
    """A reconstructor h: z -> x that improves from release to release."""

    def recover(self, z: Tensor, target: Target) -> tuple[Tensor, slice]:
        """Squared errors (S,) on rows that it was not fitted on, differentiable in z, and the slice of these rows in the batch."""
        ...

    def improve(self, z: Tensor, target: Target) -> None:
        """Learn from a release."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class AdversaryContext:
    """What an adversary is built for. Network weights are drawn from torch's global stream, which is seeded for each adversary."""

    k: int  # length of the codes
    target: int  # length p of the targets: of the pixels, H * W * C, or the number of principal components, or of another target
    image_shape: tuple[int, int, int]  # (H, W, C)
    holdout_fraction: float  # of a batch, on which an adversary that is fitted on the rest is scored
    rng: np.random.Generator  # a stream of its own; an adversary that draws from it between rounds stores its state
    device: torch.device
    precision: Precision = "float32"  # of networks in training
    compiled: bool = False  # whether networks are compiled
    classes: Classes | None = None  # the hidden labels, if they are the target: a network predicts logits for them


class EpochFitted(Protocol):
    """An adversary that is fitted once per epoch on all training codes, which are streamed through it, as in the paper."""

    def accumulate(self, z: Tensor, target: Target) -> None:
        """Add rows to its normal equations."""
        ...

    def solve(self) -> None:
        """Fit on the accumulated rows and start a new accumulation."""
        ...


class BatchMemory:
    """The last few batches: codes as constants, with their targets. Adversaries are fitted on them and on the current batch."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.entries: deque[tuple[Tensor, Tensor]] = deque(maxlen=batches)

    def push(self, z: Tensor, target: Target) -> None:
        if self.batches:
            self.entries.append((z.detach().clone(), target.values))

    def with_current(self, z: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and targets of the memory, followed by the given ones: (M + B, k), (M + B, p)."""
        entries = list(self.entries)
        return torch.cat([*(e[0] for e in entries), z]), torch.cat([*(e[1] for e in entries), values])

    def state_dict(self) -> dict[str, Any]:
        return {"entries": list(self.entries)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entries = deque((tuple(e) for e in state["entries"]), maxlen=self.batches)


def code_map(fitted: Tensor, *, how: str) -> tuple[Tensor, Tensor]:
    """Origin (k,) and matrix (k, m) in float64 of the map (z - origin) @ matrix that standardises or whitens codes like `fitted`.

    For an attack on whitened codes, directions of low variance count as much as the others. Directions whose variance is below the
    precision of float32 are left out. The statistics are constants in the gradient.
    """
    first, blocks = fitted[0].detach().double(), fitted.detach().split(BLOCK_ROWS)
    if how == "raw":
        return torch.zeros_like(first), torch.diag(torch.ones_like(first))
    shift = reduce(torch.add, ((block.double() - first).sum(0) for block in blocks)) / len(fitted)
    origin = first + shift
    centred = (block.double() - first - shift for block in blocks)  # exactly 0 if all codes are the same
    if how == "standardised":
        scale = (reduce(torch.add, (c.square().sum(0) for c in centred)) / (len(fitted) - 1)).sqrt()
        return origin, torch.diag(1 / torch.where(scale > 0, scale, 1.0))
    values, vectors = torch.linalg.eigh(reduce(torch.add, (c.T @ c for c in centred)) / (len(fitted) - 1))
    usable = values > MIN_RELATIVE_VARIANCE * values[-1].clamp(min=torch.finfo(torch.float32).tiny)
    if not bool(usable.any()):  # the same code for every picture
        return origin, torch.zeros_like(vectors[:, :1])
    return origin, vectors[:, usable] / values[usable].sqrt()


def prepare_codes(fitted: Tensor, scored: Tensor, *, how: str) -> tuple[Tensor, Tensor]:
    """Both sets of codes unchanged, standardised or whitened, with the statistics of the fitted codes; see `code_map`."""
    if how == "raw":
        return fitted, scored
    origin, matrix = (part.to(fitted.dtype) for part in code_map(fitted, how=how))
    return (fitted - origin) @ matrix, (scored - origin) @ matrix


@dataclass(frozen=True)
class HoldOut:
    """The rows that a hold-out adversary is fitted on, and the rows of the batch that it is scored on."""

    z_fit: Tensor  # (M + F, k) prepared codes: of the memory, and of the first F rows of the batch
    x_fit: Tensor  # (M + F, p)
    z_scored: Tensor  # (B - F, k) prepared codes of the remaining rows
    target: Target  # of these rows
    rows: slice  # of these rows in the batch


def hold_out(z: Tensor, target: Target, memory: BatchMemory, *, holdout_fraction: float, how: str) -> HoldOut:
    """Split a batch of codes z (B, k). how: how codes are prepared, see `prepare_codes`."""
    cut = num_fitted_rows(len(z), holdout_fraction=holdout_fraction)
    rows = slice(cut, len(z))
    z_fit, x_fit = memory.with_current(z[:cut], target.values[:cut])
    z_fit, z_scored = prepare_codes(z_fit, z[rows], how=how)
    return HoldOut(z_fit, x_fit, z_scored, target[rows], rows)


def num_fitted_rows(batch_size: int, *, holdout_fraction: float) -> int:
    """The number of a batch's rows on which a hold-out adversary is fitted. The remaining last rows are scored."""
    return min(batch_size - 1, max(1, round(batch_size * (1 - holdout_fraction))))

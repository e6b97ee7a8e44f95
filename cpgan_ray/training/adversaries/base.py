"""What the game asks of an adversary reconstructor, and what its closed-form kinds share."""

from collections import deque
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from cpgan_ray.training.losses import row_errors


@dataclass(frozen=True)
class Target:
    """What is to be reconstructed from a batch of codes: pictures in [-1, 1], as pixels or as principal components.

    Both forms are relative to the mean training picture, so that the mean predictor is the zero vector.
    """

    values: Tensor  # (B, p)
    residual: Tensor  # (B,) squared norm outside the p components; 0 where the target is the pixels
    dimension: int  # of a picture, H * W * C

    def __getitem__(self, rows: slice) -> "Target":
        return Target(self.values[rows], self.residual[rows], self.dimension)

    def errors(self, predicted: Tensor) -> Tensor:
        """Mean squared error per value of each row, (B,)."""
        return row_errors(predicted, self.values, self.residual, dimension=self.dimension)

    def mean_errors(self) -> Tensor:
        """The same for the mean picture, (B,)."""
        return self.errors(torch.zeros_like(self.values))


SMALLEST_VARIANCE = 1e-12
"""Relative to the largest: the square of what float32 can still tell apart, with a margin."""
BLOCK_ROWS = 8192
"""Codes that are in float64 at once."""


class Adversary(Protocol):
    """A reconstructor h: z -> x that improves from release to release."""

    def recover(self, z: Tensor, target: Target) -> tuple[Tensor, slice]:
        """Squared errors (S,) on rows that it was not fitted on, differentiable in z, and which rows of the batch those are."""
        ...

    def improve(self, z: Tensor, target: Target) -> None:
        """Learn from a release."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class EpochFitted(Protocol):
    """An adversary that is fitted on all training codes once per epoch, streamed through it, as the paper has it."""

    def accumulate(self, z: Tensor, target: Target) -> None:
        """Add some rows to its normal equations."""
        ...

    def solve(self) -> None:
        """Fit on what was accumulated and start a new accumulation."""
        ...


class BatchMemory:
    """The last few batches: codes as constants, with their targets. An adversary is fitted on them beside the current batch."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.entries: deque[tuple[Tensor, Tensor]] = deque(maxlen=batches)

    def push(self, z: Tensor, target: Target) -> None:
        if self.batches:
            self.entries.append((z.detach().clone(), target.values))

    def with_current(self, z: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and targets of the memory, then those given: (M + B, k), (M + B, p)."""
        banked = list(self.entries)
        return torch.cat([*(e[0] for e in banked), z]), torch.cat([*(e[1] for e in banked), values])

    def state_dict(self) -> dict[str, Any]:
        return {"entries": list(self.entries)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entries = deque((tuple(e) for e in state["entries"]), maxlen=self.batches)


def code_map(fitted: Tensor, *, how: str) -> tuple[Tensor, Tensor]:
    """Origin (k,) and matrix (k, m) in float64 of the map (z - origin) @ matrix that standardises or whitens codes like `fitted`.

    What hides in directions of low variance counts as much as the rest for an attack on whitened codes. Directions whose variance
    is below the precision of float32 are left out. The statistics are constants in the gradient.
    """
    first, blocks = fitted[0].detach().double(), fitted.detach().split(BLOCK_ROWS)
    if how == "raw":
        return torch.zeros_like(first), torch.diag(torch.ones_like(first))
    shift = reduce(torch.add, ((block.double() - first).sum(0) for block in blocks)) / len(fitted)
    origin = first + shift
    centred = (block.double() - first - shift for block in blocks)  # exactly 0 where all codes are the same
    if how == "standardised":
        scale = (reduce(torch.add, (c.square().sum(0) for c in centred)) / (len(fitted) - 1)).sqrt()
        return origin, torch.diag(1 / torch.where(scale > 0, scale, 1.0))
    values, vectors = torch.linalg.eigh(reduce(torch.add, (c.T @ c for c in centred)) / (len(fitted) - 1))
    kept = values > SMALLEST_VARIANCE * values[-1].clamp(min=torch.finfo(torch.float32).tiny)
    if not bool(kept.any()):  # the same code for every picture
        return origin, torch.zeros_like(vectors[:, :1])
    return origin, vectors[:, kept] / values[kept].sqrt()


def prepare_codes(fitted: Tensor, scored: Tensor, *, how: str) -> tuple[Tensor, Tensor]:
    """Both sets of codes as they are, standardised, or whitened with the statistics of the fitted ones; see `code_map`."""
    if how == "raw":
        return fitted, scored
    origin, matrix = (part.to(fitted.dtype) for part in code_map(fitted, how=how))
    return (fitted - origin) @ matrix, (scored - origin) @ matrix


def split_rows(batch_size: int, *, holdout_fraction: float) -> int:
    """How many of a batch's rows a hold-out adversary is fitted on; the rest, the last ones, are scored."""
    return min(batch_size - 1, max(1, round(batch_size * (1 - holdout_fraction))))

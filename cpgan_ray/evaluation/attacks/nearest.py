"""Nearest neighbours in z: a picture is reconstructed from the pictures with the most similar codes."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, predict, r2_score

NEIGHBOURS = (1, 3, 10, 30, 100, 300, 1000)
BLOCK_VALUES = 1 << 23
"""Number of distances that are in memory at once."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The average of the pictures whose prepared codes are nearest."""

    prepare: CodeMap
    codes: Tensor  # (N, m) prepared
    values: Tensor  # (N, p)
    count: int

    def __call__(self, z: Tensor, /) -> Tensor:
        norms = torch.linalg.vector_norm(self.codes, dim=1).square()
        return predict(lambda block: self.average(block, norms), self.prepare(z), rows=max(1, BLOCK_VALUES // len(self.codes)))

    def average(self, prepared: Tensor, norms: Tensor) -> Tensor:
        """Average of the nearest neighbours. |c|^2 - 2 z . c is the squared distance minus |z|^2, which is the same for all c."""
        nearest = torch.addmm(norms, prepared, self.codes.T, alpha=-2).topk(self.count, largest=False).indices
        return F.embedding_bag(nearest, self.values, mode="mean")  # needs no array of all the neighbours' pictures

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the large parts as numpy arrays: Ray puts these into its object store, and readers share them without a copy."""
        return _unpickled, (self.prepare, self.codes.cpu().numpy(), self.values.cpu().numpy(), self.count)


def _unpickled(prepare: CodeMap, codes: np.ndarray, values: np.ndarray, count: int) -> Neighbours:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return Neighbours(prepare, torch.from_numpy(codes), torch.from_numpy(values), count)


def nearest_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """Nearest neighbours among the standardised or whitened codes of `fit`. The tuning rows choose the number that is averaged."""
    candidates = []
    for how in ("standardised", "whitened"):
        prepare = CodeMap(data.fit.z, how=how)
        codes = predict(prepare, data.fit.z)
        for count in (c for c in NEIGHBOURS if c <= len(codes)):
            attack = Neighbours(prepare, codes, data.fit.target.values, count)
            candidates.append((r2_score(data.tune, attack, space="components"), {"codes": how, "neighbours": count}, attack))
    r2, settings, best = max(candidates, key=lambda c: c[0])
    tune = data.tune_with_mirrored()
    codes = torch.cat([best.codes, predict(best.prepare, tune.z)])
    refitted = Neighbours(best.prepare, codes, torch.cat([best.values, tune.target.values]), best.count)
    return Fitted(refitted, "components", r2, True, settings, before_refit=best)

"""The nearest neighbour in z: whose code is like this one, and what did they look like?"""

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
"""Distances that are in memory at once."""


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
        """|c|^2 - 2 z . c is the squared distance but for |z|^2, which is the same for all c."""
        nearest = torch.addmm(norms, prepared, self.codes.T, alpha=-2).topk(self.count, largest=False).indices
        return F.embedding_bag(nearest, self.values, mode="mean")  # without all the neighbours' pictures side by side

    def __reduce__(self) -> tuple[Any, ...]:
        """The large part as numpy arrays: Ray has them in its object store, and whoever reads them has no copy of their own."""
        return _unpickled, (self.prepare, self.codes.cpu().numpy(), self.values.cpu().numpy(), self.count)


def _unpickled(prepare: CodeMap, codes: np.ndarray, values: np.ndarray, count: int) -> Neighbours:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return Neighbours(prepare, torch.from_numpy(codes), torch.from_numpy(values), count)


def nearest_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """Nearest neighbours among the codes fitted on, standardised or whitened; how many are averaged, by the tuning rows."""
    found = []
    for how in ("standardised", "whitened"):
        prepare = CodeMap(data.fit.z, how=how)
        codes = predict(prepare, data.fit.z)
        for count in (c for c in NEIGHBOURS if c <= len(codes)):
            attack = Neighbours(prepare, codes, data.fit.target.values, count)
            found.append((r2_score(data.tune, attack, space="components"), {"codes": how, "neighbours": count}, attack))
    r2, settings, best = max(found, key=lambda f: f[0])
    return Fitted(best, "components", r2, True, settings)

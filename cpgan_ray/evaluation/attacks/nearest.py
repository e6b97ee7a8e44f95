"""The nearest neighbour in z: whose code is like this one, and what did they look like?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, recovered

NEIGHBOURS = (1, 3, 10, 30, 100, 300, 1000)
BLOCK_VALUES = 1 << 24
"""Values of the neighbours' pictures, or of distances, that are in memory at once."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The average of the pictures whose prepared codes are nearest."""

    prepare: CodeMap
    codes: Tensor  # (N, m) prepared
    values: Tensor  # (N, p)
    count: int

    def __call__(self, z: Tensor, /) -> Tensor:
        parts = []
        rows = max(1, BLOCK_VALUES // max(self.count * self.values.shape[1], len(self.codes)))
        for block in self.prepare(z).split(rows):
            nearest = torch.cdist(block, self.codes).topk(self.count, largest=False).indices
            parts.append(self.values[nearest].mean(1))
        return torch.cat(parts)


def nearest_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """Nearest neighbours among the codes fitted on, standardised or whitened; how many are averaged, by the tuning rows."""
    found = []
    for how in ("standardised", "whitened"):
        prepare = CodeMap(data.fit.z, how=how)
        codes = prepare(data.fit.z)
        for count in (c for c in NEIGHBOURS if c <= len(codes)):
            attack = Neighbours(prepare, codes, data.fit.target.values, count)
            found.append((recovered(data.tune, attack, space="components"), {"codes": how, "neighbours": count}, attack))
    r2, settings, best = max(found, key=lambda f: f[0])
    return Fitted(best, "components", r2, True, settings)

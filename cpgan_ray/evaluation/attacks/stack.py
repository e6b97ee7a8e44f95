"""The weighted average of all attacks of a variant: an attack of its own (Wolpert, Stacked generalization, Neural Networks 5,
1992).

Attacks of different families err differently, so their average recovers more than each. The weights are non-negative and minimise
the squared error on the tuning rows, where they are never worse than the best single attack. They are fitted with the attacks as
they were before these rows were added to their fit, and then applied to the attacks that were fitted on all rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, Reconstructor, pixels_of

MIN_EIGENVALUE = 1e-10
"""Directions in which attacks differ by less than this share of their largest common part have no influence on the weights."""


@dataclass(frozen=True, eq=False)
class Member:
    """An attack with its weight."""

    weight: float
    reconstruct: Reconstructor
    space: str


@dataclass(frozen=True, eq=False)
class Stack:
    """The weighted sum of clipped reconstructions in pixels, relative to the mean picture."""

    members: tuple[Member, ...]
    components: Tensor
    bounds: tuple[Tensor, Tensor] | None

    def __call__(self, z: Tensor, /) -> Tensor:
        total = torch.zeros(len(z), self.components.shape[1], device=z.device)
        for member in self.members:
            pixels = pixels_of(member.reconstruct, z, space=member.space, components=self.components, bounds=self.bounds)
            total.add_(pixels, alpha=member.weight)
        return total


@torch.no_grad()
def products(data: AttackData, attacks: Mapping[str, Fitted]) -> tuple[np.ndarray, np.ndarray, float]:
    """On the tuning rows: inner products of the reconstructions (a, a), of reconstructions and pictures (a,), and of the
    pictures."""
    gram, cross, total = np.zeros((len(attacks), len(attacks))), np.zeros(len(attacks)), 0.0
    for z, x in data.tune.pixel_blocks():
        parts = [
            pixels_of(a.before_refit or a.reconstruct, z, space=a.space, components=data.components, bounds=data.bounds).double()
            for a in attacks.values()
        ]
        flat = torch.stack([part.flatten() for part in parts])
        gram += (flat @ flat.T).cpu().numpy()
        cross += (flat @ x.double().flatten()).cpu().numpy()
        total += float(x.double().square().sum())
    return gram, cross, total


def nonnegative_weights(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """The w >= 0 that minimises w' G w - 2 w' c: non-negative least squares on G^(1/2) w = G^(-1/2) c.

    scipy's active-set method (Lawson and Hanson, Solving least squares problems, 1974) is exact up to rounding.
    """
    from scipy.optimize import nnls

    values, vectors = np.linalg.eigh(gram)
    usable = values > MIN_EIGENVALUE * values[-1]
    if values[-1] <= 0 or not usable.any():  # all reconstructions are the mean picture
        return np.zeros(len(cross))
    root = np.sqrt(values[usable])
    return nnls(root[:, None] * vectors[:, usable].T, vectors[:, usable].T @ cross / root)[0]


def stack_attack(data: AttackData, attacks: Mapping[str, Fitted]) -> Fitted:
    """The weighted average of the attacks, by name. Attacks of weight 0 are left out."""
    gram, cross, total = products(data, attacks)
    weights = nonnegative_weights(gram, cross)
    r2 = float(2 * weights @ cross - weights @ gram @ weights) / total
    used = [(weight, attack) for weight, attack in zip(weights.tolist(), attacks.values(), strict=True) if weight > 0]

    def stack(reconstructors: list[Reconstructor]) -> Stack:
        members = (Member(weight, part, a.space) for (weight, a), part in zip(used, reconstructors, strict=True))
        return Stack(tuple(members), data.components, data.bounds)

    restarts = [
        stack([attack.reconstruct if alone is None else alone for alone, (_, attack) in zip(row, used, strict=True)])
        for row in zip_longest(*(attack.restarts for _, attack in used))
    ]
    return Fitted(
        stack([attack.reconstruct for _, attack in used]),
        "pixels",
        r2,
        all(attack.saturated for attack in attacks.values()),
        {"weights": {name: round(float(weight), 4) for name, weight in zip(attacks, weights, strict=True)}},
        before_refit=stack([attack.before_refit or attack.reconstruct for _, attack in used]),
        restarts=tuple(restarts),
        averaged=all(attack.averaged for _, attack in used if attack.restarts),
    )

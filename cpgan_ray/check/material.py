"""Drawn material: pictures that a code can partly recover."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.common.rng import stream
from cpgan_ray.evaluation.attacks.base import AttackData, Pairs
from cpgan_ray.training.adversaries import Target

RANK = 24
"""Number of directions in which the drawn pictures differ."""


@dataclass(frozen=True)
class Material:
    """The sizes of the drawn material."""

    image_shape: tuple[int, int, int]
    k: int
    seed: int = 0

    @property
    def dimension(self) -> int:
        return int(np.prod(self.image_shape))

    def basis(self) -> Tensor:
        """Orthonormal directions (RANK, D) of the drawn pictures."""
        drawn = stream(self.seed, "check", "basis").standard_normal((self.dimension, min(RANK, self.dimension)))
        return torch.from_numpy(np.linalg.qr(drawn)[0].T.astype(np.float32))

    def pictures(self, count: int, *path: str | int) -> Tensor:
        """Pictures (count, D), relative to their mean."""
        basis = self.basis()
        scales = torch.linspace(2.0, 0.3, len(basis))
        drawn = torch.from_numpy(stream(self.seed, "check", *path).standard_normal((count, len(basis))).astype(np.float32))
        return (drawn * scales) @ basis

    def codes(self, pictures: Tensor) -> Tensor:
        """Codes (count, k): a linear map of the pictures, and a little noise."""
        drawn = stream(self.seed, "check", "encoder").standard_normal((self.dimension, self.k)).astype(np.float32)
        z = pictures @ torch.from_numpy(drawn) / self.dimension**0.5
        noise = stream(self.seed, "check", "noise", len(pictures)).standard_normal(tuple(z.shape)).astype(np.float32)
        return z / z.std() + 0.1 * torch.from_numpy(noise)

    def target(self, pictures: Tensor) -> Target:
        """Pixels as the target."""
        return Target(pictures, torch.zeros(len(pictures)), self.dimension)

    def attack_data(self) -> AttackData:
        """The sets of an attack: 600 rows to fit on, 200 to tune on and 200 to score on."""
        basis = self.basis()
        sets = {}
        for number, (name, count) in enumerate({"fit": 600, "tune": 200, "score": 200}.items()):
            x = self.pictures(count, name)
            target = Target(x @ basis.T, torch.zeros(count), self.dimension)
            sets[name] = Pairs(self.codes(x), target, x, np.arange(count) + 10_000 * number)
        return AttackData(**sets, components=basis, bounds=None, image_shape=self.image_shape, seed=self.seed)

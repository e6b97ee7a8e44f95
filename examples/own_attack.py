"""An attack of your own: ridge regression on the products of pairs of numbers of the code.

    python jobs/attack.py RUN --attacks.names ridge kernel examples/own_attack.py:quadratic
    python -m cpgan_ray.check examples/own_attack.py:quadratic

The function fits on `data.fit`, chooses its settings on `data.tune`, and then fits once more on both. The project scores it on
pictures that it has never seen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, Pairs, r2_score
from cpgan_ray.training.adversaries.linear import LinearMap, NormalEquations

PENALTIES = (1e-4, 1e-2, 1.0)
MAX_NUMBERS = 64


@dataclass(frozen=True, eq=False)
class Quadratic:
    """z -> coordinates on the principal components. A class, not a closure: it travels between processes."""

    prepare: CodeMap
    fit: LinearMap | None = None

    def features(self, z: Tensor) -> Tensor:
        whitened = self.prepare(z)
        first = whitened[:, :MAX_NUMBERS]
        products = first[:, :, None] * first[:, None, :]
        rows, columns = torch.triu_indices(first.shape[1], first.shape[1])
        return torch.cat([whitened, products[:, rows, columns]], 1)

    def __call__(self, z: Tensor, /) -> Tensor:
        assert self.fit is not None
        return self.fit(self.features(z)).float()


def quadratic(data: AttackData, config: AttackConfig) -> Fitted:
    plain = Quadratic(CodeMap(data.fit.z, how="whitened"))
    sums = NormalEquations(plain.features(data.fit.z[:1]).shape[1], len(data.components), device=data.fit.z.device)

    def add(pairs: Pairs) -> None:
        for z, x in pairs.blocks():
            sums.add(plain.features(z), x)

    add(data.fit)
    candidates = [(penalty, Quadratic(plain.prepare, sums.solve(penalty=penalty))) for penalty in PENALTIES]
    r2, penalty, best = max(((r2_score(data.tune, fit, space="components"), p, fit) for p, fit in candidates), key=lambda c: c[0])
    add(data.tune_with_mirrored())
    refitted = Quadratic(plain.prepare, sums.solve(penalty=penalty))
    return Fitted(refitted, "components", r2, saturated=True, settings={"penalty": penalty}, before_refit=best)

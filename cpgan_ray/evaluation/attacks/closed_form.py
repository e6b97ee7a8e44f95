"""The attack in closed form: the optimum of its class, so there is no question whether it was trained long enough."""

from dataclasses import dataclass

from torch import Tensor

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, Pairs, r2_score
from cpgan_ray.training.adversaries.kernel import FourierFeatures
from cpgan_ray.training.adversaries.linear import LinearMap, NormalEquations

RIDGE_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True, eq=False)
class Affine:
    """An affine map of a prepared code, or of its Fourier features if there are any."""

    prepare: CodeMap
    weight: Tensor  # (q, p)
    bias: Tensor  # (p,)
    features: FourierFeatures | None = None
    width: float = 1.0

    def __call__(self, z: Tensor, /) -> Tensor:
        inputs = self.prepare(z)
        if self.features is not None:
            inputs = self.features(inputs, width=self.width)
        return inputs @ self.weight + self.bias


def affine_map(prepare: CodeMap, fit: LinearMap, features: FourierFeatures | None = None, width: float = 1.0) -> Affine:
    return Affine(prepare, fit.weight.float(), fit.bias.float(), features, width)


@dataclass(frozen=True, eq=False)
class RidgeSums:
    """The normal equations of an affine map of whitened codes to the pictures."""

    prepare: CodeMap
    sums: NormalEquations
    space: str

    def add(self, pairs: Pairs) -> None:
        for z, x in pairs.blocks() if self.space == "components" else pairs.pixel_blocks():
            self.sums.add(self.prepare(z), x)

    def solve(self, penalty: float) -> Affine:
        return affine_map(self.prepare, self.sums.solve(penalty=penalty))

    def of(self, pairs: Pairs) -> "RidgeSums":
        """The normal equations of other rows, for the same map of the codes."""
        other = RidgeSums(self.prepare, NormalEquations(*self.sums.zx.shape, device=self.sums.zx.device), self.space)
        other.add(pairs)
        return other


def ridge_sums(data: AttackData, *, space: str) -> RidgeSums:
    """The normal equations of the rows in `fit`."""
    prepare = CodeMap(data.fit.z, how="whitened")
    outputs = len(data.components) if space == "components" else data.fit.target.dimension
    sums = RidgeSums(prepare, NormalEquations(prepare.matrix.shape[1], outputs, device=data.fit.z.device), space)
    sums.add(data.fit)
    return sums


def best_affine(data: AttackData, sums: RidgeSums) -> tuple[float, float, Affine]:
    """The ridge solution with the penalty that is best on the tuning rows: R2 on these rows, penalty, map.

    The squared error of each penalty follows from the normal equations of the tuning rows, so that their pictures are read and
    predicted once, not once for each penalty. (What the components do not explain of them is the same for all penalties.)
    """
    tune = sums.of(data.tune).sums
    penalty = min(RIDGE_PENALTIES, key=lambda penalty: tune.squared_error(sums.sums.solve(penalty=penalty)))
    best = sums.solve(penalty)
    return r2_score(data.tune, best, space=sums.space), penalty, best


def ridge_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """The best affine reconstruction of the pixels. Codes are whitened, so a small scale protects no direction."""
    sums = ridge_sums(data, space="pixels")
    r2, penalty, best = best_affine(data, sums)
    sums.add(data.tune_with_mirrored())
    return Fitted(sums.solve(penalty), "pixels", r2, True, {"penalty": penalty}, before_refit=best)

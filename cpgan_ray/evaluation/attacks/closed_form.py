"""Attacks in closed form: each is the optimum of its class, so there is no question whether it was trained long enough."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from cpgan_ray.common.rng import stream
from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import GAIN, IDLE_DOUBLINGS, AttackData, CodeMap, Fitted, Mean, Reconstructor, r2_score
from cpgan_ray.training.adversaries.kernel import FourierFeatures, median_distance
from cpgan_ray.training.adversaries.linear import LinearMap, NormalEquations

RIDGE_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
KERNEL_BANDWIDTHS = (0.5, 1.0, 2.0, 4.0)
KERNEL_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


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


def best_affine(data: AttackData, *, space: str) -> tuple[float, float, Affine]:
    """The ridge solution on whitened codes with the penalty that is best on the tuning rows: R2 on these rows, penalty, map."""
    prepare = CodeMap(data.fit.z, how="whitened")
    blocks: Iterable[tuple[Tensor, Tensor]] = data.fit.blocks() if space == "components" else data.fit.pixel_blocks()
    sums: NormalEquations | None = None
    for z, x in blocks:
        sums = sums or NormalEquations(prepare.matrix.shape[1], x.shape[1])
        sums.add(prepare(z), x)
    assert sums is not None
    candidates = (
        (penalty, affine_map(prepare, sums.solve(penalty=penalty))) for penalty in RIDGE_PENALTIES
    )  # a generator: only one map at a time is in memory
    return max(((r2_score(data.tune, fit, space=space), penalty, fit) for penalty, fit in candidates), key=lambda c: c[0])


def ridge_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """The best affine reconstruction of the pixels. Codes are whitened, so a small scale protects no direction."""
    r2, penalty, best = best_affine(data, space="pixels")
    return Fitted(best, "pixels", r2, True, {"penalty": penalty})


def kernel_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """RBF kernel ridge regression with random Fourier features, from standardised or whitened codes to the principal components.

    Bandwidth and penalty are chosen on the tuning rows with few features. Then the number of features is doubled until that gains
    nothing. Restarts draw other features; their average is used if it is better.
    """

    def fit(how: str, bandwidth: float, features: int, restart: int, penalties: Iterable[float]) -> tuple[float, float, Affine]:
        prepare = CodeMap(data.fit.z, how=how)
        codes = prepare(data.fit.z[:512])
        width = bandwidth * median_distance(codes)
        rng = stream(data.seed, "attack", "kernel", features, restart)
        phi = FourierFeatures(codes.shape[1], features, rng=rng, device=codes.device)
        sums = NormalEquations(features, data.fit.target.values.shape[1])
        for z, x in data.fit.blocks():
            sums.add(phi(prepare(z), width=width), x)
        candidates = ((penalty, affine_map(prepare, sums.solve(penalty=penalty), phi, width)) for penalty in penalties)
        scored = ((r2_score(data.tune, candidate, space="components"), penalty, candidate) for penalty, candidate in candidates)
        return max(scored, key=lambda s: s[0])

    limit = config.kernel_features
    features = max(1, limit // 8)
    grid = [(how, bandwidth) for how in ("standardised", "whitened") for bandwidth in KERNEL_BANDWIDTHS]
    trials = [(fit(how, bandwidth, features, 0, KERNEL_PENALTIES), how, bandwidth) for how, bandwidth in grid]
    (r2, penalty, best), how, bandwidth = max(trials, key=lambda t: t[0][0])
    budgets, idle = [(features, r2)], 0
    while features < limit and idle < IDLE_DOUBLINGS:
        features = min(2 * features, limit)
        doubled = fit(how, bandwidth, features, 0, KERNEL_PENALTIES)
        budgets.append((features, doubled[0]))
        idle = idle + 1 if doubled[0] - r2 < GAIN else 0
        if doubled[0] > r2:
            r2, penalty, best = doubled
    saturated = idle == IDLE_DOUBLINGS
    restarts: list[Reconstructor] = [best]
    restarts += [fit(how, bandwidth, features, restart, (penalty,))[2] for restart in range(1, config.restarts)]
    averaged = Mean(tuple(restarts))
    averaged_r2 = r2_score(data.tune, averaged, space="components")
    settings: dict[str, object] = {"codes": how, "bandwidth": bandwidth, "penalty": penalty, "features": features}
    if averaged_r2 > r2:
        return Fitted(averaged, "components", averaged_r2, saturated, settings | {"averaged": len(restarts)}, tuple(budgets))
    return Fitted(best, "components", r2, saturated, settings, tuple(budgets))

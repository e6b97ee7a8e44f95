"""Kernel ridge regression (KRR) with two kernels, from standardised or whitened codes to the principal components.

With r = |z - z'|: RBF exp(-r^2 / (2 width^2)), and the isotropic Laplace kernel exp(-r / width), which is rougher and therefore
better on codes in many dimensions. The width is a bandwidth times the median distance between codes.

With at most `attacks.kernel_rows` rows KRR is exact: alpha = (K + n penalty I)^-1 (x - mean(x)), by a Cholesky factor. With more
rows it is approximated by random Fourier features cos(z . omega / width + b) (Rahimi and Recht, Random features for large-scale
kernel machines, NIPS 2007): by Bochner's theorem omega has the density whose characteristic function is the kernel, which is
Gaussian for RBF, and a multivariate Cauchy density for Laplace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cpgan_ray.common.rng import stream
from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import (
    AttackData,
    CodeMap,
    Fitted,
    Pairs,
    averaged_if_better,
    is_saturated_on,
    r2_score,
)
from cpgan_ray.evaluation.attacks.closed_form import Affine, affine_map
from cpgan_ray.evaluation.attacks.kernel_system import KERNELS, Kernel, KernelMap, KernelSystem, merge_rows
from cpgan_ray.training.adversaries.cholesky import Cholesky
from cpgan_ray.training.adversaries.kernel import FourierFeatures, median_distance
from cpgan_ray.training.adversaries.linear import NormalEquations

BANDWIDTHS = tuple(round(0.35 * 2 ** (i / 2), 3) for i in range(8))
"""From 0.35 to 4, in steps of sqrt(2)."""
LOG_RIDGES = (-10, 8)
"""Smallest and largest exponent of penalty * rows, in half decades: from 1e-5 to 1e4."""
UNIT_ROWS = 512
"""Number of codes whose median distance is the width of bandwidth 1."""
SEARCH_ROWS, REFINE_ROWS = 2000, 6000
"""Numbers of rows, drawn at random, on which all kernels are tried, and on which the best settings are improved."""


@dataclass(frozen=True)
class Settings:
    """A point of the grid."""

    codes: str  # "standardised" or "whitened"
    kernel: Kernel
    bandwidth: int  # index into BANDWIDTHS
    log_ridge: int  # log10(penalty * rows) in half steps

    def described(self, penalty: float) -> dict[str, object]:
        """The entry in the report."""
        return {
            "codes": self.codes,
            "kernel": self.kernel,
            "bandwidth": BANDWIDTHS[self.bandwidth],
            "penalty": float(f"{penalty:.3g}"),
        }

    @property
    def valid(self) -> bool:
        return 0 <= self.bandwidth < len(BANDWIDTHS) and LOG_RIDGES[0] <= self.log_ridge <= LOG_RIDGES[1]


class Stage:
    """Exact KRR on some rows, scored on the tuning rows. Keeps the last kernel matrix, for other penalties, the best fit, and if
    `keep_factor` is set its factor, for a refit with further rows."""

    def __init__(self, data: AttackData, maps: Mapping[str, CodeMap], z: Tensor, x: Tensor, *, keep_factor: bool = False) -> None:
        self.keep_factor = keep_factor
        self.best_factor: Cholesky | None = None
        self.data, self.maps, self.z, self.x, self.rows = data, maps, z, x, merge_rows(z, x)
        self.scores: dict[Settings, float] = {}
        self.system: KernelSystem | None = None
        self.matrix: tuple[object, ...] = ()
        self.best: tuple[Settings, KernelMap] | None = None

    def penalty(self, settings: Settings) -> float:
        return 10 ** (settings.log_ridge / 2) / self.rows.total

    def width(self, settings: Settings) -> float:
        prepared = self.maps[settings.codes](self.data.fit.z[:UNIT_ROWS])
        return BANDWIDTHS[settings.bandwidth] * median_distance(prepared, max_codes=UNIT_ROWS)

    def fit(self, settings: Settings) -> KernelMap | None:
        matrix = (settings.codes, settings.kernel, settings.bandwidth)
        if self.system is None or self.matrix != matrix:
            self.system = None  # two matrices would need twice the memory
            self.system = KernelSystem(self.rows, self.maps[settings.codes], settings.kernel, width=self.width(settings))
            self.matrix = matrix
        return self.system.solve(self.penalty(settings))

    def r2(self, settings: Settings) -> float:
        """R2 on the tuning rows; -inf if there is no such fit."""
        if settings not in self.scores:
            fit = self.fit(settings) if settings.valid else None
            r2 = float("-inf") if fit is None else r2_score(self.data.tune, fit, space="components")
            if fit is not None and r2 > max(self.scores.values(), default=float("-inf")):
                self.best = settings, fit
                self.keep_best_factor()
            self.scores[settings] = r2
        return self.scores[settings]

    def keep_best_factor(self) -> None:
        """Keep the factor of the last fit."""
        self.best_factor = None  # before the copy, which needs the memory
        if self.keep_factor and self.system is not None and self.system.factor is not None:
            self.best_factor = self.system.factor.copy()

    def refitted(self, settings: Settings, pairs: Pairs) -> KernelMap | None:
        """The fit with the best settings on the rows of this stage and of `pairs` together, from the factor of the best fit unless
        rows have to be merged."""
        z, x = torch.cat([self.z, pairs.z]), torch.cat([self.x, pairs.target.values])
        merged = merge_rows(z, x)
        factor, system = self.best_factor, self.system
        if factor is not None and system is not None and len(merged.z) == len(z):
            return system.extended(factor, merged, 10 ** (settings.log_ridge / 2) / merged.total)
        self.system = self.best_factor = None
        return Stage(self.data, self.maps, z, x).fit(settings)

    def climb(self, start: Settings, fields: Sequence[str]) -> Settings:
        """From `start`, change one of the fields by one step as long as that raises R2."""
        best, moved = start, True
        while moved:
            moved = False
            for field, step in ((field, step) for field in fields for step in (-1, 1)):
                while self.r2(candidate := replace(best, **{field: getattr(best, field) + step})) > self.r2(best):
                    best, moved = candidate, True
        return best


def kernel_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """KRR with the kernel, the map of the codes, the bandwidth and the penalty that are best on the tuning rows: exact with at most
    `attacks.kernel_rows` rows, otherwise with random features."""
    return features_attack(data, config) if len(data.fit) > config.kernel_rows else exact_attack(data, limit=config.kernel_rows)


def search_settings(data: AttackData) -> tuple[Settings, Stage]:
    """The best settings by exact KRR on at most REFINE_ROWS random rows of `fit`, and the stage that found them.

    The penalty is chosen for every kernel, map of the codes and third bandwidth on SEARCH_ROWS rows. From the best settings of each
    kernel on, penalty and bandwidth are improved step by step, there and on REFINE_ROWS rows.
    """
    order = torch.from_numpy(stream(data.seed, "attack", "kernel", "rows").permutation(len(data.fit)))
    search = new_stage(data, data.fit, order[:SEARCH_ROWS])
    best: dict[Kernel, Settings] = {}
    for kernel in KERNELS:
        starts = (Settings(how, kernel, i, 0) for how in search.maps for i in range(1, len(BANDWIDTHS), 3))
        coarse = max((search.climb(start, ["log_ridge"]) for start in starts), key=search.r2)
        best[kernel] = search.climb(coarse, ["log_ridge", "bandwidth"])
    if len(data.fit) > SEARCH_ROWS:
        search = new_stage(data, data.fit, order[:REFINE_ROWS])
        best = {kernel: search.climb(settings, ["log_ridge", "bandwidth"]) for kernel, settings in best.items()}
    return max(best.values(), key=search.r2), search


def new_stage(data: AttackData, pairs: Pairs, rows: Tensor | slice, *, keep_factor: bool = False) -> Stage:
    maps = {how: CodeMap(data.fit.z, how=how) for how in ("standardised", "whitened")}
    return Stage(data, maps, pairs.z[rows], pairs.target.values[rows], keep_factor=keep_factor)


def exact_attack(data: AttackData, *, limit: int) -> Fitted:
    """Exact KRR on `fit` and, up to `limit` rows, on shifted copies of its pictures.

    The penalty is chosen again for all rows, starting from the same penalty * rows as on fewer rows: in the equivalent Gaussian
    process it is the variance of the noise, which does not depend on their number. Last, KRR is fitted on `fit` and `tune`
    together.
    """
    settings, stage = search_settings(data)
    pairs = data.fit_with_shifted() if len(data.fit) < limit else data.fit
    count = min(len(pairs), max(len(data.fit), limit))
    if stage.rows.total < count:
        del stage
        stage = new_stage(data, pairs, slice(0, count), keep_factor=True)
        settings = stage.climb(settings, ["log_ridge"])
    assert stage.best is not None  # the only fit that is kept; another one may be as good
    settings, before = stage.best
    r2, penalty = stage.r2(settings), stage.penalty(settings)
    refitted = stage.refitted(settings, data.tune_with_mirrored()) or before
    described = settings.described(penalty) | {"rows": count}
    return Fitted(refitted, "components", r2, True, described, before_refit=before)


@dataclass(frozen=True, eq=False)
class FeatureSums:
    """Normal equations of the random features of some rows."""

    phi: FourierFeatures
    prepare: CodeMap
    width: float
    sums: NormalEquations

    def add(self, pairs: Pairs) -> None:
        for z, x in pairs.blocks():
            self.sums.add(self.phi(self.prepare(z), width=self.width), x)

    def solve(self, penalty: float) -> Affine:
        return affine_map(self.prepare, self.sums.solve(penalty=penalty), self.phi, self.width)


def features_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """KRR with random Fourier features on all of `fit`. The number of features is doubled until that gains nothing.

    Restarts draw other features; their average is used if it is better on the tuning rows.
    """
    settings, stage = search_settings(data)
    prepare, width = stage.maps[settings.codes], stage.width(settings)
    del stage
    device, outputs = data.fit.z.device, data.fit.target.values.shape[1]

    def sums_of(features: int, restart: int) -> FeatureSums:
        rng = stream(data.seed, "attack", "kernel", features, restart)
        phi = FourierFeatures(prepare.matrix.shape[1], features, rng=rng, device=device, cauchy=settings.kernel == "laplace")
        sums = FeatureSums(phi, prepare, width, NormalEquations(features, outputs, device=device))
        sums.add(data.fit)
        return sums

    def best_fit(sums: FeatureSums) -> tuple[float, float, Affine]:
        around = range(settings.log_ridge - 3, settings.log_ridge + 4)
        fits = ((penalty, sums.solve(penalty)) for penalty in (10 ** (i / 2) / len(data.fit) for i in around))
        return max(((r2_score(data.tune, fit, space="components"), penalty, fit) for penalty, fit in fits), key=lambda f: f[0])

    features, limit = max(1, config.kernel_features // 8), config.kernel_features
    sums = sums_of(features, 0)
    r2, penalty, fit = best_fit(sums)
    budgets = [(features, r2)]
    while not is_saturated_on(data, fit, budgets, space="components") and features < limit:
        features = min(2 * features, limit)
        doubled = sums_of(features, 0)
        doubled_r2, doubled_penalty, doubled_fit = best_fit(doubled)
        budgets.append((features, doubled_r2))
        if doubled_r2 > r2:
            r2, penalty, fit, sums = doubled_r2, doubled_penalty, doubled_fit, doubled
    saturated = is_saturated_on(data, fit, budgets, space="components")
    features = len(sums.phi.phase)
    all_sums = [sums, *(sums_of(features, restart) for restart in range(1, config.restarts))]
    before = (fit, *(other.solve(penalty) for other in all_sums[1:]))
    tune = data.tune_with_mirrored()
    for other in all_sums:
        other.add(tune)
    refitted = tuple(other.solve(penalty) for other in all_sums)
    described = settings.described(penalty) | {"features": features}
    return averaged_if_better(data, before, refitted, "components", saturated, described, tuple(budgets))

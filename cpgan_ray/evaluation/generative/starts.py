"""Predictions of the pictures that a flow is fitted on, each by kernel ridge regression on codes of other people.

On the rows that an attack was fitted on, its predictions are far better than on any other code, and a flow from there would learn
to trust them. So the people are divided into FOLDS parts, and the pictures of each are predicted by a fit on the others; the
tuning rows are predicted by the first of these fits.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from cpgan_ray.common.rng import stream
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, Reconstructor
from cpgan_ray.evaluation.attacks.kernel import BANDWIDTHS, UNIT_ROWS, search_settings
from cpgan_ray.evaluation.attacks.kernel_system import Kernel, KernelSystem, merge_rows
from cpgan_ray.evaluation.generative.flow import FlowRows
from cpgan_ray.training.adversaries.kernel import median_distance

FOLDS = 2
MAX_FOLD_ROWS = 8192
"""Largest number of codes that a fold's prediction is fitted on."""
MAX_FLOW_ROWS = 32_768
"""Largest number of codes that a flow is fitted on."""


@dataclass(frozen=True)
class KernelSettings:
    """Settings of a kernel ridge regression that hold for any number of rows."""

    codes: str  # "standardised" or "whitened"
    kernel: Kernel
    bandwidth: float
    ridge: float  # penalty times rows: the variance of the noise in the equivalent Gaussian process


def kernel_settings(data: AttackData, fitted: Fitted | None) -> KernelSettings:
    """The settings of a fitted kernel attack; if there is none, those that are best on the tuning rows."""
    if fitted is not None and fitted.settings.keys() >= {"codes", "kernel", "bandwidth", "penalty"}:
        of = cast("dict[str, Any]", fitted.settings)
        rows = of["rows"] if "rows" in of else len(data.fit)
        return KernelSettings(of["codes"], of["kernel"], of["bandwidth"], of["penalty"] * rows)
    best, _ = search_settings(data)
    return KernelSettings(best.codes, best.kernel, BANDWIDTHS[best.bandwidth], 10 ** (best.log_ridge / 2))


def fit_rows(data: AttackData, settings: KernelSettings, rows: np.ndarray) -> Reconstructor:
    """The prediction that is fitted on some rows of `fit`. A penalty that is too small for the precision is raised tenfold."""
    prepare = CodeMap(data.fit.z, how=settings.codes)
    width = settings.bandwidth * median_distance(prepare(data.fit.z[:UNIT_ROWS]), max_codes=UNIT_ROWS)
    of = torch.from_numpy(rows).to(data.fit.z.device)
    merged = merge_rows(data.fit.z[of], data.fit.target.values[of])
    system, penalty = KernelSystem(merged, prepare, settings.kernel, width=width), settings.ridge / merged.total
    while (fit := system.solve(penalty)) is None:
        penalty *= 10
    return fit


def predicted_rows(data: AttackData, fitted: Fitted | None) -> tuple[FlowRows, FlowRows]:
    """The rows of `fit` and those of `tune`, each with its prediction.

    fitted: the kernel attack on these codes, if there is one.
    """
    settings, rng = kernel_settings(data, fitted), stream(data.seed, "generative", "folds")
    people, person = np.unique(data.fit.identity, return_inverse=True)
    fold = rng.permutation(len(people))[person] % FOLDS
    start, tune_start = torch.empty_like(data.fit.target.values), torch.empty_like(data.tune.target.values)
    for number in range(FOLDS):
        others, own = np.flatnonzero(fold != number), torch.from_numpy(np.flatnonzero(fold == number)).to(start.device)
        if len(others) > MAX_FOLD_ROWS:
            others = np.sort(rng.choice(others, MAX_FOLD_ROWS, replace=False))
        prediction = fit_rows(data, settings, others)
        start[own] = prediction(data.fit.z[own])
        if number == 0:
            tune_start = prediction(data.tune.z)
    fit = limited(FlowRows(data.fit.z, start, data.fit.target.values), rng)
    return fit, FlowRows(data.tune.z, tune_start, data.tune.target.values)


def limited(rows: FlowRows, rng: np.random.Generator) -> FlowRows:
    """At most MAX_FLOW_ROWS of the rows, drawn at random."""
    if len(rows) <= MAX_FLOW_ROWS:
        return rows
    of = torch.from_numpy(np.sort(rng.choice(len(rows), MAX_FLOW_ROWS, replace=False))).to(rows.x.device)
    return FlowRows(rows.z[of], rows.start[of], rows.x[of])

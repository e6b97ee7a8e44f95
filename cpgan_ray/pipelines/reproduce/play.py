"""Playing one cell of a comparison: make the codes, attack them, and check the Gaussian mixture against theory."""

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray import theory
from cpgan_ray.analysis.cells import CELL, Cell
from cpgan_ray.common.atomic_io import atomic_path, make_folder, write_text
from cpgan_ray.common.process import set_up_process
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.datasets.gaussian import mixture
from cpgan_ray.evaluation.degenerate import code_warnings, says_nothing
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, fit_in_process, trained_against
from cpgan_ray.evaluation.report.panels import attack_panels
from cpgan_ray.evaluation.scoring import RowErrors, interval
from cpgan_ray.evaluation.tournament import TournamentResult, as_json, score_attacks
from cpgan_ray.evaluation.utility import utility_of
from cpgan_ray.mechanisms import MECHANISMS, Released
from cpgan_ray.mechanisms.base import samples

NO_NOISE = 1e-6
"""Share of a code's variance that rounding to float32 may make."""


def play(cell: Cell, config: Config, folder: Path) -> None:
    """Make the codes, attack them, and leave `cell.json`, written last, `errors.npz` and pictures in the cell's folder.

    A training that diverges is a result too: `cell.json` then says how it failed.
    """
    started = time.perf_counter()
    set_up_process(threads=config.runtime.threads or 1)
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    make_folder(make_folder(folder.parent) / folder.name)
    mechanism = MECHANISMS[cell.mechanism]
    dataset = load(config, progress=False)
    seeded = dataclasses.replace(config, seed=cell.seed)
    try:
        released = mechanism.release(seeded, cell.setting, dataset)
    except FloatingPointError as e:
        write(folder, {"cell": asdict(cell), "failed": str(e)})
        return
    context = EvaluationContext(dataset, released.codes, config.attacks, cell.seed, trained_against(config), config.data.labels)
    warnings = code_warnings(released.codes, dataset, config.data.labels, logits=released.logits, seed=cell.seed)
    todo = attack_specs(config.attacks, dataset, brief=says_nothing(warnings))
    result = score_attacks(fit_in_process(todo, context, done=lambda made: None), context)
    utility = utility_of(released.logits, dataset, config.data.labels, seed=cell.seed)
    values = {"cell": asdict(cell), "k": released.codes["test"].shape[1], "utility": utility, **as_json(result)}
    values |= {"warnings": [asdict(warning) for warning in warnings]}
    values |= {"direct": direct(released, dataset, result, seed=cell.seed), "data": dataset.digest}
    if config.data.dataset == "gaussian":
        values["theory"] = held_to_theory(released, dataset, values, seed=config.data.mixture_seed)
    values |= {"seconds": round(time.perf_counter() - started, 1)}
    for name, picture in attack_panels(result, context, undefended=None).items():
        with atomic_path(folder / f"{name}.png") as temporary:
            picture.save(temporary, "PNG")
    rows = result.strongest.errors
    with atomic_path(folder / "errors.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, errors=rows.errors, mean_errors=rows.mean_errors, identity=rows.identity)
    write(folder, values)


def write(folder: Path, values: Mapping[str, Any]) -> None:
    write_text(folder / CELL, json.dumps(values, indent=1) + "\n")


def direct(released: Released, dataset: Dataset, result: TournamentResult, *, seed: int) -> dict[str, float] | None:
    """R2 of the code itself as a reconstruction, where it is a sample: no attack at all, but it may be the strongest."""
    if released.direct is None:
        return None
    rows = result.strongest.errors
    errors = np.square(released.direct - samples(dataset, "test"), dtype=np.float64).mean(axis=1)
    found = RowErrors(errors, rows.mean_errors, rows.identity)
    low, high = interval(found, seed=seed)
    return {"r2": found.r2, "low": low, "high": high}


def held_to_theory(released: Released, dataset: Dataset, values: Mapping[str, Any], *, seed: int) -> dict[str, float]:
    """How a code of the Gaussian mixture stands to the best one possible, by the population's moments.

    `accuracy`, `mse`: of the best classifier and the best linear attack on a linear code's directions, which are found from the
    codes themselves, with what these do not explain as its noise; `shortfall`: of this MSE below the frontier's at this accuracy.
    `measured_shortfall`: of the strongest fresh attack's below the exact attacker's frontier at the measured accuracy, which may be
    off by 0.005.
    `exact_mse`, `exact_shortfall`: the same of the best attack of any kind, of one number without noise.
    """
    drawn = mixture(seed)
    moments = theory.population_moments(drawn.mean, within=drawn.covariance)
    x, z = (v.astype(np.float64) for v in (samples(dataset, "train"), released.codes["train"]))
    directions, noise_variance = linear_code(x * dataset.info.unit, z)
    accuracy = theory.bayes_accuracy(directions, mean=moments.mean, within=moments.within, noise_variance=noise_variance)
    mse = theory.lmmse(directions, total=moments.total, noise_variance=noise_variance)
    short = float(theory.shortfall([accuracy], [mse], moments=moments)[0])
    found, fresh = values["utility"]["accuracy"], min(a["mse_raw"] for a in values["attacks"])
    measured = theory.shortfall([found], [fresh], moments=moments, attacker="exact", accuracy_tolerance=0.005)
    told = {"accuracy": accuracy, "mse": mse, "shortfall": short, "measured_accuracy": found, "measured_mse": fresh}
    told |= {"measured_shortfall": float(measured[0])}
    if len(directions) == 1 and noise_variance == 0:
        exact = theory.mmse(directions[0], mean=moments.mean, within=moments.within)
        told |= {"exact_mse": exact}
        told |= {"exact_shortfall": float(theory.shortfall([accuracy], [exact], moments=moments, attacker="exact")[0])}
    return told


def linear_code(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, float]:
    """A (k, d) and s^2 of codes z = A x + noise of covariance s^2 I, as good as (N, k) codes z of samples x (N, d): of noisy ones
    those made white by their noise, s = 1; of others themselves, s = 0."""
    x, z = x - x.mean(axis=0), z - z.mean(axis=0)
    directions = np.linalg.lstsq(x, z, rcond=None)[0].T
    left = z - x @ directions.T
    if np.square(left).mean() <= NO_NOISE * np.square(z).mean():
        return directions, 0.0
    return np.linalg.solve(np.linalg.cholesky(left.T @ left / len(left)), directions), 1.0

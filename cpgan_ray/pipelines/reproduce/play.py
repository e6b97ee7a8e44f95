"""One cell of a comparison: compute its codes, attack them, and compare codes of the Gaussian mixture with theory."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.analysis.cells import CELL, Cell
from cpgan_ray.common.atomic_io import atomic_path, make_folder
from cpgan_ray.common.json_files import write_json
from cpgan_ray.common.process import set_up_process
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, load, task_of
from cpgan_ray.data.datasets.gaussian import mixture
from cpgan_ray.evaluation.client import client_cost
from cpgan_ray.evaluation.degenerate import code_warnings, is_uninformative
from cpgan_ray.evaluation.late_tasks import late_tasks
from cpgan_ray.evaluation.report.paired import write_rows
from cpgan_ray.evaluation.report.panels import attack_panels
from cpgan_ray.evaluation.report.report import rows_of
from cpgan_ray.evaluation.scoring import RowErrors, interval, paired_difference
from cpgan_ray.evaluation.tournament import TournamentResult
from cpgan_ray.evaluation.tournament_numbers import as_json, excess_as_json, failed_tournament
from cpgan_ray.evaluation.utility import head_answers, utility_metrics
from cpgan_ray.mechanisms import Released
from cpgan_ray.mechanisms.base import samples
from cpgan_ray.pipelines.reproduce.cell_attacks import attack, context_of
from cpgan_ray.pipelines.reproduce.cell_config import cell_config
from cpgan_ray.pipelines.reproduce.mechanisms import add, release
from cpgan_ray.pipelines.reproduce.provenance import provenance

NO_NOISE = 1e-6
"""A residual variance up to this share of the code's variance is float32 rounding."""


def play(
    cell: Cell, config: Config, folder: Path, grids: Mapping[str, str], mechanisms: Sequence[str] = (), *, final: bool = False
) -> None:
    """Compute the codes and attack them, scored on the test split or on the final split. Writes pictures, `errors.npz` and, as the
    last file, `cell.json` to the cell's folder.

    A training that diverges is also a result: `cell.json` then contains the error. grids: where its setting comes from
    (`Grids.provenance`); mechanisms: pinned names, of which those of the user's own code are made known in this process.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    set_up_process(threads=config.runtime.threads or 1)
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    make_folder(make_folder(folder.parent) / folder.name)
    add(mechanisms)
    dataset = load(config, progress=False)
    dataset = dataset.open_final() if final else dataset
    try:
        released = release(cell.mechanism, cell_config(cell, config), cell.setting, dataset)
    except FloatingPointError as e:
        write_json(folder / CELL, {"cell": asdict(cell), "grids": dict(grids), "made_by": provenance(config), "failed": str(e)})
        return
    trained = time.process_time()
    task, context = task_of(dataset, config.data.labels), context_of(released, cell, config, dataset)
    warnings = code_warnings(released.codes, dataset, task, logits=released.logits, seed=cell.seed)
    result = attack(released, context, brief=is_uninformative(warnings))
    warnings = [*warnings, *([failure] if (failure := failed_tournament(result)) is not None else [])]
    utility = utility_metrics(released.logits, dataset, task, seed=cell.seed)
    values = {"cell": asdict(cell), "grids": dict(grids), "made_by": provenance(config)}
    values |= {"split": "final" if final else "test", "k": released.codes["test"].shape[1], "utility": utility, **as_json(result)}
    late = late_tasks(context)
    values |= {"late_tasks": None if late is None else late.as_json()}
    network = released.encoder if released.client is None else released.client
    client = client_cost(network, released.codes["train"], image_shape=dataset.image_shape, bits=released.bits)
    values |= {"warnings": [asdict(warning) for warning in warnings], "client": asdict(client)}
    values |= {"cost": {} if released.cloud is None else {"utility_head": released.cloud._asdict()}}
    rows = result.strongest.errors
    itself, direct = direct_errors(released, dataset, rows), None
    if itself is not None:
        direct = {"r2": itself.r2, **dict(zip(("low", "high"), interval(itself, seed=cell.seed), strict=True))}
        if itself.r2 > rows.r2:
            rows = itself
            values["privacy"] |= excesses(itself, result, seed=cell.seed)
    values |= {"direct": direct, "data": dataset.digest}
    if config.data.dataset == "gaussian":
        values["theory"] = compare_with_theory(released, dataset, values, seed=config.data.mixture_seed)
    values |= {"seconds": round(time.perf_counter() - started, 1)}
    values |= {"cpu_s": {"training": round(trained - cpu_started, 2), "attacks": round(time.process_time() - trained, 2)}}
    for name, picture in attack_panels(result, context, undefended=None).items():
        with atomic_path(folder / f"{name}.png") as temporary:
            picture.save(temporary, "PNG")
    write_rows(folder, dataclasses.replace(rows_of(result, head_answers(released.logits, dataset, task)), strongest=rows))
    write_json(folder / CELL, values)


def direct_errors(released: Released, dataset: Dataset, rows: RowErrors) -> RowErrors | None:
    """Errors of the code itself as a reconstruction, if it is a sample: it needs no attack, but may be the strongest one.

    rows: of an attack on the same score set.
    """
    if released.direct is None:
        return None
    errors = np.square(released.direct - samples(dataset, "test"), dtype=np.float64).mean(axis=1)
    return RowErrors(errors, rows.mean_errors, rows.identity)


def excesses(rows: RowErrors, result: TournamentResult, *, seed: int) -> dict[str, Any]:
    """The excess of these errors over the answers floor and over the label floor, as in the report of the tournament."""
    floors = {"excess": result.answers_floor, "label_excess": result.floor}
    return {
        name: None if floor is None else excess_as_json(paired_difference(rows, floor.errors, seed=seed))
        for name, floor in floors.items()
    }


def compare_with_theory(released: Released, dataset: Dataset, values: Mapping[str, Any], *, seed: int) -> dict[str, float]:
    """Compare a code of the Gaussian mixture with the best possible code, using the population's moments.

    `accuracy`, `mse`: of the best classifier and of the best linear attack on a linear code with the same directions, which are
    estimated from the codes; the unexplained part of the codes counts as noise.
    `shortfall`: how far this MSE is below the frontier at this accuracy.
    `measured_shortfall`: how far the MSE of the strongest fresh attack is below the frontier of the exact attacker at the measured
    accuracy; an error of 0.005 in this accuracy is tolerated.
    `exact_mse`, `exact_shortfall`: `mse` and `shortfall` for the best attack of any kind; only for codes of one number without
    noise.
    """
    from cpgan_ray import theory  # takes 0.5 s

    data = mixture(seed)
    moments = theory.population_moments(data.mean, within=data.covariance)
    x, z = (v.astype(np.float64) for v in (samples(dataset, "train"), released.codes["train"]))
    directions, noise_variance = linear_code(x * dataset.info.unit, z)
    accuracy = theory.bayes_accuracy(directions, mean=moments.mean, within=moments.within, noise_variance=noise_variance)
    mse = theory.lmmse(directions, total=moments.total, noise_variance=noise_variance)
    shortfall = float(theory.shortfall([accuracy], [mse], moments=moments)[0])
    measured_accuracy, measured_mse = values["utility"]["accuracy"], min(a["mse_raw"] for a in values["attacks"])
    measured_shortfall = theory.shortfall(
        [measured_accuracy], [measured_mse], moments=moments, attacker="exact", accuracy_tolerance=0.005
    )
    comparison = {"accuracy": accuracy, "mse": mse, "shortfall": shortfall}
    comparison |= {"measured_accuracy": measured_accuracy, "measured_mse": measured_mse}
    comparison |= {"measured_shortfall": float(measured_shortfall[0])}
    if len(directions) == 1 and noise_variance == 0:
        exact = theory.mmse(directions[0], mean=moments.mean, within=moments.within)
        comparison |= {"exact_mse": exact}
        comparison |= {"exact_shortfall": float(theory.shortfall([accuracy], [exact], moments=moments, attacker="exact")[0])}
    return comparison


def linear_code(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit z = A x + noise with noise covariance s^2 I to the codes z (N, k) of samples x (N, d). Returns A (k, d) and s^2.

    Without noise, A belongs to the codes themselves and s = 0. With noise, A belongs to equivalent codes, which are whitened by
    their noise, and s = 1.
    """
    x, z = x - x.mean(axis=0), z - z.mean(axis=0)
    directions = np.linalg.lstsq(x, z, rcond=None)[0].T
    residual = z - x @ directions.T
    if np.square(residual).mean() <= NO_NOISE * np.square(z).mean():
        return directions, 0.0
    return np.linalg.solve(np.linalg.cholesky(residual.T @ residual / len(residual)), directions), 1.0

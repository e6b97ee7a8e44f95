"""The job of jobs/reproduce.py: run the cells of a comparison as Ray tasks, and write its results."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cpgan_ray.analysis.attacker_plot import attacker_lines
from cpgan_ray.analysis.cells import CELL, Cell, trial
from cpgan_ray.analysis.comparison import Plan, findings, recommended, twin_utility
from cpgan_ray.analysis.fronts import measures_table, reference_point, write
from cpgan_ray.analysis.published import measured, published, published_theory, side_by_side
from cpgan_ray.common.atomic_io import refuse_link, write_bytes, write_text
from cpgan_ray.common.json_files import write_json
from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.config import Config, ReproduceJob
from cpgan_ray.config.folders.jobs import REPRODUCTION, planned_seeds, read_reproduction
from cpgan_ray.data import Dataset, load, pin_store, task_of
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.errors import InputError
from cpgan_ray.mechanisms import MECHANISMS
from cpgan_ray.mechanisms.games import FEATURES
from cpgan_ray.mechanisms.noise import NOISE_COMPONENTS
from cpgan_ray.models.cost import ensure_within_budget
from cpgan_ray.pipelines.fit_to_data import fit_to_data
from cpgan_ray.pipelines.late_labels import check_late_labels
from cpgan_ray.pipelines.parent_run import job_folder, parent_run, recorded_run
from cpgan_ray.pipelines.reproduce.calibrate import calibrate, grids_table
from cpgan_ray.pipelines.reproduce.calibrate import summary as calibration_summary
from cpgan_ray.pipelines.reproduce.grids import (
    GRIDS,
    Grids,
    built_in,
    ensure_same_grids,
    ensure_usable,
    evenly_spaced_subset,
    read_grids,
    write_grids,
)
from cpgan_ray.pipelines.reproduce.mechanisms import compared, pinned_job, roundings_of
from cpgan_ray.pipelines.reproduce.play import play
from cpgan_ray.pipelines.reproduce.provenance import ensure_same_provenance
from cpgan_ray.pipelines.reproduce.results import (
    PUBLISHED,
    TABLE,
    THEORY,
    Values,
    cell_metrics,
    differences_table,
    finished,
    fronts_table,
    line,
    outcome_tags,
    read_cell,
    read_cells,
    settings_table,
    write_table,
)
from cpgan_ray.tracking import SearchRun, ensure_trackable
from cpgan_ray.training.label_weights import label_weights

logger = logging.getLogger(__name__)

DUMP_EVERY = 10
"""The table is written each time so many cells have finished."""


def reproduce(job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """Run the cells that have no result yet, and write the results of all cells. Returns the table and the summary that the job
    prints.

    Raises: InputError for anything the user can fix, before anything is written.
    """
    job = pinned_job(job)
    with job_folder(job, "calibrate" if job.calibrate else "reproduce", resume=resume) as (folder, job):
        job = dataclasses.replace(job, config=fit_to_data(job.config))
        return (calibrate_in if job.calibrate else reproduce_in)(folder, job, resume=resume)


def prepare(job: ReproduceJob, folder: Path) -> Dataset:
    """Open the data set, with what many processes need computed once."""
    ensure_trackable(job.config.tracking, folder)
    set_up_process(threads=available_cpus())
    if job.config.runtime.backend != "local":
        ensure_unchanged()
    dataset = load(job.config)
    check_late_labels(job.config, dataset)
    ensure_within_budget(job.config, image_shape=dataset.image_shape)
    label_weights(job.config.utility, task_of(dataset, job.config.data.labels))
    for components in (DEFAULT_COMPONENTS, NOISE_COMPONENTS):
        projection(dataset, components=components)
    return dataset


def calibrate_in(folder: Path, job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """Calibrate, in an output folder that is already locked."""
    started = time.perf_counter()
    dataset = prepare(job, folder)
    with parent_run(partial(open_run, job, folder, None, resume=resume)) as (run, stop), stop.allowed():
        config = dataclasses.replace(pin_store(job.config, dataset), seed=job.pilot_seed)
        grids = calibrate(job, config, dataset, folder, roundings=job.roundings)
        shutil.rmtree(refuse_link(folder / FEATURES), ignore_errors=True)
        run.log_files([write_grids(grids, folder)])
    values = {"run_id": run.run_id, "output": str(folder), **calibration_summary(grids, folder)}
    return grids_table(grids) + "\n", values | {"seconds": round(time.perf_counter() - started, 1)}


def reproduce_in(folder: Path, job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """`reproduce`, in an output folder that is already locked for this comparison."""
    started = time.perf_counter()
    dataset_name = job.config.data.dataset
    reported = published(job.published, dataset_name) if job.published else []
    best_codes = published_theory(job.published) if job.published and dataset_name == "gaussian" else []
    dataset = prepare(job, folder)
    dataset = dataset.open_final() if job.final else dataset
    grids = grids_of(job, folder, dataset, resume=resume)
    all_cells = cells(job, dataset, grids)
    config = pin_store(job.config, dataset)
    pooled_cells(folder, grids, config)
    with parent_run(partial(open_run, job, folder, grids, resume=resume)) as (run, stop), stop.allowed():
        missing = [cell for cell in all_cells if not (folder / "cells" / cell.name / CELL).is_file()]
        if job.final:
            logger.info(f"opening {run.count_opening(dataset.digest)} of the final split in this MLflow experiment")
        run_cells(missing, config, folder, run, grids, total=len(all_cells), final=job.final, mechanisms=job.mechanisms)
        shutil.rmtree(refuse_link(folder / FEATURES), ignore_errors=True)
        values = pooled_cells(folder, grids, config)
        summary = write_results(values, folder, run, grids, job)
        if reported:
            figure = side_by_side(reported, measured(main_cells(finished(values)), dataset_name), dataset_name)
            write_bytes(folder / PUBLISHED, figure)
            run.log_files([folder / PUBLISHED])
        if dataset_name == "gaussian":
            from cpgan_ray.analysis.theory_figure import frontier_figure  # theory takes 0.5 s

            figure = frontier_figure(main_cells(finished(values)), seed=job.config.data.mixture_seed, published=best_codes)
            write_bytes(folder / THEORY, figure)
            run.log_files([folder / THEORY])
    summary = {"run_id": run.run_id, "output": str(folder), **summary, "seconds": round(time.perf_counter() - started, 1)}
    return (folder / "results.md").read_text(), summary


def grids_of(job: ReproduceJob, folder: Path, dataset: Dataset, *, resume: bool) -> Grids:
    """The settings of a comparison: of its own file if it is resumed, else of `--grids`, else the built-in ones.

    Raises: InputError if the file cannot be used for this comparison, or if another one is given for a comparison that has begun.
    """
    given = read_grids(job.grids) if job.grids is not None else None
    if resume:
        grids, path = read_grids(folder / GRIDS), folder / GRIDS
        if given is not None and given.sha256 != grids.sha256:
            raise InputError(
                f"{job.grids} has the digest {given.sha256[:12]}, but the comparison in {folder} was started with "
                f"{grids.sha256[:12]}: leave out --grids, or start a new comparison"
            )
    else:
        grids, path = given or built_in(job.weights, compared(job)), job.grids or folder / GRIDS
    ensure_usable(grids, path, job, data=dataset.digest)
    return grids


def pooled_cells(folder: Path, grids: Grids, config: Config) -> list[Values]:
    """All finished cells in a comparison's folder, which must have these grids, and be computed by this code with this
    configuration."""
    values = read_cells(folder)
    ensure_same_provenance(values, config, folder)
    ensure_same_grids({folder / "cells" / Cell(**v["cell"]).name / CELL: v for v in values}, grids)
    return values


def cells(job: ReproduceJob, dataset: Dataset, grids: Grids) -> list[Cell]:
    """All cells, seed by seed, the slow mechanisms first."""
    seeds = range(job.config.seed, job.config.seed + job.num_seeds)
    return [
        Cell(mechanism=name, setting=setting, rounded=rounded, seed=seed)
        for seed in seeds
        for name in compared(job)
        for rounded in roundings_of(name, job.roundings)
        for setting in settings_of(name, job, dataset, grids, rounded=rounded)
    ]


def settings_of(name: str, job: ReproduceJob, dataset: Dataset, grids: Grids, *, rounded: bool) -> Sequence[float]:
    """The settings of a mechanism's knob that are compared; settings with equal code lengths only once."""
    mechanism = MECHANISMS[name]
    settings = grids.settings(name, rounded=rounded)
    if grids.source == "calibrated" or (grids.source == "weights" and mechanism.knob == "privacy_weight"):
        return settings
    settings = evenly_spaced_subset(settings, job.num_settings)
    if mechanism.length is None:
        return settings
    lengths = [mechanism.length(job.config, setting, dataset) for setting in settings]
    return [setting for i, setting in enumerate(settings) if lengths[i] not in lengths[:i]]


def open_run(job: ReproduceJob, folder: Path, grids: Grids | None, *, resume: bool) -> SearchRun:
    """Open the MLflow run of a comparison, or of a calibration (which has no grids yet). Write its grids and the record with its
    id: from then on it can be resumed."""
    c = job.config
    name = c.tracking.run_name or f"{'calibrate' if job.calibrate else 'reproduce'} {c.preset}"
    params = {
        "preset": c.preset,
        "k": c.k,
        "epochs": c.epochs,
        "attacks": " ".join(c.attacks.names),
        "max_train_samples": c.data.max_train_samples,
    }
    tags = {"mechanisms": " ".join(compared(job)), "num_seeds": job.num_seeds, "num_settings": job.num_settings}
    tags |= grids_tags(grids) if grids is not None else {}
    planned, run_id = (planned_seeds(folder), read_reproduction(folder)[1]) if resume else (job.num_seeds, None)
    tags |= {"planned_seeds": planned}
    if grids is not None and not resume:
        folder.mkdir(parents=True, exist_ok=True)
        write_grids(grids, folder)
    options: dict[str, Any] = {"name": name, "params": params, "tags": tags, "run_id": run_id, "source": "jobs/reproduce.py"}
    return recorded_run(job, folder, REPRODUCTION, values={"planned_seeds": planned}, **options)


def main_cells(values: Sequence[Values]) -> list[Values]:
    """The cells of figures that do not tell rounded codes from others: the rounded ones if there are any, and those of codes that
    are finite without rounding; else all."""
    if not any(v["cell"]["rounded"] for v in values):
        return list(values)
    return [v for v in values if v["cell"]["rounded"] or not MECHANISMS[v["cell"]["mechanism"]].rounds]


def grids_line(grids: Grids) -> str:
    """Where the settings come from, under the tables."""
    return f"Settings: {grids.source}; SHA-256 of {GRIDS}: {grids.sha256}"


def grids_tags(grids: Grids) -> dict[str, str]:
    """MLflow tags of a comparison and of each of its cells."""
    return {"grids": grids.source, "grids.sha256": grids.sha256}


def run_cells(
    missing: Sequence[Cell],
    config: Config,
    folder: Path,
    run: SearchRun,
    grids: Grids,
    *,
    total: int,
    final: bool,
    mechanisms: Sequence[str] = (),
) -> None:
    """Run cells as Ray tasks, or one after the other in this process. Logs a line and a child run in MLflow for each."""
    started, num_done = time.perf_counter(), total - len(missing)
    if missing:
        logger.info(f"{len(missing)} of {total} cells to run")

    def log_cell(cell: Cell) -> None:
        nonlocal num_done
        num_done += 1
        values = read_cell(folder / "cells" / cell.name / CELL)
        tags = outcome_tags(values) | grids_tags(grids)
        run.add_child(cell.name, params=asdict(cell), metrics=cell_metrics(values), tags=tags)
        logger.info(f"[{time.perf_counter() - started:.0f} s] {num_done}/{total} {line(values)}")
        if num_done % DUMP_EVERY == 0:
            write_table(read_cells(folder), folder)

    if config.runtime.backend == "local":
        for cell in missing:
            play(cell, config, folder / "cells" / cell.name, grids.provenance, mechanisms, final=final)
            log_cell(cell)
        return
    from cpgan_ray.distributed.cluster import connect
    from cpgan_ray.distributed.tasks import run_in_tasks

    connect(config.runtime)
    work = [(cell, config, folder / "cells" / cell.name, grids.provenance, mechanisms) for cell in missing]
    run_in_tasks(
        partial(play, final=final),
        work,
        runtime=config.runtime,
        cpus=1.0,
        gpus=config.runtime.privatizer_gpus,
        done=lambda i, _: log_cell(missing[i]),
    )


def write_results(values: Sequence[Values], folder: Path, run: SearchRun, grids: Grids, job: ReproduceJob) -> dict[str, Any]:
    """Write the files of the results, and log them to MLflow. Returns their part of the summary."""
    done = finished(values)
    trials = [trial(v, folder / "cells" / Cell(**v["cell"]).name) for v in done]
    if reference_point(trials, job.objective) is None:
        raise RuntimeError("no cell has finished")
    failed = [Cell(**v["cell"]).name for v in values if "failed" in v]
    shares: dict[str, dict[str, Any]] = {}  # rounded codes are compared with rounded ones, others with others
    kinds = {v["cell"]["rounded"] for v in done if MECHANISMS[v["cell"]["mechanism"]].rounds} or {False}
    for title, rounded in (("rounded", True), ("unrounded", False)):
        if rounded in kinds:
            chosen = [
                i for i, v in enumerate(done) if v["cell"]["rounded"] is rounded or not MECHANISMS[v["cell"]["mechanism"]].rounds
            ]
            of_share = [trials[i] for i in chosen]
            plan = Plan(planned_seeds=planned_seeds(folder), num_seeds=len({t.seed for t in of_share}))
            shares[title] = findings([done[i] for i in chosen], of_share, plan=plan, objective=job.objective)
    shown = main_cells(done)
    of_shown = [t for v, t in zip(done, trials, strict=True) if v in shown]
    labelled = [t if t in of_shown else dataclasses.replace(t, method=f"{t.method} unrounded") for t in trials]
    twin = twin_utility(of_shown, job.objective)
    chosen = recommended(of_shown, job.objective)
    drawn = write(labelled, folder, objective=job.objective, chosen=chosen, control_utility=twin, bits=job.counts_bits)
    split = "final" if job.final else "test"
    results: dict[str, Any] = next(iter(shares.values())) | {"split": split, "grids": grids.provenance, "failed": failed, **shares}
    tables = [f"Codes are {title}:\n\n{fronts_table(part)}\n\n{differences_table(part)}" for title, part in shares.items()]
    if job.counts_bits:
        tables.append(f"With bits as a third objective (volumes, without intervals):\n\n{measures_table(drawn)}")
    write_json(folder / "results.json", results | {"label_floor_r2": trials[0].label_floor_r2})
    settings = settings_table(done, trials, job.objective)
    write_text(folder / "results.md", "\n\n".join([settings, *tables, f"Scored on the {split} split.", grids_line(grids)]) + "\n")
    write_table(done, folder)
    write_bytes(folder / "attackers.png", attacker_lines(shown, {name: mechanism.knob for name, mechanism in MECHANISMS.items()}))
    names = (
        "frontier.json",
        "frontier.csv",
        "frontier.png",
        "attackers.png",
        TABLE,
        REPRODUCTION,
        GRIDS,
        "results.json",
        "results.md",
    )
    run.log_files(folder / name for name in names)
    ours = results["hypervolume"].get("cpgan", {}).get("value")
    return {"cells": len(values), "failed": len(failed), "split": split, "hypervolume": ours, "gap": results["gap"]}

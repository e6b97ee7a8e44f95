"""The job of jobs/reproduce.py: run the cells of a comparison as Ray tasks, and write its results."""

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
from cpgan_ray.analysis.comparison import findings, recommended
from cpgan_ray.analysis.fronts import reference_point, write
from cpgan_ray.analysis.published import measured, published, published_theory, side_by_side
from cpgan_ray.common.atomic_io import refuse_link, write_bytes, write_text
from cpgan_ray.common.json_files import write_json
from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.config import Config, ReproduceJob
from cpgan_ray.config.folders.jobs import REPRODUCTION, read_reproduction
from cpgan_ray.data import Dataset, load, pin_store
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.mechanisms import MECHANISMS
from cpgan_ray.mechanisms.games import FEATURES
from cpgan_ray.mechanisms.noise import NOISE_COMPONENTS
from cpgan_ray.pipelines.parent_run import job_folder, parent_run, recorded_run
from cpgan_ray.pipelines.reproduce.play import play
from cpgan_ray.pipelines.reproduce.results import (
    PUBLISHED,
    TABLE,
    THEORY,
    Values,
    cell_metrics,
    finished,
    line,
    outcome_tags,
    read_cell,
    read_cells,
    settings_table,
    volumes_table,
    write_table,
)
from cpgan_ray.tracking import SearchRun, ensure_trackable

logger = logging.getLogger(__name__)

DUMP_EVERY = 10
"""The table is written each time so many cells have finished."""


def reproduce(job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """Run the cells that have no result yet, and write the results of all cells. Returns the table and the summary that the job
    prints.

    Raises: InputError for anything the user can fix, before anything is written.
    """
    with job_folder(job, "reproduce", resume=resume) as (folder, job):
        return reproduce_in(folder, job, resume=resume)


def reproduce_in(folder: Path, job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """`reproduce`, in an output folder that is already locked for this comparison."""
    started = time.perf_counter()
    ensure_trackable(job.config.tracking, folder)
    dataset_name = job.config.data.dataset
    reported = published(job.published, dataset_name) if job.published else []
    best_codes = published_theory(job.published) if job.published and dataset_name == "gaussian" else []
    set_up_process(threads=available_cpus())
    if job.config.runtime.backend != "local":
        ensure_unchanged()
    dataset = load(job.config)
    for components in (DEFAULT_COMPONENTS, NOISE_COMPONENTS):
        projection(dataset, components=components)  # computed once here, before many processes need it
    all_cells = cells(job, dataset)
    with parent_run(partial(open_run, job, folder, resume=resume)) as (run, stop), stop.allowed():
        missing = [cell for cell in all_cells if not (folder / "cells" / cell.name / CELL).is_file()]
        run_cells(missing, pin_store(job.config, dataset), folder, run, total=len(all_cells))
        shutil.rmtree(refuse_link(folder / FEATURES), ignore_errors=True)
        values = read_cells(folder)
        summary = write_results(values, folder, run)
        if reported:
            figure = side_by_side(reported, measured(finished(values), dataset_name), dataset_name)
            write_bytes(folder / PUBLISHED, figure)
            run.log_files([folder / PUBLISHED])
        if dataset_name == "gaussian":
            from cpgan_ray.analysis.theory_figure import frontier_figure  # theory takes 0.5 s

            figure = frontier_figure(finished(values), seed=job.config.data.mixture_seed, published=best_codes)
            write_bytes(folder / THEORY, figure)
            run.log_files([folder / THEORY])
    summary = {"run_id": run.run_id, "output": str(folder), **summary, "seconds": round(time.perf_counter() - started, 1)}
    return (folder / "results.md").read_text(), summary


def cells(job: ReproduceJob, dataset: Dataset) -> list[Cell]:
    """All cells, seed by seed, the slow mechanisms first."""
    seeds = range(job.config.seed, job.config.seed + job.num_seeds)
    return [
        Cell(mechanism=name, setting=setting, seed=seed)
        for seed in seeds
        for name in job.mechanisms or MECHANISMS
        for setting in settings_of(name, job, dataset)
    ]


def settings_of(name: str, job: ReproduceJob, dataset: Dataset) -> Sequence[float]:
    """The settings of a mechanism's knob that are compared; settings with equal code lengths only once."""
    mechanism = MECHANISMS[name]
    if job.weights and mechanism.knob == "privacy_weight":
        return job.weights
    settings = evenly_spaced_subset(mechanism.settings, job.num_settings)
    if mechanism.length is None:
        return settings
    lengths = [mechanism.length(job.config, setting, dataset) for setting in settings]
    return [setting for i, setting in enumerate(settings) if lengths[i] not in lengths[:i]]


def evenly_spaced_subset(settings: Sequence[float], limit: int) -> list[float]:
    """At most `limit` of the settings, evenly spaced."""
    count = min(limit, len(settings))
    return [settings[round(i * (len(settings) - 1) / max(count - 1, 1))] for i in range(count)]


def open_run(job: ReproduceJob, folder: Path, *, resume: bool) -> SearchRun:
    """Open the comparison's MLflow run, and write the record with its id. From then on the comparison can be resumed."""
    c = job.config
    name = c.tracking.run_name or f"reproduce {c.preset}"
    params = {
        "preset": c.preset,
        "k": c.k,
        "epochs": c.epochs,
        "attacks": " ".join(c.attacks.names),
        "max_train_samples": c.data.max_train_samples,
    }
    tags = {"mechanisms": " ".join(job.mechanisms or MECHANISMS), "num_seeds": job.num_seeds, "num_settings": job.num_settings}
    run_id = read_reproduction(folder)[1] if resume else None
    source = "jobs/reproduce.py"
    return recorded_run(job, folder, REPRODUCTION, name=name, params=params, tags=tags, run_id=run_id, source=source)


def run_cells(missing: Sequence[Cell], config: Config, folder: Path, run: SearchRun, *, total: int) -> None:
    """Run cells as Ray tasks, or one after the other in this process. Logs a line and a child run in MLflow for each."""
    started, num_done = time.perf_counter(), total - len(missing)
    if missing:
        logger.info(f"{len(missing)} of {total} cells to run")

    def log_cell(cell: Cell) -> None:
        nonlocal num_done
        num_done += 1
        values = read_cell(folder / "cells" / cell.name / CELL)
        run.add_child(cell.name, params=asdict(cell), metrics=cell_metrics(values), tags=outcome_tags(values))
        logger.info(f"[{time.perf_counter() - started:.0f} s] {num_done}/{total} {line(values)}")
        if num_done % DUMP_EVERY == 0:
            write_table(read_cells(folder), folder)

    if config.runtime.backend == "local":
        for cell in missing:
            play(cell, config, folder / "cells" / cell.name)
            log_cell(cell)
        return
    from cpgan_ray.distributed.cluster import connect
    from cpgan_ray.distributed.tasks import run_in_tasks

    connect(config.runtime)
    work = [(cell, config, folder / "cells" / cell.name) for cell in missing]
    run_in_tasks(
        play, work, runtime=config.runtime, cpus=1.0, gpus=config.runtime.privatizer_gpus, done=lambda i: log_cell(missing[i])
    )


def write_results(values: Sequence[Values], folder: Path, run: SearchRun) -> dict[str, Any]:
    """Write the files of the results, and log them to MLflow. Returns their part of the summary."""
    done = finished(values)
    trials = [trial(v, folder / "cells" / Cell(**v["cell"]).name) for v in done]
    reference = reference_point(trials)
    if reference is None:
        raise RuntimeError("no cell has finished")
    write(trials, folder, chosen=recommended(trials))
    failed = [Cell(**v["cell"]).name for v in values if "failed" in v]
    results: dict[str, Any] = findings(done, trials, reference) | {"failed": failed}
    write_json(folder / "results.json", results | {"label_floor_r2": trials[0].label_floor_r2})
    write_text(folder / "results.md", "\n\n".join([settings_table(done, trials), volumes_table(results)]) + "\n")
    write_table(done, folder)
    write_bytes(folder / "attackers.png", attacker_lines(done, {name: mechanism.knob for name, mechanism in MECHANISMS.items()}))
    names = ("frontier.json", "frontier.csv", "frontier.png", "attackers.png", TABLE, REPRODUCTION, "results.json", "results.md")
    run.log_files(folder / name for name in names)
    ours = results["hypervolume"].get("cpgan", {}).get("value")
    return {"cells": len(values), "failed": len(failed), "hypervolume": ours, "gap": results["gap"]}

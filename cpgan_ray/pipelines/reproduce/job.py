"""The whole job of jobs/reproduce.py: mechanisms on a data set, every cell a Ray task, and what they amount to."""

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpgan_ray.analysis.attacker_plot import attacker_lines
from cpgan_ray.analysis.cells import CELL, Cell, trial
from cpgan_ray.analysis.comparison import findings, recommended
from cpgan_ray.analysis.fronts import reference_point, write
from cpgan_ray.analysis.published import measured, published, published_theory, side_by_side
from cpgan_ray.analysis.theory_figure import frontier_figure
from cpgan_ray.common.atomic_io import refuse_link, write_bytes, write_text
from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.common.signals import defer_signals
from cpgan_ray.config import Config, ReproduceJob, to_json
from cpgan_ray.config.folders import REPRODUCTION, read_reproduction, write_record
from cpgan_ray.data import Dataset, load, pin_store
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.mechanisms import MECHANISMS
from cpgan_ray.mechanisms.games import FEATURES
from cpgan_ray.mechanisms.noise import KEPT_COMPONENTS
from cpgan_ray.pipelines.output_folder import output_folder
from cpgan_ray.pipelines.reproduce.play import play
from cpgan_ray.pipelines.reproduce.results import (
    PUBLISHED,
    TABLE,
    THEORY,
    Values,
    all_played,
    finished,
    line,
    logged,
    outcome_tags,
    read_cell,
    settings_table,
    volumes_table,
    write_table,
)
from cpgan_ray.tracking import SearchRun, ensure_trackable, tracking_uri

logger = logging.getLogger(__name__)

DUMP_EVERY = 10
"""Cells after which the table is written, in mid-comparison."""


def reproduce(job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """Play the cells that are not there yet, write the results of all; returns the table and the summary that the job prints.

    Raises: InputError for anything the user can mend, before anything is written.
    """
    with output_folder(job.config.output, f"reproduce-{job.config.preset}", resume=resume) as folder:
        return reproduce_in(folder, job if resume else settled(job, folder), resume=resume)


def reproduce_in(folder: Path, job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """The same in a folder that is this comparison's."""
    started = time.perf_counter()
    ensure_trackable(job.config.tracking, folder)
    dataset_name = job.config.data.dataset
    theirs = published(job.published, dataset_name) if job.published else []
    best_codes = published_theory(job.published) if job.published and dataset_name == "gaussian" else []
    set_up_process(threads=available_cpus())
    if job.config.runtime.backend != "local":
        ensure_unchanged()
    dataset = load(job.config)
    for components in (DEFAULT_COMPONENTS, KEPT_COMPONENTS):
        projection(dataset, components=components)  # once, before many processes ask for it
    todo = cells(job, dataset)
    with defer_signals() as stop:  # or a signal could leave the run RUNNING, between its beginning or its end and the block
        run = open_run(job, folder, resume=resume)
        status = "FAILED"
        try:
            with stop.allowed():
                missing = [cell for cell in todo if not (folder / "cells" / cell.name / CELL).is_file()]
                played(missing, pin_store(job.config, dataset), folder, run, of=len(todo))
                shutil.rmtree(refuse_link(folder / FEATURES), ignore_errors=True)
                values = all_played(folder)
                summary = conclude(values, folder, run)
                if theirs:
                    write_bytes(folder / PUBLISHED, side_by_side(theirs, measured(finished(values), dataset_name), dataset_name))
                    run.log_files([folder / PUBLISHED])
                if dataset_name == "gaussian":
                    drawn = frontier_figure(finished(values), seed=job.config.data.mixture_seed, published=best_codes)
                    write_bytes(folder / THEORY, drawn)
                    run.log_files([folder / THEORY])
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            run.close(stop.run_status(status))
    summary = {"run_id": run.run_id, "output": str(folder), **summary, "seconds": round(time.perf_counter() - started, 1)}
    return (folder / "results.md").read_text(), summary


def cells(job: ReproduceJob, dataset: Dataset) -> list[Cell]:
    """All trainings, seed by seed, the slow mechanisms first."""
    seeds = range(job.config.seed, job.config.seed + job.num_seeds)
    return [
        Cell(mechanism=name, setting=setting, seed=seed)
        for seed in seeds
        for name in job.mechanisms or MECHANISMS
        for setting in settings_of(name, job, dataset)
    ]


def settings_of(name: str, job: ReproduceJob, dataset: Dataset) -> Sequence[float]:
    """What a mechanism's knob is tried at; code lengths once each."""
    known = MECHANISMS[name]
    if job.weights and known.knob == "privacy_weight":
        return job.weights
    settings = thinned(known.settings, job.num_settings)
    if known.length is None:
        return settings
    lengths = [known.length(job.config, setting, dataset) for setting in settings]
    return [setting for i, setting in enumerate(settings) if lengths[i] not in lengths[:i]]


def thinned(settings: Sequence[float], limit: int) -> list[float]:
    """At most `limit` of a mechanism's settings, evenly spaced."""
    count = min(limit, len(settings))
    return [settings[round(i * (len(settings) - 1) / max(count - 1, 1))] for i in range(count)]


def settled(job: ReproduceJob, folder: Path) -> ReproduceJob:
    """With this folder and a tracking store of its own, both absolute."""
    uri = tracking_uri(job.config.tracking, folder)
    if redacted(uri) != uri:  # a password that has to stay in it: not in `reproduction.json`
        os.environ["MLFLOW_TRACKING_URI"] = uri
    tracking = dataclasses.replace(job.config.tracking, uri=uri if redacted(uri) == uri else None)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, output=folder, tracking=tracking))


def open_run(job: ReproduceJob, folder: Path, *, resume: bool) -> SearchRun:
    """The comparison's MLflow run, and the file with its id: from here on it can be resumed."""
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
    run = SearchRun(c, folder, name=name, params=params, tags=tags, run_id=run_id, source="jobs/reproduce.py")
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / REPRODUCTION, {"run_id": run.run_id, "job": to_json(job)})
    return run


def played(missing: Sequence[Cell], config: Config, folder: Path, run: SearchRun, *, of: int) -> None:
    """Cells as Ray tasks, or one after the other; a line on standard error and a run in MLflow for each."""
    started, done = time.perf_counter(), of - len(missing)
    if missing:
        logger.info(f"{len(missing)} of {of} cells to play")

    def told(cell: Cell) -> None:
        nonlocal done
        done += 1
        values = read_cell(folder / "cells" / cell.name / CELL)
        run.add_child(cell.name, params=asdict(cell), metrics=logged(values), tags=outcome_tags(values))
        logger.info(f"[{time.perf_counter() - started:.0f} s] {done}/{of} {line(values)}")
        if done % DUMP_EVERY == 0:
            write_table(all_played(folder), folder)

    if config.runtime.backend == "local":
        for cell in missing:
            play(cell, config, folder / "cells" / cell.name)
            told(cell)
        return
    from cpgan_ray.distributed.cluster import connect
    from cpgan_ray.distributed.tasks import run_in_tasks

    connect(config.runtime)
    work = [(cell, config, folder / "cells" / cell.name) for cell in missing]
    run_in_tasks(play, work, runtime=config.runtime, cpus=1.0, gpus=config.runtime.privatizer_gpus, done=lambda i: told(missing[i]))


def conclude(values: Sequence[Values], folder: Path, run: SearchRun) -> dict[str, Any]:
    """The files of the results, and what MLflow hears of them."""
    good = finished(values)
    trials = [trial(v, folder / "cells" / Cell(**v["cell"]).name) for v in good]
    reference = reference_point(trials)
    if reference is None:
        raise RuntimeError("no cell came to its end")
    write(trials, folder, chosen=recommended(trials))
    told: dict[str, Any] = findings(good, trials, reference) | {"failed": [Cell(**v["cell"]).name for v in values if "failed" in v]}
    files = {
        "results.json": json.dumps(told | {"label_floor_r2": trials[0].label_floor_r2}, indent=1) + "\n",
        "results.md": "\n\n".join([settings_table(good, trials), volumes_table(told)]) + "\n",
    }
    for name, text in files.items():
        write_text(folder / name, text)
    write_table(good, folder)
    write_bytes(folder / "attackers.png", attacker_lines(good, {name: known.knob for name, known in MECHANISMS.items()}))
    names = ("frontier.json", "frontier.csv", "frontier.png", "attackers.png", TABLE, REPRODUCTION, *files)
    run.log_files(folder / name for name in names)
    ours = told["hypervolume"].get("cpgan", {}).get("value")
    return {"cells": len(values), "failed": len(told["failed"]), "hypervolume": ours, "gap": told["gap"]}

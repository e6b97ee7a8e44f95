"""The job of `jobs/train_celeba.py --seeds`: one training per seed, one after the other, and their means."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cpgan_ray.analysis.crossed import CrossedEstimate
from cpgan_ray.analysis.seeds import METRICS, Training, over_seeds, read_training
from cpgan_ray.common.atomic_io import refuse_link, write_text
from cpgan_ray.common.json_files import write_json
from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.config import Config, SeedsJob
from cpgan_ray.config.folders.jobs import SEEDS, seeds_record
from cpgan_ray.config.folders.runs import CONFIG, interrupted_run
from cpgan_ray.evaluation.report.paired import ERRORS
from cpgan_ray.pipelines.fit_to_data import fit_to_data
from cpgan_ray.pipelines.parent_run import job_folder, parent_run, recorded_run
from cpgan_ray.pipelines.parts import pinned
from cpgan_ray.pipelines.seeds.card import seeds_card
from cpgan_ray.pipelines.seeds.table import seeds_table
from cpgan_ray.pipelines.train import RunContext, prepare_run, train
from cpgan_ray.tracking import SearchRun, end_attempts, ensure_trackable, tracking_uri

logger = logging.getLogger(__name__)

RESULTS, CARD = "results.json", "report.html"


def train_seeds(job: SeedsJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """Train under every seed that has no finished run yet, and write the means. Returns the table and the summary that the job
    prints.

    Raises: InputError for anything the user can fix, before anything is written.
    """
    job = dataclasses.replace(job, config=pinned(job.config))
    with job_folder(job, "seeds", resume=resume) as (folder, job):
        return train_seeds_in(folder, job, resume=resume)


def train_seeds_in(folder: Path, job: SeedsJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """`train_seeds`, in an output folder that is already locked."""
    started = time.perf_counter()
    ensure_trackable(job.config.tracking, folder)
    set_up_process(threads=job.config.runtime.threads or available_cpus())
    prepare_run(fit_to_data(job.config))
    seeds = range(job.config.seed, job.config.seed + job.num_seeds)
    with parent_run(partial(open_run, job, folder, resume=resume)) as (run, stop), stop.allowed():
        for seed in seeds:
            train_seed(seed, job.config, folder, run)
        trainings = [read_training(folder_of(folder, seed), seed=seed) for seed in seeds]
        means = over_seeds(trainings)
        write_results(trainings, means, folder)
        run.log(metrics(means), step=0)
        run.log_files(folder / name for name in (SEEDS, RESULTS, CARD))
    summary: dict[str, Any] = {"run_id": run.run_id, "output": str(folder), "seeds": list(seeds)}
    summary |= {name: rounded(value) for name, value in means.items()}
    summary |= {"degenerate": [t.seed for t in trainings if t.degenerate is not None]}
    return seeds_table(trainings, means), summary | {"seconds": round(time.perf_counter() - started, 1)}


def folder_of(folder: Path, seed: int) -> Path:
    """The run folder of a seed."""
    return folder / f"seed-{seed}"


def train_seed(seed: int, config: Config, folder: Path, run: SearchRun) -> None:
    """Train under one seed: nothing if it has finished, from the last checkpoint if it was interrupted."""
    output, name = refuse_link(folder_of(folder, seed)), f"seed {seed}"
    if (output / "report" / ERRORS).is_file():
        logger.info(f"{name} has finished before")
        return
    tags = {"search.role": "trial", "search.trial": name}
    context = RunContext(parent=run.run_id, tags=tags, is_last=False)
    if (output / CONFIG).is_file():
        interrupted, run_id, _ = interrupted_run(output, trust=config.trust)
        logger.info(f"{name} is resumed")
        train(dataclasses.replace(interrupted, runtime=config.runtime), context, resume=run_id)
        return
    logger.info(f"{name} is trained")
    end_attempts(tracking_uri(config.tracking, folder), run.run_id, name)
    shown = config.tracking.run_name or f"{config.preset} k={config.k} w={config.privacy_weight:g}"
    tracking = dataclasses.replace(config.tracking, run_name=f"{shown} {name}")
    train(dataclasses.replace(config, seed=seed, output=output, tracking=tracking), context)


def open_run(job: SeedsJob, folder: Path, *, resume: bool) -> SearchRun:
    """Open the MLflow run above the runs of the seeds, and write the record with its id: from then on the job can be resumed."""
    c = job.config
    params = {"preset": c.preset, "k": c.k, "privacy_weight": c.privacy_weight, "epochs": c.epochs, "seed": c.seed}
    run_id = seeds_record(folder, trust=True)[2] if resume else None
    name = c.tracking.run_name or f"{c.preset} k={c.k} w={c.privacy_weight:g} under {job.num_seeds} seeds"
    options: dict[str, Any] = {"name": name, "params": params, "run_id": run_id, "source": "jobs/train_celeba.py"}
    return recorded_run(job, folder, SEEDS, tags={"num_seeds": job.num_seeds}, **options)


def metrics(means: dict[str, CrossedEstimate]) -> dict[str, float]:
    """The means as metrics, with the ends of their intervals."""
    by_name = {METRICS[name]: value for name, value in means.items()}
    named = {f"{name}{end}": v for name, e in by_name.items() for end, v in zip(("", "_low", "_high"), e[:3], strict=True)}
    return {name: value for name, value in named.items() if value is not None}


def rounded(value: CrossedEstimate) -> dict[str, float | None]:
    """A number and its interval as they are printed."""
    return {end: None if v is None else round(v, 4) for end, v in zip(("value", "low", "high"), value[:3], strict=True)}


def write_results(trainings: Sequence[Training], means: dict[str, CrossedEstimate], folder: Path) -> None:
    """Write `results.json` and the page."""
    runs = [
        {
            "seed": t.seed,
            "folder": folder_of(folder, t.seed).name,
            **{name: number._asdict() for name, number in t.numbers.items()},
            "attack": t.attack,
            "dead_labels": t.report["utility"]["dead_labels"],
            "degenerate": t.degenerate,
        }
        for t in trainings
    ]
    mean = {name: {"value": e.value, "low": e.low, "high": e.high} for name, e in means.items()}
    write_json(folder / RESULTS, {"mean": mean, "runs": runs})
    folders = {t.seed: folder_of(folder, t.seed).name for t in trainings}
    write_text(folder / CARD, seeds_card(trainings, means, folders=folders))

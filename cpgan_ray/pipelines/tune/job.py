"""The job of jobs/tune_celeba.py: resources of the trials, the search with Ray Tune, and its results."""

import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from cpgan_ray.analysis.fronts import Trial, measures_table, points, reference_point, table, write
from cpgan_ray.common.atomic_io import refuse_link
from cpgan_ray.common.credentials import export_env
from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.config import Config, SearchJob, override
from cpgan_ray.config.folders.jobs import SEARCH, read_search
from cpgan_ray.config.folders.runs import command_for
from cpgan_ray.config.search_space import Dimension, dimensions
from cpgan_ray.data import Dataset, majority_logits, pin_store, task_of
from cpgan_ray.distributed.cluster import connect
from cpgan_ray.distributed.resources import Bundle, ensure_capacity, shares
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.classifier import with_classifier
from cpgan_ray.pipelines.fit_to_data import fit_to_data
from cpgan_ray.pipelines.parent_run import job_folder, parent_run, recorded_run
from cpgan_ray.pipelines.parts import pinned, pinned_dimension
from cpgan_ray.pipelines.teachers import with_teachers
from cpgan_ray.pipelines.train import prepare_run
from cpgan_ray.pipelines.tune.networks import ensure_buildable
from cpgan_ray.pipelines.tune.progress import Progress, read_trials
from cpgan_ray.pipelines.tune.proposals import TIME_BUDGET, proposals, scheduler
from cpgan_ray.pipelines.tune.trial import Shared, play_trial
from cpgan_ray.tracking import SearchRun, ensure_trackable
from cpgan_ray.training.accuracy import mean_accuracy, mean_balanced_accuracy

logger = logging.getLogger(__name__)

TUNE = "tune"
"""Folder of Ray Tune's own state. It is restored with pickle: continue only your own searches."""

TUNE_ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # with the default of at least ten seconds, trials that have just finished can be lost
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints even with `verbose=0`
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is handled here
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the scheduler's score is not part of a trial's last report
}


def trial_sizes(job: SearchJob, cluster: Mapping[str, float], *, total: int) -> dict[str, list[Bundle]]:
    """Resource bundles of a defended trial and of a control, the bundle of the trial's own process first. If the cluster has fewer
    CPUs than a game has players, the players of a trial share one CPU, or more if there are few trials (`total`): many trials at
    once use the cores better than one after the other.

    Raises: InputError with the numbers if a trial does not fit into the cluster.
    """
    names = [] if job.config.runtime.backend == "local" else list(job.config.adversaries)
    available = cluster.get("CPU", 0.0)
    concurrent = min(total, job.max_concurrent or total)
    cpus = available if available >= len(names) + 1 else min(available, max(1.0, available / concurrent))
    sizes = {"defended": shares(job.config, names, cpus=cpus), "control": shares(job.config, [], cpus=cpus)}
    for bundles in sizes.values():
        ensure_capacity(bundles, cluster, job.config.runtime)
    return sizes


def concurrency(job: SearchJob, sizes: Sequence[Bundle], cluster: Mapping[str, float]) -> int:
    """How many trials run at once."""
    totals = {kind: sum(s.get(kind, 0.0) for s in sizes) for kind in ("CPU", "GPU")}
    limit = min((int(cluster.get(kind, 0.0) / total + 1e-6) for kind, total in totals.items() if total > 0), default=1)
    return max(1, min(limit, job.max_concurrent or limit))


@dataclass(frozen=True)
class SearchResult:
    """The summary and the text that the job prints, and whether any trial finished."""

    summary: dict[str, Any]
    text: str
    ok: bool


def search(job: SearchJob, *, resume: bool = False) -> SearchResult:
    """Run all trials. Writes `frontier.json`, `.csv` and `.png` to the output folder and to MLflow, and each trial to `trials/`.

    resume: continue the search in the job's output folder.

    Raises: InputError for anything the user can fix, before anything is written to the output folder.
    """
    job = dataclasses.replace(job, config=pinned(job.config))
    with job_folder(job, "search", resume=resume) as (folder, job):
        return search_in(folder, dataclasses.replace(job, config=fit_to_data(job.config)), resume=resume)


def search_in(folder: Path, job: SearchJob, *, resume: bool) -> SearchResult:
    """`search`, in an output folder that is already locked for this search."""
    started = time.perf_counter()
    os.environ.update({name: os.environ.get(name, value) for name, value in TUNE_ENVIRONMENT.items()})
    ensure_unchanged()  # with any backend, trials run in other processes
    ensure_trackable(job.config.tracking, folder)
    space = [pinned_dimension(d) for d in dimensions(job.search_space, job.config, grid=job.searcher == "grid")]
    set_up_process(threads=job.config.runtime.threads or available_cpus())
    job = dataclasses.replace(job, config=with_classifier(job.config, parallel=False))
    dataset = prepare_run(job.config)
    if job.config.utility.teachers:
        with_teachers(job.config, parallel=False)  # a teacher that does not fit fails now, not in each trial
    ensure_buildable(job, space, dataset)
    connect(job.config.runtime)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints tracebacks of failures, which are also in tune/*/error.txt
    cluster = ray.cluster_resources()
    searcher, total = proposals(job, space)
    sizes = trial_sizes(job, cluster, total=total)
    at_once = concurrency(job, sizes["defended"], cluster)
    ensure_reachable(job.config)
    guess = guess_utility(dataset, job)
    one_store = not any(d.name.startswith("data.") or d.name == "skip_corrupt" for d in space)  # all trials use the same store
    trial_job = dataclasses.replace(job, config=pin_store(job.config, dataset)) if one_store else job
    logger.info(f"{total} trials, {at_once} at once: {', '.join(map(describe_dimension, space))}; in {folder}")
    with parent_run(partial(open_run, job, folder, resume=resume)) as (parent, stop):
        try:
            shared = Shared(job=trial_job, sizes=sizes, parent=parent.run_id, guess=guess, environment=export_env())
            trainable = tune.with_resources(
                tune.with_parameters(play_trial, shared=shared),
                lambda spec: tune.PlacementGroupFactory(
                    sizes["control" if spec["control"] else "defended"], strategy=job.config.runtime.placement
                ),
            )
            tuner = restore_tuner(folder, trainable) if resume else None
            tuner = tuner or tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler(job),
                    num_samples=total,
                    max_concurrent_trials=at_once,
                    reuse_actors=False,
                ),
                run_config=tune.RunConfig(
                    name=TUNE,
                    storage_path=str(folder),
                    failure_config=tune.FailureConfig(max_failures=job.max_failures),
                    callbacks=[Progress(folder, total)],
                    verbose=0,
                ),
            )
            TIME_BUDGET.start(job.time_budget_s)
            with stop.allowed():
                tuner.fit()
            if TIME_BUDGET.is_spent:
                logger.info(f"the time budget of {job.time_budget} is spent: no further trial was started")
        except BaseException:
            ray.shutdown()  # first, because a trial that finishes now would set the status of its MLflow run again
            parent.end_children("KILLED")
            raise
        finally:
            trials = read_trials(folder)
            values = write_results(job, folder, trials, parent)
    summary = {
        "run_id": parent.run_id,
        "output": str(folder),
        "trials": {state: sum(t.state == state for t in trials) for state in ("finished", "stopped", "failed")},
        "front": len(values["front"]),
        "hypervolume": values["hypervolume"],
        "r2_at": values["r2_at"],
        "recommended": values["recommended"],
        "seconds": round(time.perf_counter() - started, 1),
    }
    return SearchResult(summary, results_text(trials, values, bits=job.counts_bits), summary["trials"]["finished"] > 0)


def guess_utility(dataset: Dataset, job: SearchJob) -> float:
    """Utility on the validation split of always guessing each label's most common training value."""
    task = task_of(dataset, job.config.data.labels)
    y, utility = task.answers(dataset.val), mean_accuracy if job.objective == "accuracy" else mean_balanced_accuracy
    return utility(majority_logits(dataset, task, rows=len(y)), y, task)


def ensure_reachable(config: Config) -> None:
    """Check that trials on all machines can reach the tracking store.

    Raises: InputError if the store is a file, and the cluster has several machines.
    """
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1 and (config.tracking.uri or "").startswith("sqlite:"):
        raise InputError(
            f"the cluster has {len(machines)} machines, but {config.tracking.uri} is a file on this machine: "
            "start an MLflow server and give its address with --tracking.uri or MLFLOW_TRACKING_URI"
        )


def open_run(job: SearchJob, folder: Path, *, resume: bool) -> SearchRun:
    """Open the search's MLflow run, and write `search.json` with its id. From then on the search can be resumed."""
    c = job.config
    name = c.tracking.run_name or f"search {c.preset} over {' '.join(job.search_space)}"
    if resume:
        run = SearchRun(c, folder, name=name, params={}, run_id=read_search(folder)[1])
        run.end_children("KILLED")  # runs of trials that were still running when the search ended
        return run
    params = {
        "preset": c.preset,
        "search_space": " ".join(job.search_space),
        "searcher": job.searcher,
        "num_samples": job.num_samples,
    }
    params |= {
        "num_seeds": job.num_seeds,
        "objectives": " ".join(job.objectives),
        "scheduler": job.scheduler,
        "attacks": " ".join(c.attacks.names),
    }
    refuse_link(folder / TUNE)
    return recorded_run(job, folder, SEARCH, name=name, params=params)


def restore_tuner(folder: Path, trainable: Any) -> tune.Tuner | None:
    """Restore Tune's own state of an interrupted search; None if the search ended before Tune had written any."""
    path = str(refuse_link(folder / TUNE))
    if not tune.Tuner.can_restore(path):
        return None
    return tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, restart_errored=True)


def write_results(job: SearchJob, folder: Path, trials: Sequence[Trial], parent: SearchRun) -> dict[str, Any]:
    """Write the files of the front, and log them to MLflow. Returns the values of `frontier.json`."""
    values = write(
        trials,
        folder,
        objective=job.objective,
        max_r2=job.max_r2,
        min_accuracy=job.min_accuracy,
        max_multiply_adds=job.max_multiply_adds,
        bits=job.counts_bits,
        command=partial(training_command, job),
    )
    parent.log_files(folder / name for name in ("frontier.json", "frontier.csv", "frontier.png", SEARCH))
    best = {name for point in values["front"] for name in point["trials"]}
    parent.label({t.name: t.state for t in trials}, best)
    return values


def training_command(job: SearchJob, setting: Mapping[str, Any], seed: int) -> str:
    """The command that trains a setting, with the complete tournament of its preset at the end."""
    c = override(job.config, {**setting, "seed": seed})
    return "python jobs/train_celeba.py " + command_for(c)


def results_text(trials: Sequence[Trial], values: Mapping[str, Any], *, bits: bool = False) -> str:
    """The table of settings and the recommendation, as text."""
    objective = values["objective"]
    settings = points(trials, objective=objective)
    lines = [table(settings, reference_point(trials, objective, bits=bits)), "", measures_table(values), ""]
    if best := values["recommended"]:
        lines += [f"recommended ({best['rule']}):", f"  {best['command']}"]
        lines += bounds_note(best)
    else:
        lines.append(f"nothing to recommend: {values['reason']}")
    failed = [t for t in trials if t.state == "failed"]
    return "\n".join([*lines, *(f"failed: {t.name}: {t.cause}" for t in failed)])


def bounds_note(recommended: Mapping[str, Any]) -> list[str]:
    """A line if the recommended setting does not meet the bounds on the test split."""
    if recommended["meets_bounds"] is not False:
        return []
    return ["  its 95 % intervals on the test split do not meet the bounds"]


def describe_dimension(d: Dimension) -> str:
    return f"{d.name} among {', '.join(map(str, d.values))}" if d.values else f"{d.name} {d.low:g} to {d.high:g}"

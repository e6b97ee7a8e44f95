"""The job of jobs/frontier.py: the fronts of tracked runs, from their metrics in MLflow."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cpgan_ray.analysis.fronts import Trial, ensure_comparable, measures_table, points, reference_point, scored, table, write
from cpgan_ray.common.claims import claim_folder, claim_new_folder
from cpgan_ray.config import FrontierJob
from cpgan_ray.errors import InputError
from cpgan_ray.tracking import read_trials


def draw_fronts(job: FrontierJob) -> tuple[str, dict[str, Any]]:
    """Draw the fronts of MLflow experiments. Returns the table of their settings, and the summary that the job prints.

    Raises: InputError for anything the user can fix, before anything is written.
    """
    names = list(dict.fromkeys(job.experiments))
    by_experiment = {name: read_experiment(name, job, method=name if len(names) > 1 else "") for name in names}
    trials = [trial for of_experiment in by_experiment.values() for trial in of_experiment]
    ensure_comparable(trials)
    default = Path("outputs").resolve() / f"frontier-{datetime.now():%Y%m%d-%H%M%S}"
    with claim_folder(job.output) if job.output else claim_new_folder(default) as output:
        values = write(
            trials,
            output,
            objective=job.objective,
            bits=job.counts_bits,
            max_r2=job.max_r2,
            min_accuracy=job.min_accuracy,
            max_multiply_adds=job.max_multiply_adds,
        )
    measures = values.get("methods") or dict.fromkeys(names, values)
    experiments = {
        name: {"trials": sum(scored(t, job.objective) and not t.control for t in of_experiment)}
        | {"front": len(measures[name]["front"])}
        | {key: measures[name][key] for key in ("hypervolume", "r2_at")}
        for name, of_experiment in by_experiment.items()
    }
    best = values["recommended"]
    recommendation = {"recommended": point_summary(best)} if best else {"recommended": None, "reason": values["reason"]}
    settings = points(trials, objective=job.objective)
    text = "\n".join([table(settings, reference_point(trials, job.objective, bits=job.counts_bits)), "", measures_table(values)])
    return text, {"output": str(output), "experiments": experiments, **recommendation}


def read_experiment(name: str, job: FrontierJob, *, method: str) -> list[Trial]:
    """All trials of an experiment.

    Raises: InputError if no training of the experiment has finished with both numbers.
    """
    trials = read_trials(job.tracking_uri, name, method=method)
    if not any(scored(trial, job.objective) and not trial.control for trial in trials):
        raise InputError(
            f"{name} has no finished run with both utility/{job.objective} and privacy/strongest_r2 and a privacy weight above 0: "
            "give the name of an experiment with finished trainings, or the run id of a search"
        )
    return trials


def point_summary(point: Mapping[str, Any]) -> dict[str, Any]:
    """The recommended point as it is printed in a summary."""
    method = {"method": point["method"]} if point["method"] else {}
    numbers = {name: round(point[name], 4) for name in (point["objective"], "strongest_r2")}
    chosen = {"rule": point["rule"], "meets_bounds": point["meets_bounds"]}
    return method | {"setting": point["setting"], "seeds": point["seeds"], **numbers, **chosen}

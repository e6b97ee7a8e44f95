"""The whole job of jobs/frontier.py: the fronts of tracked runs, from what MLflow has of them."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cpgan_ray.analysis.fronts import Trial, comparable, front, hypervolume, points, reference_point, scored, table, write
from cpgan_ray.common.claims import claim_folder, claim_new_folder
from cpgan_ray.config import FrontierJob
from cpgan_ray.errors import InputError
from cpgan_ray.tracking import read_trials


def draw_fronts(job: FrontierJob) -> tuple[str, dict[str, Any]]:
    """Draw the fronts of some experiments: the table of their settings, and the summary that the job prints.

    Raises: InputError for anything the user can mend, before anything is written.
    """
    names = list(dict.fromkeys(job.experiments))
    found = {name: tracked(name, uri=job.tracking_uri, method=name if len(names) > 1 else "") for name in names}
    trials = [trial for some in found.values() for trial in some]
    comparable(trials)
    default = Path("outputs").resolve() / f"frontier-{datetime.now():%Y%m%d-%H%M%S}"
    with claim_folder(job.output) if job.output else claim_new_folder(default) as output:
        values = write(trials, output, max_r2=job.max_r2, min_accuracy=job.min_accuracy)
    reference = reference_point(trials)
    experiments = {
        name: {
            "trials": sum(scored(t) and not t.control for t in some),
            "front": len(front(points(some))),
            "hypervolume": round(hypervolume(points(some), reference), 6) if reference else None,
        }
        for name, some in found.items()
    }
    best = values["recommended"]
    told = {"recommended": summary_of(best)} if best else {"recommended": None, "reason": values["reason"]}
    return table(points(trials)), {"output": str(output), "experiments": experiments, **told}


def tracked(name: str, *, uri: str | None, method: str) -> list[Trial]:
    """Raises: InputError where no training of an experiment has come to its end with both numbers."""
    trials = read_trials(uri, name, method=method)
    if not any(scored(trial) and not trial.control for trial in trials):
        raise InputError(
            f"{name} has no finished run with both utility/accuracy and privacy/strongest_r2 and a privacy weight above 0: "
            "give the name of an experiment with trainings, or the run id of a search"
        )
    return trials


def summary_of(point: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary tells of a recommended point."""
    method = {"method": point["method"]} if point["method"] else {}
    numbers = {name: round(point[name], 4) for name in ("accuracy", "strongest_r2")}
    return method | {"setting": point["setting"], "seeds": point["seeds"], **numbers, "rule": point["rule"]}

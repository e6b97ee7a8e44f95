"""Progress of a running search: `trials.json`, a log line per trial, the hypervolume in MLflow."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune.callback import Callback
from ray.tune.experiment import Trial as TuneTrial

from cpgan_ray.analysis.fronts import (
    Trial,
    control_mean,
    hypervolume,
    points,
    r2_levels,
    reference_point,
    utility_levels,
)
from cpgan_ray.common.json_files import read_json, write_json
from cpgan_ray.common.types import Metrics
from cpgan_ray.config import Objective
from cpgan_ray.config.folders.jobs import read_search
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.tune.trial import trial_name
from cpgan_ray.tracking import SearchRun

logger = logging.getLogger(__name__)

TRIALS = "trials.json"


class Progress(Callback):
    """After each trial: write `trials.json`, log a line, and log the hypervolume to the search's run.

    Tune pickles this object, so its state is only a path and a number.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder, self.total = folder, total
        self.run: SearchRun | None = None
        self.objective: Objective = "accuracy"
        self.bits = False

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"run": None}

    def setup(self, **info: Any) -> None:
        job, parent = read_search(self.folder)  # written before the first trial
        self.objective, self.bits = job.objective, job.counts_bits
        self.run = SearchRun(job.config, self.folder, name="", params={}, run_id=parent)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.record(trials, trial, TuneTrial.TERMINATED)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.record(trials, trial, TuneTrial.ERROR)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        logger.info(f"{trial_name(trial.config)} failed and is started again: {cause(trial)}")

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        write_json(self.folder / TRIALS, [asdict(row(t, t.status)) for t in by_last_report(trials)])

    def record(self, trials: list[TuneTrial], trial: TuneTrial, status: str) -> None:
        """Record the end of a trial. status: the new status of the trial, because Tune calls this before it sets `trial.status`."""
        assert self.run is not None
        ended_trial = row(trial, status)
        rows = [ended_trial if t is trial else row(t, t.status) for t in by_last_report(trials)]
        write_json(self.folder / TRIALS, [asdict(r) for r in rows])
        self.run.end_children("FAILED" if ended_trial.state == "failed" else "FINISHED", names={ended_trial.name})
        ended = [r for r in rows if r.state in ("finished", "stopped", "failed")]
        finished = [r for r in ended if r.state == "finished"]
        measures = front_measures(finished, self.objective, bits=self.bits)
        self.run.log({"search/trials": len(ended), **measures}, step=len(ended))
        volume = measures["search/hypervolume"]
        logger.info(f"trial {len(ended)}/{self.total}: {describe_outcome(ended_trial)}; hypervolume {volume:.4f}")


def front_measures(trials: Sequence[Trial], objective: Objective, *, bits: bool = False) -> Metrics:
    """The metrics of a search's front: its hypervolume, and its R2 at the fixed utilities that it reaches, as soon as the
    undefended control has finished."""
    reference = reference_point(trials, objective, bits=bits)
    if reference is None:
        return {"search/hypervolume": 0.0}
    settings = points(trials, objective=objective)
    r2 = r2_levels(settings, reference, utility_levels(reference, control_mean(trials, objective)))
    at = {f"search/r2_at_{100 * share:.0f}": value for share, value in r2.items() if value is not None}
    return {"search/hypervolume": hypervolume(settings, reference), **at}


def describe_outcome(trial: Trial) -> str:
    """A trial's outcome in one line."""
    if trial.state == "failed":
        return f"{trial.name} failed: {trial.cause}"
    if trial.state != "finished":
        return f"{trial.name} was stopped early"
    low, high = trial.strongest_r2_low, trial.strongest_r2_high
    r2 = f"strongest R2 {trial.strongest_r2:.3f} [{low:.3f}, {high:.3f}] ({trial.attack})"
    return f"{trial.name}: accuracy {trial.accuracy:.4f}, {r2}, {trial.seconds:.0f} s"


def by_last_report(trials: Sequence[TuneTrial]) -> list[TuneTrial]:
    """The trials, sorted by the time of their last report."""
    return sorted(trials, key=lambda t: (t.last_result or {}).get("timestamp", float("inf")))


def row(trial: TuneTrial, status: str) -> Trial:
    """The trial as Tune knows it, with this status."""
    spec, result = trial.config, trial.last_result or {}
    finished = status == TuneTrial.TERMINATED and "accuracy" in result
    states = {TuneTrial.TERMINATED: "finished" if finished else "stopped", TuneTrial.ERROR: "failed"}
    results = {f.name: result[f.name] for f in dataclasses.fields(Trial) if finished and f.name in result}
    state: Any = states.get(status, "running")
    return Trial(
        name=trial_name(spec),
        setting=spec["setting"],
        seed=spec["seed"],
        control=spec["control"],
        state=state,
        cause=cause(trial) if state == "failed" else None,
        **results,
    )


def cause(trial: TuneTrial) -> str:
    """The last line of a failed trial's error output."""
    file = trial.error_file
    lines = [line.strip() for line in Path(file).read_text().splitlines() if line.strip()] if file else []
    return lines[-1] if lines else "its process ended without an error message (killed, or out of memory)"


def read_trials(folder: Path) -> list[Trial]:
    path = folder / TRIALS
    if not path.is_file():
        return []
    try:
        return [Trial(**values) for values in read_json(path)]
    except (OSError, ValueError, TypeError) as e:
        raise InputError(f"{path} is damaged ({type(e).__name__}): remove it, and resume the search") from e

"""One trial, in its own process: a training with its fresh attacks, reported to Tune and in `trial.json`."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from cpgan_ray.common.atomic_io import refuse_link, write_text
from cpgan_ray.common.json_files import read_json
from cpgan_ray.common.types import Metrics
from cpgan_ray.config import Config, SearchJob, override
from cpgan_ray.config.search_space import shown
from cpgan_ray.distributed.host import host_here
from cpgan_ray.distributed.resources import Bundle
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report.report import degenerate
from cpgan_ray.pipelines.session import LocalGame
from cpgan_ray.pipelines.train import RunContext, train
from cpgan_ray.pipelines.tune.proposals import stops_early
from cpgan_ray.tracking import end_attempts, tracking_uri
from cpgan_ray.training.checkpoint import Snapshot
from cpgan_ray.training.game import play_in_process

RESULT = "trial.json"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every trial of a search is told."""

    job: SearchJob
    sizes: dict[str, list[Bundle]]
    """Bundles of a defended trial and of a `control`; see `trial_sizes`."""
    parent: str
    """MLflow run of the search."""
    majority: float
    """Accuracy of the majority guess on the validation split."""
    environment: dict[str, str]
    """Variables by which the tracking store is reached."""


def play_trial(spec: dict[str, Any], *, shared: Shared) -> None:
    """One training with its fresh attacks; reports to Tune what a `frontier.Trial` is made of."""
    os.environ.update(shared.environment)
    job, name = shared.job, trial_name(spec)
    assert job.config.output is not None
    output = refuse_link(refuse_link(job.config.output / "trials") / folder_name(name))
    if (output / RESULT).is_file():
        tune.report(read_result(output / RESULT))
        return
    shutil.rmtree(output, ignore_errors=True)  # what an interrupted attempt has left
    sizes = shared.sizes["control" if spec["control"] else "defended"]
    config = trial_config(job, spec, output, sizes)
    end_attempts(tracking_uri(config.tracking, output), shared.parent, name)

    def listen(found: Metrics) -> None:
        gain, hidden = found["utility/val_accuracy"] - shared.majority, 1 - max(0.0, found["privacy/quick_r2"])
        score = gain * hidden if gain > 0 else gain  # what is worse than guessing does not get better by hiding less
        tune.report({"epoch": int(found["epoch"]), "score": score})

    context = RunContext(
        host=partial(trial_host, sizes=sizes),
        listen=listen,
        parent=shared.parent,
        tags={
            "search.role": "trial",
            "search.trial": name,
            "search.setting": json.dumps(spec["setting"]),
            "search.control": str(spec["control"]).lower(),
        },
        params={field: value for field, value in spec["setting"].items() if "." in field},
    )
    summary = train(config, context)
    report = json.loads((output / "report" / "report.json").read_text())
    utility, strongest = report["utility"], report["privacy"]["strongest"]
    result = {
        "accuracy": utility["accuracy"],
        "accuracy_low": utility["accuracy_low"],
        "accuracy_high": utility["accuracy_high"],
        "strongest_r2": strongest["r2"],
        "strongest_r2_low": strongest["low"],
        "strongest_r2_high": strongest["high"],
        "attack": strongest["attack"],
        "val_accuracy": utility["val_accuracy"],
        "val_r2": report["privacy"]["val_r2"],
        "majority_accuracy": utility["majority_accuracy"],
        "label_floor_r2": report["privacy"]["label_floor_r2"],
        "degenerate": next(iter(degenerate(report)), None),
        "seconds": summary["seconds"],
        "run_id": summary["run_id"],
        "output": summary["output"],
    }
    write_json(output / RESULT, result)
    tune.report(result)


def read_result(path: Path) -> dict[str, Any]:
    """Raises: InputError if the file is damaged: a search's folder may have been copied."""
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as e:
        raise InputError(f"{path} is damaged ({type(e).__name__}): remove its folder, and the trial is played again") from e


def trial_name(spec: Mapping[str, Any]) -> str:
    return ("control " if spec["control"] else "") + shown(spec["setting"], seed=spec["seed"])


def folder_name(name: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", name)


def trial_config(job: SearchJob, spec: Mapping[str, Any], output: Path, sizes: Sequence[Bundle]) -> Config:
    """The run of one trial. Its attacks are Ray tasks in the places of its adversaries where those have room for one, or where no
    other trial waits for their cores; else they are made one after the other in the trial's process."""
    c = override(job.config, {**spec["setting"], "seed": spec["seed"]})
    most = {kind: max((s.get(kind, 0.0) for s in sizes[1:]), default=0.0) for kind in ("CPU", "GPU")}
    alone = sum(s.get("CPU", 0.0) for s in sizes) > 1
    cpus = min(c.attacks.cpus, most["CPU"]) if alone and most["CPU"] else c.attacks.cpus
    room = cpus <= most["CPU"] and c.attacks.gpus <= most["GPU"]
    threads = c.runtime.threads or max(1, int(sizes[0].get("CPU", 1)))
    quick_every = (c.attacks.quick_every or -(-c.epochs // 4)) if stops_early(job) and not spec["control"] else 0
    return dataclasses.replace(
        c,
        output=output,
        attacks=dataclasses.replace(c.attacks, quick_every=quick_every, cpus=cpus),
        runtime=dataclasses.replace(c.runtime, backend="ray" if room else "local", threads=threads),
        recovery=dataclasses.replace(c.recovery, checkpoint_every=0, num_spares=0),  # an interrupted trial is played again
        tracking=dataclasses.replace(c.tracking, run_name=trial_name(spec)),
    )


@contextmanager
def trial_host(config: Config, snapshot: Snapshot | None, *, sizes: Sequence[Bundle]) -> Iterator[LocalGame]:
    """The game of a trial: the privatizer here, each adversary an actor, or all here where the search's backend is local."""
    assert snapshot is None, "a trial is played from its beginning"
    if len(sizes) > 1:
        with host_here(config, sizes) as host:
            yield LocalGame(host.game)
    else:
        yield LocalGame(play_in_process(config, threads=config.runtime.threads, keep=True))


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(values, indent=1) + "\n")

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

from cpgan_ray.analysis.outcome import trial_outcome
from cpgan_ray.common.atomic_io import refuse_link
from cpgan_ray.common.json_files import read_json, write_json
from cpgan_ray.common.types import Metrics
from cpgan_ray.config import Config, SearchJob, override
from cpgan_ray.config.search_space import shown
from cpgan_ray.distributed.host import host_here
from cpgan_ray.distributed.resources import Bundle
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.session import LocalGame
from cpgan_ray.pipelines.train import RunContext, train
from cpgan_ray.pipelines.tune.proposals import stops_early
from cpgan_ray.tracking import end_attempts, tracking_uri
from cpgan_ray.training.checkpoint import Snapshot
from cpgan_ray.training.game import play_in_process

RESULT = "trial.json"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Values that all trials of a search share."""

    job: SearchJob
    sizes: dict[str, list[Bundle]]
    """Bundles of a defended trial and of a `control`; see `trial_sizes`."""
    parent: str
    """Id of the search's MLflow run."""
    guess: float
    """Utility of the majority guess on the validation split."""
    environment: dict[str, str]
    """Environment variables that are needed to reach the tracking store."""


def play_trial(spec: dict[str, Any], *, shared: Shared) -> None:
    """Run one training with its fresh attacks, and report the fields of a `Trial` (analysis/fronts/trials.py) to Tune."""
    os.environ.update(shared.environment)
    job, name = shared.job, trial_name(spec)
    assert job.config.output is not None
    output = refuse_link(refuse_link(job.config.output / "trials") / folder_name(name))
    if (output / RESULT).is_file():
        tune.report(read_result(output / RESULT))
        return
    shutil.rmtree(output, ignore_errors=True)  # files of an interrupted attempt
    sizes = shared.sizes["control" if spec["control"] else "defended"]
    config = trial_config(job, spec, output, sizes)
    end_attempts(tracking_uri(config.tracking, output), shared.parent, name)

    def report_score(values: Metrics) -> None:
        gain, hidden = values[f"utility/val_{job.objective}"] - shared.guess, 1 - max(0.0, values["privacy/quick_r2"])
        score = gain * hidden if gain > 0 else gain  # if it is worse than guessing, less privacy must not raise the score
        tune.report({"epoch": int(values["epoch"]), "score": score})

    context = RunContext(
        host=partial(trial_host, sizes=sizes),
        on_quick_attack=report_score,
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
    result = trial_outcome(report, strongest=report["privacy"]["strongest"])
    result |= {name: summary[name] for name in ("seconds", "run_id", "output")}
    write_json(output / RESULT, result)
    tune.report(result)


def read_result(path: Path) -> dict[str, Any]:
    """Read a trial's result. It is checked, because the search's folder may have been copied.

    Raises: InputError if the file is damaged.
    """
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as e:
        raise InputError(f"{path} is damaged ({type(e).__name__}): remove its folder, and the trial is run again") from e


def trial_name(spec: Mapping[str, Any]) -> str:
    return ("control " if spec["control"] else "") + shown(spec["setting"], seed=spec["seed"])


def folder_name(name: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", name)


def trial_config(job: SearchJob, spec: Mapping[str, Any], output: Path, sizes: Sequence[Bundle]) -> Config:
    """The configuration of one trial. Its attacks are Ray tasks in the bundles of its adversaries if an attack fits into one of
    these bundles, or if the trial has several cores. Otherwise they run one after the other in the trial's process."""
    c = override(job.config, {**spec["setting"], "seed": spec["seed"]})
    largest = {kind: max((s.get(kind, 0.0) for s in sizes[1:]), default=0.0) for kind in ("CPU", "GPU")}
    several_cores = sum(s.get("CPU", 0.0) for s in sizes) > 1
    cpus = min(c.attacks.cpus, largest["CPU"]) if several_cores and largest["CPU"] else c.attacks.cpus
    fits = cpus <= largest["CPU"] and c.attacks.gpus <= largest["GPU"]
    threads = c.runtime.threads or max(1, int(sizes[0].get("CPU", 1)))
    quick_every = (c.attacks.quick_every or -(-c.epochs // 4)) if stops_early(job) and not spec["control"] else 0
    return dataclasses.replace(
        c,
        output=output,
        attacks=dataclasses.replace(c.attacks, quick_every=quick_every, cpus=cpus),
        runtime=dataclasses.replace(c.runtime, backend="ray" if fits else "local", threads=threads),
        recovery=dataclasses.replace(c.recovery, checkpoint_every=0, num_spares=0),  # an interrupted trial is run again
        tracking=dataclasses.replace(c.tracking, run_name=trial_name(spec)),
    )


@contextmanager
def trial_host(config: Config, snapshot: Snapshot | None, *, sizes: Sequence[Bundle]) -> Iterator[LocalGame]:
    """The game of a trial: the privatizer in this process, each adversary in an actor; if the search's backend is local, all
    players in this process."""
    assert snapshot is None, "a trial always starts at its first round"
    if len(sizes) > 1:
        with host_here(config, sizes) as host:
            yield LocalGame(host.game)
    else:
        yield LocalGame(play_in_process(config, threads=config.runtime.threads, keep=True))

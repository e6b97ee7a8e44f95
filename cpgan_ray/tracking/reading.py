"""What was tracked, read again: a run's files, its curves, and the trials that an experiment or a search amounts to."""

import ast
import atexit
import difflib
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cpgan_ray.analysis.fronts import State, Trial
from cpgan_ray.common.credentials import move_to_env, redacted, remember
from cpgan_ray.common.json_files import parse_json, read_limited
from cpgan_ray.common.ownership import SUFFIX
from cpgan_ray.config import flatten
from cpgan_ray.config.presets import PRESETS
from cpgan_ray.errors import InputError, printable
from cpgan_ray.tracking.store import STORE, all_runs
from cpgan_ray.tracking.uri import database_file, ensure_same_host, ensure_store, short

STATES: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
"""Of a trial by its run's status, where the search has not said it; `running` for all others."""
INDIFFERENT = ("seed", "k", "privacy_weight", "skip_corrupt", "attacks.quick_every", "attacks.cpus", "attacks.gpus")
"""Fields by which runs are not told apart: part of every trial anyway, or without effect on what a run comes to."""
ADVERSARY = re.compile(r"[\w.+/-]{1,60}")
MAX_METRICS_BYTES, MAX_R2 = 2 << 30, 1e9
"""Limits to what is read of a `metrics.jsonl`, which may come from elsewhere."""


def read_curves(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """R2 of each training adversary by round, from a run's `metrics.jsonl`; empty where there is none.

    Raises: InputError where a line of it is damaged.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    if not path.is_file():
        return curves
    try:
        content = read_limited(path, max_bytes=MAX_METRICS_BYTES)
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read ({short(e)}): remove it, and the report has no learning curves") from e
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = parse_json(line)
            for name, value in row.items():
                parts = name.split("/")
                if parts[0] == "adversary" and parts[-1] == "r2" and value is not None:
                    if not ADVERSARY.fullmatch("/".join(parts[1:-1])) or not abs(float(value)) < MAX_R2:
                        raise ValueError(name)
                    rounds, r2 = curves.setdefault("/".join(parts[1:-1]), ([], []))
                    rounds.append(int(row["round"]))
                    r2.append(float(value))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
            raise InputError(f"{path}, line {number} is damaged ({type(e).__name__}): take the line out") from e
    return curves


def fetch_run(run_id: str) -> Path:
    """What MLflow has of a finished run, downloaded into a temporary folder like its output folder.

    Raises: InputError where the tracking store or the run is not there.
    """
    uri = store_to_read(None)
    if uri.startswith("sqlite:///") and not database_file(uri).is_file():
        raise InputError(f"there is no tracking store {redacted(uri)} to look run {run_id} up in: set MLFLOW_TRACKING_URI")
    ensure_store(uri, option="MLFLOW_TRACKING_URI")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    folder = Path(tempfile.mkdtemp(prefix="cpgan-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        client = mlflow.MlflowClient(uri)
        ensure_same_host(client.get_run(run_id).info.artifact_uri, uri, of=f"MLflow run {run_id}")
        signed = {"config.json" + SUFFIX} & {artifact.path for artifact in client.list_artifacts(run_id)}
        for name in (*signed, "config.json", "privatizer.pt2", "utility_head.pt2", "metrics.jsonl"):
            got = Path(client.download_artifacts(run_id, name, str(folder)))
            if got.is_symlink() or not got.is_file() or got.resolve() != (folder / name).resolve():
                raise ValueError(f"{name} is no file")
    except InputError:
        raise
    except Exception as e:  # each kind of store has errors of its own
        raise InputError(
            f"MLflow at {redacted(uri)} has no finished run {run_id} ({short(e)}): give another id, or the output folder"
        ) from e
    return folder


def store_to_read(uri: str | None) -> str:
    """The tracking store that is read where no other is named; its credentials are in the environment."""
    uri = move_to_env(uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(Path('outputs') / STORE).resolve()}")
    remember(uri)
    return uri


def read_trials(uri: str | None, name: str, *, method: str = "") -> list[Trial]:
    """The trainings that an MLflow experiment has, or that are below a search's run given by its id; in the order they ended.

    A run counts that has `utility/accuracy` and `privacy/strongest_r2`, or is a trial of a search; attacks on runs and the searches
    themselves do not. Of several attempts at a trial the last counts. A trial's setting is what its search says, else k and privacy
    weight; and with it every other field in which the runs read here differ, so that none is averaged with what is no repetition of
    it. The validation R2 of a run that has none is that of the test split.

    Raises: InputError where the store does not answer or has no such experiment.
    """
    option = "tracking_uri" if uri or not os.environ.get("MLFLOW_TRACKING_URI") else "MLFLOW_TRACKING_URI"
    uri = store_to_read(uri)
    if uri.startswith("sqlite:///") and not database_file(uri).exists():
        raise InputError(f"there is no tracking store {redacted(uri)}: give --tracking-uri, or set MLFLOW_TRACKING_URI")
    ensure_store(uri, option=option)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    try:
        runs = tracked_runs(mlflow.MlflowClient(uri), name)
    except InputError:
        raise
    except Exception as e:  # each kind of store has errors of its own
        raise InputError(f"MLflow at {redacted(uri)} cannot be read ({short(e)}): give another --tracking-uri") from e
    attempts: dict[tuple[str, ...], Run] = {}
    for run in sorted(filter(counts, runs), key=lambda run: run.info.start_time):
        tags = run.data.tags
        trial = tags.get("search.trial")
        attempts[(tags.get("mlflow.parentRunId", ""), trial) if trial else (run.info.run_id,)] = run
    kept = sorted(attempts.values(), key=lambda run: (run.info.end_time or math.inf, run.info.start_time))
    return [checked_trial(run, more, method=method) for run, more in zip(kept, differences(kept), strict=True)]


def tracked_runs(client: mlflow.MlflowClient, name: str) -> list[Run]:
    """Raises: InputError with the nearest names where the store has neither an experiment nor a run of that name."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "active":
        return all_runs(client, experiment.experiment_id)
    if re.fullmatch(r"[0-9a-f]{32}", name):
        try:
            return all_runs(client, client.get_run(name).info.experiment_id, f"tags.`mlflow.parentRunId` = '{name}'")
        except MlflowException:
            pass  # no run has this id
    known = [e.name for e in client.search_experiments()]
    near = difflib.get_close_matches(name, known, n=3) or known[:3]
    raise InputError(f"MLflow has no experiment {name!r}; nearest: {', '.join(near)}")


def counts(run: Run) -> bool:
    """Whether a run is a training that may be a trial."""
    data = run.data
    if "attacked" in data.tags or data.tags.get("search.role") == "parent" or not {"k", "privacy_weight"} <= data.params.keys():
        return False
    return "search.trial" in data.tags or {"utility/accuracy", "privacy/strongest_r2"} <= data.metrics.keys()


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run, its value of every field in which the runs differ."""
    told: list[dict[str, str]] = []
    for run in runs:
        preset = run.data.params.get("preset", "")
        fields = {name: str(value) for name, value in flatten(PRESETS[preset]()).items()} if preset in PRESETS else {}
        changed = {n.removeprefix("changed."): v for n, v in run.data.tags.items() if n.startswith("changed.")}
        told.append(fields | changed | {"preset": preset})
    names = sorted({name for one in told for name in one if len({other.get(name) for other in told}) > 1} - {*INDIFFERENT})
    return [{name: parsed(one[name]) for name in names if name in one} for one in told]


def parsed(text: str) -> Any:
    """A number or truth value where the text is one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return printable(text)
    return value if isinstance(value, int | float) else printable(text)


def checked_trial(run: Run, more: Mapping[str, Any], *, method: str) -> Trial:
    """Raises: InputError if a run's tags or parameters are not those of a training: whoever writes to a store can set them."""
    try:
        return trial_of(run, more, method=method)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"MLflow run {run.info.run_id} is no training of this package ({short(e)}): delete it there") from e


def trial_of(run: Run, more: Mapping[str, Any], *, method: str) -> Trial:
    """more: fields in which the runs differ, beside the trial's setting."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    weight = float(params["privacy_weight"])
    told = parse_json(tags["search.setting"]) if "search.setting" in tags else {"k": int(params["k"]), "privacy_weight": weight}
    if not all(isinstance(value, str | int | float | list | None) for value in told.values()):
        raise ValueError("search.setting")
    setting = {printable(str(name)): printable(v) if isinstance(v, str) else v for name, v in told.items()}
    state: Any = tags.get("search.state")
    if state not in get_args(State):
        state = STATES.get(run.info.status, "running")
    used = run.inputs.dataset_inputs if run.inputs else []
    return Trial(
        name=printable(tags.get("search.trial") or run.info.run_name or run.info.run_id),
        setting=dict(more) | setting,
        seed=int(params.get("seed", 0)),
        state=state,
        control=tags.get("search.control") == "true" or weight == 0,
        accuracy=metrics.get("utility/accuracy"),
        accuracy_low=metrics.get("utility/accuracy_low"),
        accuracy_high=metrics.get("utility/accuracy_high"),
        strongest_r2=metrics.get("privacy/strongest_r2"),
        strongest_r2_low=metrics.get("privacy/strongest_r2_low"),
        strongest_r2_high=metrics.get("privacy/strongest_r2_high"),
        attack=printable(tags["strongest.attack"]) if "strongest.attack" in tags else None,
        val_accuracy=metrics.get("utility/val_accuracy"),
        val_r2=metrics.get("privacy/val_r2", metrics.get("privacy/strongest_r2")),
        majority_accuracy=metrics.get("utility/majority_accuracy"),
        label_floor_r2=metrics.get("privacy/label_floor_r2"),
        seconds=metrics.get("time/total_s"),
        run_id=run.info.run_id,
        method=method,
        data=used[0].dataset.digest if used else None,
        degenerate=tags.get("code.degenerate"),
    )

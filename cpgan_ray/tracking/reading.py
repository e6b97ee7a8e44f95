"""Reads tracked runs: a run's files, its learning curves, and the trials of an experiment or a search."""

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

from cpgan_ray.analysis.fronts import CLIENT, CLOUD, LINKAGE, UTILITY, State, Trial
from cpgan_ray.common.credentials import move_to_env, redacted, remember
from cpgan_ray.common.json_files import parse_json, read_limited
from cpgan_ray.common.ownership import SUFFIX
from cpgan_ray.config import flatten
from cpgan_ray.config.presets import PRESETS
from cpgan_ray.errors import InputError, printable
from cpgan_ray.tracking.store import STORE, all_runs
from cpgan_ray.tracking.uri import database_file, ensure_same_host, ensure_store, short_message

STATES: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
"""Status of a run -> state of its trial, if the search has not set the tag `search.state`; `running` for any other status."""
IGNORED_FIELDS = ("seed", "k", "privacy_weight", "skip_corrupt", "attacks.quick_every", "attacks.cpus", "attacks.gpus")
"""Fields that do not distinguish runs: they are part of every trial anyway, or have no effect on the result."""
ADVERSARY = re.compile(r"[\w.+/-]{1,60}")
MAX_METRICS_BYTES, MAX_R2 = 2 << 30, 1e9
"""Limits for reading a `metrics.jsonl`, which may come from another user."""


def read_curves(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Name of each training adversary -> rounds and R2, from a run's `metrics.jsonl`; empty if the file is absent.

    Raises: InputError if the file cannot be read or a line is damaged.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    if not path.is_file():
        return curves
    try:
        content = read_limited(path, max_bytes=MAX_METRICS_BYTES)
    except (OSError, ValueError) as e:
        raise InputError(
            f"{path} cannot be read ({short_message(e)}): remove it to write the report without learning curves"
        ) from e
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
            raise InputError(f"{path}, line {number} is damaged ({type(e).__name__}): remove this line") from e
    return curves


def fetch_run(run_id: str) -> Path:
    """Downloads the files of a finished run from MLflow to a temporary folder with the layout of an output folder.

    Raises: InputError if the tracking store or the run does not exist.
    """
    uri = resolve_store_uri(None)
    if uri.startswith("sqlite:///") and not database_file(uri).is_file():
        raise InputError(f"there is no tracking store {redacted(uri)} to look up run {run_id}: set MLFLOW_TRACKING_URI")
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
        reports = {"report/report.json"} & {artifact.path for artifact in client.list_artifacts(run_id, "report")}
        for name in (*signed, *reports, "config.json", "privatizer.pt2", "utility_head.pt2", "metrics.jsonl"):
            (folder / name).parent.mkdir(exist_ok=True)
            path = Path(client.download_artifacts(run_id, name, str((folder / name).parent)))
            if path.is_symlink() or not path.is_file() or path.resolve() != (folder / name).resolve():
                raise ValueError(f"{name} is not a file")
    except InputError:
        raise
    except Exception as e:  # each type of store raises its own errors
        raise InputError(
            f"MLflow at {redacted(uri)} has no finished run {run_id} ({short_message(e)}): give another id, or the output folder"
        ) from e
    return folder


def resolve_store_uri(uri: str | None) -> str:
    """The URI of the tracking store to read, with defaults; its credentials are moved to the environment."""
    uri = move_to_env(uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(Path('outputs') / STORE).resolve()}")
    remember(uri)
    return uri


def read_trials(uri: str | None, name: str, *, method: str = "") -> list[Trial]:
    """The trials of an MLflow experiment, given by name, or of a search, given by its run id; in the order in which they ended.

    Runs with `utility/accuracy` and `privacy/strongest_r2`, and trials of a search, are trials; attacks on runs and the searches
    themselves are not. Of several attempts at a trial only the last counts. The setting of a trial comes from its search, else it
    is k and the privacy weight. It also includes every other field in which the runs differ, so that only repetitions of the same
    setting are averaged. If a run has no validation R2, its test R2 is used instead.

    Raises: InputError if the store does not respond or has no such experiment.
    """
    option = "tracking_uri" if uri or not os.environ.get("MLFLOW_TRACKING_URI") else "MLFLOW_TRACKING_URI"
    uri = resolve_store_uri(uri)
    if uri.startswith("sqlite:///") and not database_file(uri).exists():
        raise InputError(f"there is no tracking store {redacted(uri)}: give --tracking-uri, or set MLFLOW_TRACKING_URI")
    ensure_store(uri, option=option)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    try:
        runs = tracked_runs(mlflow.MlflowClient(uri), name)
    except InputError:
        raise
    except Exception as e:  # each type of store raises its own errors
        raise InputError(f"MLflow at {redacted(uri)} cannot be read ({short_message(e)}): give another --tracking-uri") from e
    attempts: dict[tuple[str, ...], Run] = {}
    for run in sorted(filter(is_trial, runs), key=lambda run: run.info.start_time):
        tags = run.data.tags
        trial = tags.get("search.trial")
        attempts[(tags.get("mlflow.parentRunId", ""), trial) if trial else (run.info.run_id,)] = run
    latest = sorted(attempts.values(), key=lambda run: (run.info.end_time or math.inf, run.info.start_time))
    return [to_trial(run, fields, method=method) for run, fields in zip(latest, differing_fields(latest), strict=True)]


def tracked_runs(client: mlflow.MlflowClient, name: str) -> list[Run]:
    """Raises: InputError with similar names if the store has neither an experiment nor a run of that name."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "active":
        return all_runs(client, experiment.experiment_id)
    if re.fullmatch(r"[0-9a-f]{32}", name):
        try:
            return all_runs(client, client.get_run(name).info.experiment_id, f"tags.`mlflow.parentRunId` = '{name}'")
        except MlflowException:
            pass  # no run has this id
    names = [e.name for e in client.search_experiments()]
    near = difflib.get_close_matches(name, names, n=3) or names[:3]
    raise InputError(f"MLflow has no experiment {name!r}; nearest: {', '.join(near)}")


def is_trial(run: Run) -> bool:
    """Whether a run is a training run that counts as a trial."""
    data = run.data
    if "attacked" in data.tags or data.tags.get("search.role") == "parent" or not {"k", "privacy_weight"} <= data.params.keys():
        return False
    return "search.trial" in data.tags or {"utility/accuracy", "privacy/strongest_r2"} <= data.metrics.keys()


def differing_fields(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run, the values of all fields in which the runs differ."""
    settings: list[dict[str, str]] = []
    for run in runs:
        preset = run.data.params.get("preset", "")
        fields = {name: str(value) for name, value in flatten(PRESETS[preset]()).items()} if preset in PRESETS else {}
        changed = {n.removeprefix("changed."): v for n, v in run.data.tags.items() if n.startswith("changed.")}
        settings.append(fields | changed | {"preset": preset})
    all_names = {name for fields in settings for name in fields}
    names = sorted({n for n in all_names if len({fields.get(n) for fields in settings}) > 1} - {*IGNORED_FIELDS})
    return [{name: parse_value(fields[name]) for name in names if name in fields} for fields in settings]


def parse_value(text: str) -> Any:
    """The number or boolean that a text represents; otherwise the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return printable(text)
    return value if isinstance(value, int | float) else printable(text)


def to_trial(run: Run, fields: Mapping[str, Any], *, method: str) -> Trial:
    """Raises: InputError if a run's tags or parameters are not those of a training run: anybody who can write to a store can set
    them."""
    try:
        return build_trial(run, fields, method=method)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(
            f"MLflow run {run.info.run_id} is not a training run of this package ({short_message(e)}): delete it in MLflow"
        ) from e


def build_trial(run: Run, fields: Mapping[str, Any], *, method: str) -> Trial:
    """fields: the fields in which the runs differ, in addition to the trial's setting."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    weight = float(params["privacy_weight"])
    values = parse_json(tags["search.setting"]) if "search.setting" in tags else {"k": int(params["k"]), "privacy_weight": weight}
    if not all(isinstance(value, str | int | float | list | None) for value in values.values()):
        raise ValueError("search.setting")
    setting = {printable(str(name)): printable(v) if isinstance(v, str) else v for name, v in values.items()}
    state: Any = tags.get("search.state")
    if state not in get_args(State):
        state = STATES.get(run.info.status, "running")
    utility: dict[str, Any] = {name: metrics.get(f"utility/{name}") for name in UTILITY}
    client: dict[str, Any] = {field: metrics.get(f"client/{name}") for field, name in CLIENT.items()}
    cloud: dict[str, Any] = {field: metrics.get(f"cloud/{name}") for field, name in CLOUD.items()}
    excess: dict[str, Any] = {name: metrics.get(f"privacy/{name}") for name in ("excess_r2", "excess_r2_low", "excess_r2_high")}
    linkage: dict[str, Any] = {name: metrics.get(f"privacy/strongest_{name}") for name in LINKAGE}
    datasets = run.inputs.dataset_inputs if run.inputs else []
    return Trial(
        name=printable(tags.get("search.trial") or run.info.run_name or run.info.run_id),
        setting=dict(fields) | setting,
        seed=int(params.get("seed", 0)),
        state=state,
        control=tags.get("search.control") == "true" or weight == 0,
        **utility,
        strongest_r2=metrics.get("privacy/strongest_r2"),
        strongest_r2_low=metrics.get("privacy/strongest_r2_low"),
        strongest_r2_high=metrics.get("privacy/strongest_r2_high"),
        attack=printable(tags["strongest.attack"]) if "strongest.attack" in tags else None,
        val_r2=metrics.get("privacy/val_r2", metrics.get("privacy/strongest_r2")),
        label_floor_r2=metrics.get("privacy/label_floor_r2"),
        answers_floor_r2=metrics.get("privacy/answers_floor_r2"),
        **excess,
        **linkage,
        **client,
        **cloud,
        bits=metrics.get("code/bits", metrics.get("code/bits_raw")),
        bits_low=metrics.get("code/bits_low"),
        bits_high=metrics.get("code/bits_high"),
        val_bits=metrics.get("code/val_bits", metrics.get("code/bits_raw")),
        seconds=metrics.get("time/total_s"),
        run_id=run.info.run_id,
        method=method,
        data=datasets[0].dataset.digest if datasets else None,
        degenerate=tags.get("code.degenerate"),
    )

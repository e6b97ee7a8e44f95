"""Where a run leaves its traces: MLflow, `metrics.jsonl`, `config.json` and the console. The only module that imports MLflow.

One process logs, the driver. A tracker that cannot start stops the run.
"""

import ast
import atexit
import difflib
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from PIL import Image
from tqdm import tqdm

from cpgan_ray.config import Config, TrackingConfig, flatten, to_json
from cpgan_ray.data import Dataset
from cpgan_ray.errors import InputError
from cpgan_ray.frontier import State, Trial
from cpgan_ray.messages import Event, Metrics
from cpgan_ray.presets import PRESETS

EVENTS = "events.jsonl"
"""File of the losses that a run has survived."""
STORE = "mlflow.db"
"""SQLite file of the default tracking store, beside the output folders."""
FLUSH_S = 5.0
"""How often buffered metrics are sent, in seconds."""
PLAIN_LINE_S = 10.0
"""How often a line is printed where the output is no terminal, in seconds."""
BATCH_LIMIT = 1000
"""Most metrics that MLflow takes in one call."""


@contextmanager
def open_store(tracking: TrackingConfig, output: Path) -> Iterator[mlflow.MlflowClient]:
    """The tracking store and its experiment, made if need be: SQLite beside the output folder where no other is named.

    Raises: InputError where it does not answer, or what is done in the block fails.
    """
    uri = tracking_uri(tracking, output)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default waits for minutes before it says anything
    try:
        if uri.startswith("sqlite:"):
            output.parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        if mlflow.get_experiment_by_name(tracking.experiment) is None:
            artifacts = (output.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
            mlflow.create_experiment(tracking.experiment, artifact_location=artifacts)
        mlflow.set_experiment(tracking.experiment)
        yield mlflow.MlflowClient()
    except Exception as e:  # each kind of store has errors of its own
        reason = str(e).partition("\n")[0]
        raise InputError(f"MLflow cannot track at {uri} ({reason}): start it there, or give another --tracking.uri") from e


def tracking_uri(tracking: TrackingConfig, output: Path) -> str:
    """Where a run is tracked that is not told."""
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output.parent / STORE}"


class Tracker:
    """One MLflow run and its local files, from start to `close`."""

    def __init__(
        self,
        config: Config,
        output: Path,
        *,
        dataset: Dataset,
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        resume: str | None = None,
        played: int = 0,
    ) -> None:
        """Start the run; `parent`: id of the run that it is shown under, if the store has it. `params`: beside the usual ones.

        resume: go on with the run of that id, of which `played` rounds stand; what it has logged of later ones is logged again.

        Raises: InputError where the tracking store does not answer or cannot be written to.
        """
        self.config, self.output = config, output
        self.buffer: list[Metric] = []
        self.flushed = time.monotonic()
        with open_store(config.tracking, output) as self.client:
            if parent is not None:
                parent = self.known(parent)
            name = config.tracking.run_name or f"{config.preset} k={config.k} w={config.privacy_weight:g}"
            self.run = mlflow.start_run(
                run_id=resume,
                run_name=None if resume else name,
                parent_run_id=parent,
                tags=dict(tags or {}),
                log_system_metrics=config.tracking.system_metrics,
            )
        self.run_id = self.run.info.run_id
        output.mkdir(parents=True, exist_ok=True)
        if resume:
            forget_rounds(output / "metrics.jsonl", played)
        self.jsonl = (output / "metrics.jsonl").open("a")
        if not resume:
            self.describe(dataset, params or {})

    def known(self, run_id: str) -> str | None:
        """The id where this store has the run: an output folder may have been copied away from its store."""
        try:
            return self.client.get_run(run_id).info.run_id
        except MlflowException:
            return None

    def describe(self, dataset: Dataset, more: Mapping[str, Any]) -> None:
        """Parameters worth comparing, what differs from the preset as tags, and the data set with its digest."""
        c = self.config
        params = {
            "preset": c.preset,
            "k": c.k,
            "privacy_weight": c.privacy_weight,
            "seed": c.seed,
            "epochs": c.epochs,
            "batch_size": c.batch_size,
            "adversaries": " ".join(c.adversaries) if c.privacy_weight > 0 else "none",
            "aggregate": c.game.aggregate,
            "privacy": c.game.privacy,
            "schedule": c.game.schedule,
            "labels": len(c.data.labels) or len(dataset.label_names),
            "image_size": c.data.image_size,
        }
        mlflow.log_params(params | dict(more))
        base = flatten(PRESETS[c.preset]()) if c.preset in PRESETS else {}
        local = ("output", "data_dir", "cache_dir", "runtime.", "recovery.", "tracking.")
        changed = {n: v for n, v in flatten(c).items() if base.get(n, v) != v and not n.startswith(local)}
        mlflow.set_tags({f"changed.{name}": str(value) for name, value in changed.items()})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The specified dataset source can be interpreted")  # a local folder, twice
            source = resolve_dataset_source(str(dataset.folder))
        mlflow.log_input(MetaDataset(source, name=c.data.dataset, digest=dataset.digest[:36]), context="training")
        told = to_json(c) | {"store": str(dataset.folder), "run_id": self.run_id}
        (self.output / "config.json").write_text(json.dumps(told, indent=1) + "\n")
        mlflow.log_artifact(str(self.output / "config.json"))

    def log(self, metrics: Metrics, *, step: int) -> None:
        """Keep metrics for the next flush, and write them to `metrics.jsonl`."""
        now = int(time.time() * 1000)
        self.buffer += [Metric(name, value, now, step) for name, value in metrics.items() if np.isfinite(value)]
        values = {name: value if np.isfinite(value) else None for name, value in metrics.items()}
        self.jsonl.write(json.dumps({"round": step} | values) + "\n")
        if time.monotonic() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.jsonl.flush()
        while self.buffer:
            part, self.buffer = self.buffer[:BATCH_LIMIT], self.buffer[BATCH_LIMIT:]
            self.client.log_batch(self.run_id, metrics=part, synchronous=False)
        self.flushed = time.monotonic()

    def settle(self) -> None:
        """Everything logged so far is on disk and in the store when this returns."""
        self.flush()
        mlflow.flush_async_logging()

    def log_events(self, events: Sequence[Event]) -> None:
        """Losses that the game survived: a line each on standard error and in `events.jsonl`, and two metrics."""
        for event in events:
            with (self.output / EVENTS).open("a") as file:
                file.write(json.dumps(asdict(event)) + "\n")
            self.log({"fault/replayed_rounds": event.replayed, "fault/recovery_s": event.seconds}, step=event.round)
            mlflow.log_artifact(str(self.output / EVENTS))
            told = f"round {event.round}: {event.cause}; {event.replayed} rounds are played again, after {event.seconds:.1f} s"
            print(told, file=sys.stderr, flush=True)

    def tag(self, name: str, value: str) -> None:
        mlflow.set_tag(name, value)

    def log_panel(self, panel: Image.Image, *, step: int) -> None:
        """A picture of reconstructions: in the run's images by step, and beside the report."""
        mlflow.log_image(panel, key="reconstructions", step=step)
        (self.output / "report").mkdir(exist_ok=True)
        panel.save(self.output / "report" / f"reconstructions-{step:06d}.png")

    def log_folder(self, folder: Path, name: str) -> None:
        """All files of a folder as artifacts; a report's panels also among the run's images."""
        mlflow.log_artifacts(str(folder), name)
        for picture in sorted(folder.glob("*.png")):
            with Image.open(picture) as opened:
                mlflow.log_image(opened.copy(), artifact_file=f"images/{picture.name}")

    def log_programs(self, programs: Mapping[str, bytes], examples: Mapping[str, np.ndarray]) -> None:
        """The exported programs as files, and as MLflow models with signature."""
        for name, program in programs.items():
            path = self.output / f"{name}.pt2"
            path.write_bytes(program)
            mlflow.log_artifact(str(path))
            if self.config.tracking.log_models:
                log_model(name, path, examples[name])

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        try:
            self.settle()
            mlflow.log_artifact(str(self.output / "metrics.jsonl"))
        finally:
            self.jsonl.close()
            mlflow.end_run(status)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")


class SearchRun:
    """The parent run of a search. It is made before any trial, so that store and experiment are made once and by one process.

    Each trial's own process logs the trial's run, a child; the driver logs this one, and says of the children what only it knows.
    """

    def __init__(self, config: Config, output: Path, *, name: str, params: Mapping[str, Any], run_id: str | None = None) -> None:
        """Start it, or go on with `run_id`.

        Raises: InputError where the tracking store does not answer or does not have that run.
        """
        with open_store(config.tracking, output) as self.client:
            experiment = self.client.get_experiment_by_name(config.tracking.experiment)
            assert experiment is not None
            self.experiment_id = experiment.experiment_id
            if run_id is None:
                tags = {"search.role": "parent", "mlflow.source.name": "jobs/tune_celeba.py"}
                run_id = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
                for key, value in params.items():
                    self.client.log_param(run_id, key, value)
            else:
                self.client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def log(self, metrics: Metrics, *, step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def log_files(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.client.log_artifact(self.run_id, str(path))

    def children(self) -> list[Run]:
        """The trials' runs, those of failed and interrupted attempts included."""
        return children(self.client, self.experiment_id, self.run_id)

    def label(self, states: Mapping[str, str], front: Collection[str]) -> None:
        """Tag each trial's run with the trial's state, and whether it lies on the front. Both by the trial's name."""
        for run in self.children():
            name = run.data.tags.get("search.trial", "")
            told = {"search.state": states.get(name, "killed"), "search.front": str(name in front).lower()}
            if run.info.status != "FINISHED":  # an attempt before the one that counts
                told = {"search.state": run.info.status.lower(), "search.front": "false"}
            for key, value in told.items():
                if run.data.tags.get(key) != value:
                    self.client.set_tag(run.info.run_id, key, value)

    def end_children(self, status: str, *, names: Collection[str] | None = None) -> None:
        """End the runs of trials, of those named if given, that nobody writes to any more."""
        for run in self.children():
            mine = names is None or run.data.tags.get("search.trial") in names
            if mine and run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, status)

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)


def children(client: mlflow.MlflowClient, experiment_id: str, parent: str) -> list[Run]:
    """All runs below a parent run."""
    return all_runs(client, experiment_id, f"tags.`mlflow.parentRunId` = '{parent}'")


def end_attempts(uri: str, parent: str, trial: str) -> None:
    """Mark earlier attempts at a trial whose process ended without a word as FAILED."""
    client = mlflow.MlflowClient(uri)
    for run in children(client, client.get_run(parent).info.experiment_id, parent):
        if run.data.tags.get("search.trial") == trial and run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "FAILED")


def log_model(name: str, program: Path, example: np.ndarray) -> None:
    """An exported program as an MLflow PyTorch model; its signature comes from running it on the example."""
    import torch
    from mlflow import pytorch as mlflow_pytorch
    from mlflow.models import infer_signature

    module = torch.export.load(program).module()
    with torch.no_grad():
        answer = module(torch.from_numpy(example)).numpy()
    signature = infer_signature(example, answer)
    requirements = [
        f"torch=={torch.__version__.split('+')[0]}",
        f"numpy=={np.__version__}",
    ]  # given, or MLflow looks for them for long
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # of tensors that share storage: none is lost
        mlflow_pytorch.log_model(module, name=name, signature=signature, input_example=example, pip_requirements=requirements)


class Console:
    """Progress as a live line on a terminal, as plain lines elsewhere; on standard error."""

    def __init__(self, *, total_rounds: int, rounds_per_epoch: int, names: Sequence[str], done: int = 0) -> None:
        """done: rounds that were played before."""
        self.total_rounds, self.rounds_per_epoch, self.names, self.before = total_rounds, rounds_per_epoch, names, done
        self.bar = tqdm(total=total_rounds, initial=done, unit="round", disable=None, dynamic_ncols=True)
        self.started = self.said = time.monotonic()

    def show(self, played: Sequence[Metrics]) -> None:
        """The state after some more rounds."""
        last = played[-1]
        done = int(last["round"]) + 1
        text = self.line(last, done)
        if self.bar.disable:
            now = time.monotonic()
            if now - self.said >= PLAIN_LINE_S or done == self.total_rounds:
                self.said = now
                print(
                    f"round {done}/{self.total_rounds}, {(done - self.before) / (now - self.started):.1f} rounds/s, {text}",
                    file=sys.stderr,
                    flush=True,
                )
        else:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(len(played))

    def line(self, last: Metrics, done: int) -> str:
        epoch = -(-done // self.rounds_per_epoch)
        parts = [f"epoch {epoch}", f"accuracy {last['utility/batch_accuracy']:.3f}"]
        if "utility/val_accuracy" in last:
            parts.append(f"validation {last['utility/val_accuracy']:.3f}")
        parts += [f"{name} R2 {last[key]:.3f}" for name in self.names if (key := f"adversary/{name}/r2") in last]
        return ", ".join(parts)

    def close(self) -> None:
        self.bar.close()


def forget_rounds(path: Path, played: int) -> None:
    """Leave the lines of the first `played` rounds in a `metrics.jsonl`."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["round"] < played]
    beside = path.with_name(path.name + ".part")
    beside.write_text("".join(kept))
    beside.replace(path)


def read_curves(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """R2 of each training adversary by round, from a run's `metrics.jsonl`; empty where there is none."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    if not path.is_file():
        return curves
    for line in path.read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            parts = name.split("/")
            if parts[0] == "adversary" and parts[-1] == "r2" and value is not None:
                rounds, r2 = curves.setdefault("/".join(parts[1:-1]), ([], []))
                rounds.append(row["round"])
                r2.append(value)
    return curves


def fetch_run(run_id: str) -> Path:
    """What MLflow has of a finished run, downloaded into a temporary folder like its output folder.

    Raises: InputError where the tracking store or the run is not there.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(Path('outputs') / STORE).resolve()}"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InputError(f"there is no tracking store {uri} to look run {run_id} up in: set MLFLOW_TRACKING_URI")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    folder = Path(tempfile.mkdtemp(prefix="cpgan-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        client = mlflow.MlflowClient(uri)
        client.get_run(run_id)
        for name in ("config.json", "privatizer.pt2", "utility_head.pt2", "metrics.jsonl"):
            client.download_artifacts(run_id, name, str(folder))
    except Exception as e:  # each kind of store has errors of its own
        reason = str(e).partition("\n")[0]
        raise InputError(f"MLflow at {uri} has no finished run {run_id} ({reason}): give another id, or the output folder") from e
    return folder


STATES: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
"""Of a trial by its run's status, where the search has not said it; `running` for all others."""
INDIFFERENT = ("seed", "k", "privacy_weight", "skip_corrupt", "attacks.quick_every", "attacks.cpus", "attacks.gpus")
"""Fields by which runs are not told apart: part of every trial anyway, or without effect on what a run comes to."""


def read_trials(uri: str | None, name: str, *, method: str = "") -> list[Trial]:
    """The trainings that an MLflow experiment has, or that are below a search's run given by its id; in the order they ended.

    A run counts that has `utility/accuracy` and `privacy/strongest_r2`, or is a trial of a search; attacks on runs and the searches
    themselves do not. Of several attempts at a trial the last counts. A trial's setting is what its search says, else k and privacy
    weight; and with it every other field in which the runs read here differ, so that none is averaged with what is no repetition of
    it. The validation R2 of a run that has none is that of the test split.

    Raises: InputError where the store does not answer or has no such experiment.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(Path('outputs') / STORE).resolve()}"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InputError(f"there is no tracking store {uri}: give --tracking-uri, or set MLFLOW_TRACKING_URI")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    try:
        runs = tracked_runs(mlflow.MlflowClient(uri), name)
    except InputError:
        raise
    except Exception as e:  # each kind of store has errors of its own
        reason = str(e).partition("\n")[0]
        raise InputError(f"MLflow at {uri} cannot be read ({reason}): give another --tracking-uri") from e
    attempts: dict[tuple[str, ...], Run] = {}
    for run in sorted(filter(counts, runs), key=lambda run: run.info.start_time):
        tags = run.data.tags
        trial = tags.get("search.trial")
        attempts[(tags.get("mlflow.parentRunId", ""), trial) if trial else (run.info.run_id,)] = run
    kept = sorted(attempts.values(), key=lambda run: (run.info.end_time or math.inf, run.info.start_time))
    return [trial_of(run, more, method=method) for run, more in zip(kept, differences(kept), strict=True)]


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


def all_runs(client: mlflow.MlflowClient, experiment_id: str, where: str = "", *, page_size: int = 1000) -> list[Run]:
    """Page by page: MLflow gives so many at a time."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], where, max_results=page_size, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


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
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float) else text


def trial_of(run: Run, more: Mapping[str, Any], *, method: str) -> Trial:
    """more: fields in which the runs differ, beside the trial's setting."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    weight = float(params["privacy_weight"])
    setting = json.loads(tags["search.setting"]) if "search.setting" in tags else {"k": int(params["k"]), "privacy_weight": weight}
    state: Any = tags.get("search.state") or STATES.get(run.info.status, "running")
    used = run.inputs.dataset_inputs if run.inputs else []
    return Trial(
        name=tags.get("search.trial") or run.info.run_name or run.info.run_id,
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
        attack=tags.get("strongest.attack"),
        val_accuracy=metrics.get("utility/val_accuracy"),
        val_r2=metrics.get("privacy/val_r2", metrics.get("privacy/strongest_r2")),
        majority_accuracy=metrics.get("utility/majority_accuracy"),
        label_floor_r2=metrics.get("privacy/label_floor_r2"),
        seconds=metrics.get("time/total_s"),
        run_id=run.info.run_id,
        method=method,
        data=used[0].dataset.digest if used else None,
    )

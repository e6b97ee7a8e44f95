"""Logging of one run: its MLflow run and its local files. Only the driver's process logs.

If the store does not respond at the start, the run stops. If it becomes unavailable later, the run continues: metrics are queued
and sent when it is available again, everything else is sent again at the end, and the output folder always has everything.
"""

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import entities
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from PIL import Image

from cpgan_ray.common.atomic_io import atomic_path, make_folder, open_to_append, refuse_link, write_bytes, write_text
from cpgan_ray.common.credentials import redacted, redacted_values
from cpgan_ray.common.ownership import SUFFIX, sign
from cpgan_ray.common.signals import requested
from cpgan_ray.common.types import Event, Metrics
from cpgan_ray.config import Config, flatten, to_json
from cpgan_ray.config.folders.records import write_record
from cpgan_ray.config.folders.runs import CONFIG
from cpgan_ray.config.presets import PRESETS
from cpgan_ray.data import Dataset
from cpgan_ray.errors import printable
from cpgan_ray.tracking.outbox import Outbox, log_outage
from cpgan_ray.tracking.store import count_opening, open_store
from cpgan_ray.tracking.uri import ensure_same_host
from cpgan_ray.training.game import active_adversaries

logger = logging.getLogger(__name__)

EVENTS = "events.jsonl"
"""File of the failures that a run has recovered from."""
FLUSH_S = 5.0
"""Interval at which queued metrics are sent."""
SETTLE_S = 5.0
"""How long a checkpoint, or the end of a stopped run, waits for the store."""
FINAL_SETTLE_S = 60.0
"""How long the end of a finished run waits for the store."""


def log_dataset(client: mlflow.MlflowClient, run_id: str, dataset: MetaDataset) -> None:
    """Logs the data set that a run is trained on.

    The store first checks whether its experiment has the data set and then inserts it. If runs start at the same time, as in a
    search, another run may insert it in between; the insert then fails, and a second call finds the data set.
    """
    inputs = [DatasetInput(entities.Dataset(**dataset.to_dict()), tags=[InputTag(MLFLOW_DATASET_CONTEXT, "training")])]
    try:
        client.log_inputs(run_id, datasets=inputs)
    except MlflowException:
        client.log_inputs(run_id, datasets=inputs)


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
        """Starts the run. parent: id of the parent run, ignored if the store does not have it. params: additional parameters.

        resume: continue the run with this id after `played` rounds; metrics of later rounds are deleted and logged again.

        Raises: InputError if the tracking store does not respond or is not writable.
        """
        refuse_link(output / "report")
        if not resume:  # on resume the file is read and replaced
            refuse_link(output / "metrics.jsonl")
        self.config, self.output = config, output
        self.deferred: list[tuple[str, Callable[[], object]]] = []
        with open_store(config.tracking, output) as self.client:
            if parent is not None:
                parent = self.existing_run_id(parent)
            name = config.tracking.run_name or f"{config.preset} k={config.k} w={config.privacy_weight:g}"
            self.run = mlflow.start_run(
                run_id=resume,
                run_name=None if resume else name,
                parent_run_id=parent,
                tags=redacted_tags(tags or {}),
                log_system_metrics=config.tracking.system_metrics,
            )
            ensure_same_host(self.run.info.artifact_uri, mlflow.get_tracking_uri(), of=f"MLflow run {self.run.info.run_id}")
        self.run_id = self.run.info.run_id
        try:
            self.outbox = Outbox(self.client, self.run_id)
            self.flushed = time.monotonic()
            output.mkdir(parents=True, exist_ok=True)
            if resume:
                truncate_metrics(output / "metrics.jsonl", played)
            self.jsonl = open_to_append(output / "metrics.jsonl")
            if not resume:
                self.log_description(dataset, params or {})
        except BaseException:
            mlflow.end_run("FAILED")  # at the end of the process MLflow would set FINISHED
            raise

    def existing_run_id(self, run_id: str) -> str | None:
        """The id, or None if this store does not have the run: the output folder may come from another machine."""
        try:
            return self.client.get_run(run_id).info.run_id
        except MlflowException:
            return None

    def log_description(self, dataset: Dataset, extra_params: Mapping[str, Any]) -> None:
        """Logs parameters worth comparing, the differences from the preset as tags, and the data set with its digest."""
        c = self.config
        params = {
            "preset": c.preset,
            "k": c.k,
            "privacy_weight": c.privacy_weight,
            "seed": c.seed,
            "epochs": c.epochs,
            "batch_size": c.batch_size,
            "adversaries": " ".join(active_adversaries(c)) or "none",
            **{f"target_weight/{name}": weight for name, weight in c.game.target_weights.items()},
            "aggregate": c.game.aggregate,
            "privacy_loss": c.game.privacy_loss,
            "schedule": c.game.schedule,
            "labels": len(c.data.labels) or len(dataset.label_names),
            "image_size": "x".join(map(str, c.data.size)) if c.data.image_width else c.data.image_size,
        }
        mlflow.log_params(redacted_values(params | dict(extra_params)))
        base = flatten(PRESETS[c.preset]()) if c.preset in PRESETS else {}
        local = ("output", "data_dir", "cache_dir", "shared_cache", "trust", "data.digest", "runtime.", "recovery.", "tracking.")
        changed = {n: v for n, v in flatten(c).items() if base.get(n, v) != v and not n.startswith(local)}
        mlflow.set_tags({f"changed.{name}": redacted(str(value)) for name, value in changed.items()})
        with warnings.catch_warnings():
            # MLflow finds two types of source for a local folder
            warnings.filterwarnings("ignore", "The specified dataset source can be interpreted")
            source = resolve_dataset_source(str(dataset.folder))
        log_dataset(self.client, self.run_id, MetaDataset(source, name=c.data.dataset, digest=dataset.digest[:36]))
        values = to_json(c) | {"store": str(dataset.folder), "run_id": self.run_id}
        path = self.output / CONFIG
        write_record(path, values)
        for file in (path, path.with_name(path.name + SUFFIX)):
            if file.is_file():
                mlflow.log_artifact(str(file))

    def log(self, metrics: Metrics, *, step: int) -> None:
        """Writes metrics to `metrics.jsonl` and queues them for the store."""
        now = int(time.time() * 1000)
        self.outbox.put([Metric(name, value, now, step) for name, value in metrics.items() if np.isfinite(value)])
        values = {name: value if np.isfinite(value) else None for name, value in metrics.items()}
        self.jsonl.write(json.dumps({"round": step} | values) + "\n")
        if time.monotonic() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes everything logged so far to disk and starts sending it to the store."""
        self.jsonl.flush()
        self.outbox.send()
        self.flushed = time.monotonic()

    def settle(self) -> None:
        """Writes everything logged so far to disk and waits until it is in the store, at most SETTLE_S."""
        self.flush()
        self.outbox.settle(SETTLE_S)

    def send_or_defer(self, what: str, call: Callable[[], object]) -> None:
        """Sends something to the store that is also on disk. If the store does not respond, it is sent again at the end of the
        run."""
        try:
            call()
        except Exception as e:  # each type of store raises its own errors
            if not self.deferred:
                log_outage(e)
            self.deferred.append((what, call))

    def log_events(self, events: Sequence[Event]) -> None:
        """Logs failures that the game recovered from: a warning, a line in `events.jsonl`, and two metrics each."""
        for event in events:
            with open_to_append(self.output / EVENTS) as file:
                file.write(json.dumps(redacted_values(asdict(event))) + "\n")
            self.log({"recovery/replayed_rounds": event.replayed, "recovery/replacement_s": event.seconds}, step=event.round)
            self.send_or_defer(EVENTS, lambda: mlflow.log_artifact(str(self.output / EVENTS)))
            cause = printable(redacted(event.cause))
            recovery = f"recovered after {event.seconds:.1f} s, {event.replayed} rounds are played again"
            logger.warning(f"round {event.round}: {cause}; {recovery}")

    def tag(self, name: str, value: str) -> None:
        self.send_or_defer(f"tag {name}", lambda: mlflow.set_tag(name, redacted(printable(value))))

    def count_opening(self, digest: str) -> int:
        """See `store.count_opening`."""
        return count_opening(self.client, self.run.info.run_id, digest)

    def log_panel(self, panel: Image.Image, *, step: int) -> None:
        """Logs a picture of reconstructions: as an image of the run with its step, and as a file in the report folder."""
        self.send_or_defer("a panel", lambda: mlflow.log_image(panel, key="reconstructions", step=step))
        report = make_folder(self.output / "report")
        with atomic_path(report / f"reconstructions-{step:06d}.png") as temporary:
            panel.save(temporary, "PNG")

    def log_folder(self, folder: Path, name: str) -> None:
        """Logs all files of a folder as artifacts, and its PNG files also as images of the run."""

        def send() -> None:
            mlflow.log_artifacts(str(folder), name)
            for picture in sorted(folder.glob("*.png")):
                with Image.open(picture) as opened:
                    mlflow.log_image(opened.copy(), artifact_file=f"images/{picture.name}")

        self.send_or_defer(f"folder {name}", send)

    def log_programs(self, programs: Mapping[str, bytes], examples: Mapping[str, np.ndarray]) -> None:
        """Writes the exported programs to files, and logs them as artifacts and as MLflow models with a signature."""
        for name, program in programs.items():
            path = self.output / f"{name}.pt2"
            write_bytes(path, program)
            sign(path)
            self.send_or_defer(path.name, partial(mlflow.log_artifact, str(path)))
            if self.config.tracking.log_models:
                self.send_or_defer(f"model {name}", partial(log_model, name, path, examples[name]))

    def close(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED, and sends everything that the store does not have yet.

        If the store still does not respond, a warning names what is missing there; the output folder has everything.
        """
        self.jsonl.flush()
        calls, self.deferred = self.deferred, []
        file = str(self.output / "metrics.jsonl")
        calls += [("metrics.jsonl", lambda: mlflow.log_artifact(file)), ("final status", lambda: mlflow.end_run(status))]
        delivered = self.outbox.close(FINAL_SETTLE_S if status == "FINISHED" else SETTLE_S)
        missing = [] if delivered else ["metrics"]
        for what, call in calls:
            try:
                call()
            except Exception:  # each type of store raises its own errors
                missing.append(what)
        self.jsonl.close()
        if missing:
            logger.warning(
                f"MLflow does not respond: it has no {', '.join(missing)} of run {self.run_id}; everything is in {self.output}"
            )

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = requested() is not None or (kind is not None and not issubclass(kind, Exception))
        self.close("KILLED" if stopped else "FINISHED" if kind is None else "FAILED")


def redacted_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without secrets and control characters."""
    return {name: redacted(printable(str(value))) for name, value in tags.items()}


def truncate_metrics(path: Path, played: int) -> None:
    """Keeps only the lines of the first `played` rounds in a `metrics.jsonl`."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    write_text(path, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["round"] < played))


def log_model(name: str, program: Path, example: np.ndarray) -> None:
    """Logs an exported program as an MLflow PyTorch model; its signature is inferred from its output for the example."""
    import torch
    from mlflow import pytorch as mlflow_pytorch
    from mlflow.models import infer_signature

    module = torch.export.load(program).module()
    with torch.no_grad():
        output = module(torch.from_numpy(example)).numpy()
    signature = infer_signature(example, output)
    requirements = [
        f"torch=={torch.__version__.split('+')[0]}",
        f"numpy=={np.__version__}",
    ]  # given here, because MLflow would search for them for a long time
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # about tensors that share storage; nothing is lost
        mlflow_pytorch.log_model(module, name=name, signature=signature, input_example=example, pip_requirements=requirements)

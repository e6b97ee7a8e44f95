"""One run: its MLflow run and its local files. One process logs, the driver.

A store that does not answer at the start stops the run. One that goes away later does not: metrics wait and are sent when it is
back, everything else is tried again at the end, and all of it is in the output folder anyway.
"""

import json
import logging
import threading
import time
import warnings
from collections import deque
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
from cpgan_ray.config.folders import CONFIG, write_record
from cpgan_ray.config.presets import PRESETS
from cpgan_ray.data import Dataset
from cpgan_ray.errors import printable
from cpgan_ray.tracking.store import open_store
from cpgan_ray.tracking.uri import ensure_same_host

logger = logging.getLogger(__name__)

EVENTS = "events.jsonl"
"""File of the losses that a run has survived."""
FLUSH_S = 5.0
"""How often buffered metrics are sent, in seconds."""
BATCH_LIMIT = 1000
"""Most metrics that MLflow takes in one call."""
POLL_S = 0.02
"""How often it is looked whether all metrics have been taken, in seconds."""
RETRY_S = (1.0, 30.0)
"""Least and largest wait before the store is asked again, in seconds."""
SETTLE_S = 5.0
"""How long a checkpoint, or the end of a run that was stopped, waits for the store, in seconds."""
LAST_S = 60.0
"""How long the end of a finished run does."""


def say_outage(error: BaseException) -> None:
    reason = printable(redacted(str(error).partition("\n")[0]))[:200]
    logger.warning(f"MLflow does not answer ({reason}); the run goes on, and logs it later")


def log_dataset(client: mlflow.MlflowClient, run_id: str, dataset: MetaDataset) -> None:
    """Name the data that a run is trained on.

    The store first looks whether its experiment has that data set and then inserts it. Of runs that begin together, like those of a
    search, one may come between the two of another, which is refused; asked again, the store finds it.
    """
    named = [DatasetInput(entities.Dataset(**dataset.to_dict()), tags=[InputTag(MLFLOW_DATASET_CONTEXT, "training")])]
    try:
        client.log_inputs(run_id, datasets=named)
    except MlflowException:
        client.log_inputs(run_id, datasets=named)


class Outbox:
    """Metrics on their way to the store, in a thread of its own: what is not taken is sent again until it is."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.waiting: deque[Metric] = deque()
        self.awake, self.closing = threading.Event(), False
        self.thread = threading.Thread(target=self.deliver, daemon=True)
        self.thread.start()

    def put(self, metrics: Sequence[Metric]) -> None:
        self.waiting.extend(metrics)
        if len(self.waiting) >= BATCH_LIMIT:
            self.send()

    def send(self) -> None:
        self.awake.set()

    def settle(self, patience_s: float) -> bool:
        """Whether all has been delivered within that time."""
        until = time.monotonic() + patience_s
        while self.waiting and time.monotonic() < until:
            self.send()
            time.sleep(POLL_S)
        return not self.waiting

    def close(self, patience_s: float) -> bool:
        """The same; nothing more is sent after it."""
        delivered = self.settle(patience_s)
        self.closing = True
        self.send()
        return delivered

    def deliver(self) -> None:
        wait_s = 0.0
        while True:
            self.awake.wait()
            self.awake.clear()
            while self.waiting and not self.closing:
                part = [self.waiting[i] for i in range(min(BATCH_LIMIT, len(self.waiting)))]
                try:
                    self.client.log_batch(self.run_id, metrics=part, synchronous=True)
                except Exception as e:  # each kind of store has errors of its own
                    if not wait_s:
                        say_outage(e)
                    wait_s = min(max(2 * wait_s, RETRY_S[0]), RETRY_S[1])
                    time.sleep(wait_s)
                    continue
                if wait_s:
                    logger.info("MLflow answers again")
                wait_s = 0.0
                for _ in part:
                    self.waiting.popleft()
            if self.closing:
                return


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
        refuse_link(output / "report")
        if not resume:  # else it is read, and replaced
            refuse_link(output / "metrics.jsonl")
        self.config, self.output = config, output
        self.missed: list[tuple[str, Callable[[], object]]] = []
        with open_store(config.tracking, output) as self.client:
            if parent is not None:
                parent = self.known(parent)
            name = config.tracking.run_name or f"{config.preset} k={config.k} w={config.privacy_weight:g}"
            self.run = mlflow.start_run(
                run_id=resume,
                run_name=None if resume else name,
                parent_run_id=parent,
                tags=shown_tags(tags or {}),
                log_system_metrics=config.tracking.system_metrics,
            )
            ensure_same_host(self.run.info.artifact_uri, mlflow.get_tracking_uri(), of=f"MLflow run {self.run.info.run_id}")
        self.run_id = self.run.info.run_id
        try:
            self.outbox = Outbox(self.client, self.run_id)
            self.flushed = time.monotonic()
            output.mkdir(parents=True, exist_ok=True)
            if resume:
                forget_rounds(output / "metrics.jsonl", played)
            self.jsonl = open_to_append(output / "metrics.jsonl")
            if not resume:
                self.describe(dataset, params or {})
        except BaseException:
            mlflow.end_run("FAILED")  # MLflow itself would end it as FINISHED when the process ends
            raise

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
            "privacy_loss": c.game.privacy_loss,
            "schedule": c.game.schedule,
            "labels": len(c.data.labels) or len(dataset.label_names),
            "image_size": c.data.image_size,
        }
        mlflow.log_params(redacted_values(params | dict(more)))
        base = flatten(PRESETS[c.preset]()) if c.preset in PRESETS else {}
        local = ("output", "data_dir", "cache_dir", "shared_cache", "trust", "data.digest", "runtime.", "recovery.", "tracking.")
        changed = {n: v for n, v in flatten(c).items() if base.get(n, v) != v and not n.startswith(local)}
        mlflow.set_tags({f"changed.{name}": redacted(str(value)) for name, value in changed.items()})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The specified dataset source can be interpreted")  # a local folder, twice
            source = resolve_dataset_source(str(dataset.folder))
        log_dataset(self.client, self.run_id, MetaDataset(source, name=c.data.dataset, digest=dataset.digest[:36]))
        values = to_json(c) | {"store": str(dataset.folder), "run_id": self.run_id}
        path = self.output / CONFIG
        write_record(path, values)
        for file in (path, path.with_name(path.name + SUFFIX)):
            if file.is_file():
                mlflow.log_artifact(str(file))

    def log(self, metrics: Metrics, *, step: int) -> None:
        """Write metrics to `metrics.jsonl`, and keep them for the next flush."""
        now = int(time.time() * 1000)
        self.outbox.put([Metric(name, value, now, step) for name, value in metrics.items() if np.isfinite(value)])
        values = {name: value if np.isfinite(value) else None for name, value in metrics.items()}
        self.jsonl.write(json.dumps({"round": step} | values) + "\n")
        if time.monotonic() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Everything logged so far is on disk, and on its way to the store."""
        self.jsonl.flush()
        self.outbox.send()
        self.flushed = time.monotonic()

    def settle(self) -> None:
        """Everything logged so far is on disk, and in the store unless that does not answer."""
        self.flush()
        self.outbox.settle(SETTLE_S)

    def attempt(self, what: str, call: Callable[[], object]) -> None:
        """Tell the store something that is on disk as well. Where it does not answer, it is tried again in the end."""
        try:
            call()
        except Exception as e:  # each kind of store has errors of its own
            if not self.missed:
                say_outage(e)
            self.missed.append((what, call))

    def log_events(self, events: Sequence[Event]) -> None:
        """Losses that the game survived: a line each on standard error and in `events.jsonl`, and two metrics."""
        for event in events:
            with open_to_append(self.output / EVENTS) as file:
                file.write(json.dumps(redacted_values(asdict(event))) + "\n")
            self.log({"recovery/replayed_rounds": event.replayed, "recovery/replacement_s": event.seconds}, step=event.round)
            self.attempt(EVENTS, lambda: mlflow.log_artifact(str(self.output / EVENTS)))
            cause = printable(redacted(event.cause))
            told = f"round {event.round}: {cause}; {event.replayed} rounds are played again, after {event.seconds:.1f} s"
            logger.warning(told)

    def tag(self, name: str, value: str) -> None:
        self.attempt(f"tag {name}", lambda: mlflow.set_tag(name, redacted(printable(value))))

    def log_panel(self, panel: Image.Image, *, step: int) -> None:
        """A picture of reconstructions: in the run's images by step, and beside the report."""
        self.attempt("a panel", lambda: mlflow.log_image(panel, key="reconstructions", step=step))
        report = make_folder(self.output / "report")
        with atomic_path(report / f"reconstructions-{step:06d}.png") as temporary:
            panel.save(temporary, "PNG")

    def log_folder(self, folder: Path, name: str) -> None:
        """All files of a folder as artifacts; a report's panels also among the run's images."""

        def send() -> None:
            mlflow.log_artifacts(str(folder), name)
            for picture in sorted(folder.glob("*.png")):
                with Image.open(picture) as opened:
                    mlflow.log_image(opened.copy(), artifact_file=f"images/{picture.name}")

        self.attempt(f"folder {name}", send)

    def log_programs(self, programs: Mapping[str, bytes], examples: Mapping[str, np.ndarray]) -> None:
        """The exported programs as files, and as MLflow models with signature."""
        for name, program in programs.items():
            path = self.output / f"{name}.pt2"
            write_bytes(path, program)
            sign(path)
            self.attempt(path.name, partial(mlflow.log_artifact, str(path)))
            if self.config.tracking.log_models:
                self.attempt(f"model {name}", partial(log_model, name, path, examples[name]))

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, with all that the store has missed so far.

        Where the store does not answer even now, that is told: the output folder has everything.
        """
        self.jsonl.flush()
        again, self.missed = self.missed, []
        file = str(self.output / "metrics.jsonl")
        again += [("metrics.jsonl", lambda: mlflow.log_artifact(file)), ("its end", lambda: mlflow.end_run(status))]
        delivered = self.outbox.close(LAST_S if status == "FINISHED" else SETTLE_S)
        left = [] if delivered else ["metrics"]
        for what, call in again:
            try:
                call()
            except Exception:  # each kind of store has errors of its own
                left.append(what)
        self.jsonl.close()
        if left:
            told = f"MLflow does not answer: run {self.run_id} has no {', '.join(left)} there; everything is in {self.output}"
            logger.warning(told)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = requested() is not None or (kind is not None and not issubclass(kind, Exception))
        self.close("KILLED" if stopped else "FINISHED" if kind is None else "FAILED")


def shown_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without secrets and control characters."""
    return {name: redacted(printable(str(value))) for name, value in tags.items()}


def forget_rounds(path: Path, played: int) -> None:
    """Leave the lines of the first `played` rounds in a `metrics.jsonl`."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["round"] < played]
    write_text(path, "".join(kept))


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

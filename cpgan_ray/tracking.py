"""Where a run leaves its traces: MLflow, `metrics.jsonl`, `config.json` and the console. The only module that imports MLflow.

One process logs, the driver. A tracker that cannot start stops the run.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric
from PIL.Image import Image
from tqdm import tqdm

from cpgan_ray.config import Config, flatten, to_json
from cpgan_ray.data import Dataset
from cpgan_ray.errors import InputError
from cpgan_ray.messages import Metrics
from cpgan_ray.presets import PRESETS

FLUSH_S = 5.0
"""How often buffered metrics are sent, in seconds."""
PLAIN_LINE_S = 10.0
"""How often a line is printed where the output is no terminal, in seconds."""
BATCH_LIMIT = 1000
"""Most metrics that MLflow takes in one call."""


class Tracker:
    """One MLflow run and its local files, from start to `close`."""

    def __init__(self, config: Config, output: Path, *, dataset: Dataset) -> None:
        """Start the run.

        Raises: InputError where the tracking store does not answer or cannot be written to.
        """
        self.config, self.output = config, output
        self.buffer: list[Metric] = []
        self.flushed = time.monotonic()
        uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            output.parent.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{output.parent / 'mlflow.db'}"
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default waits for minutes before it says anything
        try:
            mlflow.set_tracking_uri(uri)
            self.client = mlflow.MlflowClient()
            if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
                artifacts = (output.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
                mlflow.create_experiment(config.tracking.experiment, artifact_location=artifacts)
            mlflow.set_experiment(config.tracking.experiment)
            name = config.tracking.run_name or f"{config.preset} k={config.k} w={config.privacy_weight:g}"
            self.run = mlflow.start_run(run_name=name, log_system_metrics=config.tracking.system_metrics)
        except Exception as e:  # each kind of store has errors of its own
            reason = str(e).partition("\n")[0]
            raise InputError(f"MLflow cannot track at {uri} ({reason}): start it there, or give another --tracking.uri") from e
        self.run_id = self.run.info.run_id
        output.mkdir(parents=True, exist_ok=True)
        self.jsonl = (output / "metrics.jsonl").open("a")
        self.describe(dataset)

    def describe(self, dataset: Dataset) -> None:
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
        mlflow.log_params(params)
        base = flatten(PRESETS[c.preset]()) if c.preset in PRESETS else {}
        local = ("output", "data_dir", "cache_dir", "runtime.", "tracking.")
        changed = {n: v for n, v in flatten(c).items() if base.get(n, v) != v and not n.startswith(local)}
        mlflow.set_tags({f"changed.{name}": str(value) for name, value in changed.items()})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The specified dataset source can be interpreted")  # a local folder, twice
            source = resolve_dataset_source(str(dataset.folder))
        mlflow.log_input(MetaDataset(source, name=c.data.dataset, digest=dataset.digest[:36]), context="training")
        (self.output / "config.json").write_text(json.dumps(to_json(c) | {"store": str(dataset.folder)}, indent=1) + "\n")
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

    def log_panel(self, panel: Image, *, step: int) -> None:
        """A picture of reconstructions: in the run's images by step, and beside the report."""
        mlflow.log_image(panel, key="reconstructions", step=step)
        (self.output / "report").mkdir(exist_ok=True)
        panel.save(self.output / "report" / f"reconstructions-{step:06d}.png")

    def log_report(self, report: Mapping[str, Any]) -> None:
        """`report/report.json`, also as an artifact."""
        (self.output / "report").mkdir(exist_ok=True)
        path = self.output / "report" / "report.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        mlflow.log_artifact(str(path), "report")

    def log_programs(self, programs: Mapping[str, bytes], examples: Mapping[str, np.ndarray]) -> None:
        """The exported programs as files, and as MLflow models with signature."""
        for name, program in programs.items():
            (self.output / f"{name}.pt2").write_bytes(program)
            if self.config.tracking.log_models:
                log_model(name, self.output / f"{name}.pt2", examples[name])

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        try:
            self.flush()
            mlflow.flush_async_logging()
        finally:
            self.jsonl.close()
            mlflow.end_run(status)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")


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

    def __init__(self, *, total_rounds: int, rounds_per_epoch: int, names: Sequence[str]) -> None:
        self.total_rounds, self.rounds_per_epoch, self.names = total_rounds, rounds_per_epoch, names
        self.bar = tqdm(total=total_rounds, unit="round", disable=None, dynamic_ncols=True)
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
                    f"round {done}/{self.total_rounds}, {done / (now - self.started):.1f} rounds/s, {text}",
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

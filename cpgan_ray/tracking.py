"""Where a run leaves its traces: MLflow, `metrics.jsonl`, `config.json` and the console. The only module that imports MLflow.

One process logs, the driver. A tracker that cannot start stops the run.
"""

import atexit
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
import numpy as np
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from PIL import Image
from tqdm import tqdm

from cpgan_ray.config import Config, flatten, to_json
from cpgan_ray.data import Dataset
from cpgan_ray.errors import InputError
from cpgan_ray.messages import Metrics
from cpgan_ray.presets import PRESETS

STORE = "mlflow.db"
"""SQLite file of the default tracking store, beside the output folders."""
FLUSH_S = 5.0
"""How often buffered metrics are sent, in seconds."""
PLAIN_LINE_S = 10.0
"""How often a line is printed where the output is no terminal, in seconds."""
BATCH_LIMIT = 1000
"""Most metrics that MLflow takes in one call."""


class Tracker:
    """One MLflow run and its local files, from start to `close`."""

    def __init__(
        self, config: Config, output: Path, *, dataset: Dataset, tags: Mapping[str, str] | None = None, parent: str | None = None
    ) -> None:
        """Start the run; `parent`: id of the run that it is shown under, if the store has it.

        Raises: InputError where the tracking store does not answer or cannot be written to.
        """
        self.config, self.output = config, output
        self.buffer: list[Metric] = []
        self.flushed = time.monotonic()
        uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            output.parent.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{output.parent / STORE}"
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default waits for minutes before it says anything
        try:
            mlflow.set_tracking_uri(uri)
            self.client = mlflow.MlflowClient()
            if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
                artifacts = (output.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
                mlflow.create_experiment(config.tracking.experiment, artifact_location=artifacts)
            mlflow.set_experiment(config.tracking.experiment)
            if parent is not None:
                parent = self.known(parent)
            name = config.tracking.run_name or f"{config.preset} k={config.k} w={config.privacy_weight:g}"
            self.run = mlflow.start_run(
                run_name=name, parent_run_id=parent, tags=dict(tags or {}), log_system_metrics=config.tracking.system_metrics
            )
        except Exception as e:  # each kind of store has errors of its own
            reason = str(e).partition("\n")[0]
            raise InputError(f"MLflow cannot track at {uri} ({reason}): start it there, or give another --tracking.uri") from e
        self.run_id = self.run.info.run_id
        output.mkdir(parents=True, exist_ok=True)
        self.jsonl = (output / "metrics.jsonl").open("a")
        self.describe(dataset)

    def known(self, run_id: str) -> str | None:
        """The id where this store has the run: an output folder may have been copied away from its store."""
        try:
            return self.client.get_run(run_id).info.run_id
        except MlflowException:
            return None

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
            self.flush()
            mlflow.flush_async_logging()
            mlflow.log_artifact(str(self.output / "metrics.jsonl"))
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

"""Finds and opens the tracking store and its experiment."""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from cpgan_ray.common.credentials import move_to_env, redacted, remember
from cpgan_ray.common.locks import file_lock
from cpgan_ray.config import TrackingConfig
from cpgan_ray.errors import InputError
from cpgan_ray.tracking.uri import bypass_proxy, database_file, ensure_same_host, ensure_store, option_name, short_message

STORE = "mlflow.db"
"""SQLite file of the default tracking store, next to the output folders."""

DESCRIPTION = """Compressive Privacy GANs: each run is a training, an attack, a search or a comparison.

Columns to look at:

* `utility/accuracy` next to `utility/majority_accuracy`: how well the task works, and what guessing the commoner value reaches.
* `privacy/strongest_r2` with `_low` and `_high`: the share of the pictures the strongest **fresh** attack recovers. This is the
  privacy number; `privacy/label_floor_r2` is what exact answers to the task reveal.
* `privacy/training_r2` and `adversary/...`: the training adversaries. They are never a privacy result.
* Parameters `k` and `privacy_weight`; tag `strongest.attack`; tag `code.degenerate` marks runs that pass no gate.

To compare runs, select them and press Compare. The report card of a run is its artifact `report/report.html`.
"""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": DESCRIPTION}
"""MLflow treats the experiment as one of training runs, not of language models, and shows which columns to look at."""


@contextmanager
def open_store(tracking: TrackingConfig, output: Path) -> Iterator[mlflow.MlflowClient]:
    """Opens the tracking store and its experiment, created if absent. Default: an SQLite file next to the output folder.

    Raises: InputError if it does not respond, or if an MLflow call in the block fails.
    """
    uri = tracking_uri(tracking, output)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default waits for minutes before an error
    bypass_proxy(uri)
    try:
        if uri.startswith("sqlite:"):
            database_file(uri).parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        with first_use(uri):
            if mlflow.get_experiment_by_name(tracking.experiment) is None:
                artifacts = artifacts_of(uri) if uri.startswith("sqlite:") else None
                create_experiment(tracking.experiment, artifacts)
            experiment = mlflow.set_experiment(tracking.experiment)
        ensure_same_host(experiment.artifact_location, uri, of=f"MLflow experiment {tracking.experiment!r}")
        yield mlflow.MlflowClient()
    except InputError:
        raise
    except Exception as e:  # each type of store raises its own errors
        shown = redacted(uri, whole=True)
        raise InputError(
            f"MLflow cannot use the store {shown} ({short_message(e)}): start the server or give another --tracking.uri"
        ) from e


def ensure_trackable(tracking: TrackingConfig, output: Path) -> None:
    """Checks the tracking store before anything else starts.

    Raises: InputError with the store, the problem and the remedy if the store is wrong or unreachable.
    """
    ensure_store(tracking_uri(tracking, output), option=option_name(tracking))


def first_use(uri: str) -> AbstractContextManager[object]:
    """A block that only one process at a time enters with an SQLite store: the first one makes its tables, which MLflow cannot do
    in two processes at once."""
    if not uri.startswith("sqlite:"):
        return nullcontext()
    file = database_file(uri)
    return file_lock(file.with_name(f".{file.name}.lock"))


def artifacts_of(uri: str) -> str:
    """URI of the artifacts of an SQLite store: a folder next to its file."""
    return (database_file(uri).parent / "mlartifacts").as_uri()


def create_experiment(name: str, artifacts: str | None) -> None:
    """Creates an experiment, unless another run has created it in the meantime."""
    try:
        mlflow.create_experiment(name, artifact_location=artifacts, tags=EXPERIMENT_TAGS)
    except MlflowException as e:
        if e.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def tracking_uri(tracking: TrackingConfig, output: Path) -> str:
    """The URI of a run's tracking store, with defaults; its credentials are moved to the environment."""
    uri = move_to_env(tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output.parent / STORE}")
    remember(uri)
    return uri


def all_runs(client: mlflow.MlflowClient, experiment_id: str, where: str = "", *, page_size: int = 1000) -> list[Run]:
    """All runs of an experiment that match the filter `where`. MLflow returns them in pages of `page_size`."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], where, max_results=page_size, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


FINAL_DATA = "final.data"
"""Tag of a run that opens the final split of a data set, with the digest of its store."""


def count_opening(client: mlflow.MlflowClient, run_id: str, digest: str) -> int:
    """Mark a run as one that opens the final split of a data set; returns the number of such runs in its experiment, including
    this one."""
    client.set_tag(run_id, FINAL_DATA, digest)
    return len(all_runs(client, client.get_run(run_id).info.experiment_id, f"tags.`{FINAL_DATA}` = '{digest}'"))


def running_runs(uri: str) -> list[Run]:
    """The runs of all experiments whose status is RUNNING."""
    client = mlflow.MlflowClient(uri)
    by_experiment = [all_runs(client, e.experiment_id, "attributes.status = 'RUNNING'") for e in client.search_experiments()]
    return [run for runs in by_experiment for run in runs]

"""The tracking store: which it is, and its experiment."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from cpgan_ray.common.credentials import move_to_env, redacted, remember
from cpgan_ray.config import TrackingConfig
from cpgan_ray.errors import InputError
from cpgan_ray.tracking.uri import bypass_proxy, database_file, ensure_same_host, ensure_store, option_of, short

STORE = "mlflow.db"
"""SQLite file of the default tracking store, beside the output folders."""


@contextmanager
def open_store(tracking: TrackingConfig, output: Path) -> Iterator[mlflow.MlflowClient]:
    """The tracking store and its experiment, made if need be: SQLite beside the output folder where no other is named.

    Raises: InputError where it does not answer, or what is done in the block fails.
    """
    uri = tracking_uri(tracking, output)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default waits for minutes before it says anything
    bypass_proxy(uri)
    try:
        if uri.startswith("sqlite:"):
            database_file(uri).parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        if mlflow.get_experiment_by_name(tracking.experiment) is None:
            artifacts = artifacts_of(uri) if uri.startswith("sqlite:") else None
            create_experiment(tracking.experiment, artifacts)
        experiment = mlflow.set_experiment(tracking.experiment)
        ensure_same_host(experiment.artifact_location, uri, of=f"MLflow experiment {tracking.experiment!r}")
        yield mlflow.MlflowClient()
    except InputError:
        raise
    except Exception as e:  # each kind of store has errors of its own
        where = redacted(uri, whole=True)
        raise InputError(f"MLflow cannot track at {where} ({short(e)}): start it there, or give another --tracking.uri") from e


def ensure_trackable(tracking: TrackingConfig, output: Path) -> None:
    """A wrong or unreachable tracking store is refused before anything else starts.

    Raises: InputError that names the store, what is wrong with it and the remedy.
    """
    ensure_store(tracking_uri(tracking, output), option=option_of(tracking))


def artifacts_of(uri: str) -> str:
    """Where the artifacts of an SQLite store go: beside its file."""
    return (database_file(uri).parent / "mlartifacts").as_uri()


def create_experiment(name: str, artifacts: str | None) -> None:
    """Make it, unless a run that began at the same time has."""
    try:
        mlflow.create_experiment(name, artifact_location=artifacts)
    except MlflowException as e:
        if e.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def tracking_uri(tracking: TrackingConfig, output: Path) -> str:
    """Where a run is tracked that is not told."""
    uri = move_to_env(tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output.parent / STORE}")
    remember(uri)
    return uri


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


def running_runs(uri: str) -> list[Run]:
    """The runs of all experiments that have not been ended."""
    client = mlflow.MlflowClient(uri)
    found = [all_runs(client, e.experiment_id, "attributes.status = 'RUNNING'") for e in client.search_experiments()]
    return [run for some in found for run in some]

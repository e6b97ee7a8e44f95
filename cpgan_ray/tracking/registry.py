"""MLflow's registry: new versions of a run's privatizer and utility head, and the bundle that belongs to a version."""

import atexit
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion

from cpgan_ray.common.credentials import redacted
from cpgan_ray.config import TrackingConfig
from cpgan_ray.errors import InputError
from cpgan_ray.tracking.reading import resolve_store_uri
from cpgan_ray.tracking.uri import database_file, ensure_same_host, ensure_store, option_name, short_message

PARTS = ("privatizer", "utility_head")
"""A bundle NAME has the registered models `NAME-privatizer` and `NAME-utility_head`."""
ARTIFACT, DIGEST = "bundle.artifact", "bundle.digest"
"""Tags of a version: the folder of the bundle among the artifacts of its run, and its digest."""
REGISTERED = re.compile(r"models:/([\w.-]{1,100})(?:@([\w.-]{1,100})|/(\d{1,9}))")


@dataclass(frozen=True)
class Registration:
    """Where a bundle will be registered; checked before it is made."""

    uri: str
    run_id: str
    models: Mapping[str, str]
    """Part -> id of the logged model in MLflow."""
    name: str
    alias: str | None


def registration(
    run_id: str | None, *, tracking: TrackingConfig, default_uri: str | None, name: str, alias: str | None
) -> Registration:
    """Look up the logged models of a run.

    default_uri: the store next to the run's folder, used if neither the configuration nor MLFLOW_TRACKING_URI names one.

    Raises: InputError if the store does not respond, or does not have the run with both models.
    """
    uri = resolve_store_uri(tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri)
    client = open_client(uri, option=option_name(tracking))
    try:
        run = client.get_run(run_id or "")
        ensure_same_host(run.info.artifact_uri, uri, of=f"MLflow run {run_id}")
        outputs = run.outputs.model_outputs if run.outputs else []
        models = [client.get_logged_model(output.model_id) for output in outputs]
        logged = {model.name: model.model_id for model in models if model.status == LoggedModelStatus.READY}
    except InputError:
        raise
    except Exception as e:  # each type of store raises its own errors
        raise InputError(
            f"MLflow at {redacted(uri)} has no run {run_id} to register ({short_message(e)}): give --tracking.uri of its store"
        ) from e
    if missing := [part for part in PARTS if part not in logged]:
        raise InputError(
            f"MLflow run {run_id} has no complete model {missing[0]!r} to register: train it again without --tracking.no-log-models"
        )
    return Registration(uri, run.info.run_id, {part: logged[part] for part in PARTS}, name, alias)


def register(entry: Registration, folder: Path, *, digest: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Log a bundle's folder as artifacts of its run, and register both parts as new versions. Returns part -> `NAME/VERSION`.

    Raises: InputError if the store fails; the bundle itself is already written.
    """
    client, artifact = mlflow.MlflowClient(entry.uri), f"bundles/{digest[:12]}"
    try:
        mlflow.set_tracking_uri(entry.uri)  # where MLflow looks for the models that the versions are made of
        client.log_artifacts(entry.run_id, str(folder), artifact)
        versions = {part: new_version(client, entry, part, dict(tags) | {ARTIFACT: artifact, DIGEST: digest}) for part in PARTS}
        if entry.alias is not None:  # when both versions exist
            for version in versions.values():
                client.set_registered_model_alias(version.name, entry.alias, version.version)
    except Exception as e:  # each type of store raises its own errors
        raise InputError(
            f"MLflow at {redacted(entry.uri)} did not register {entry.name} ({short_message(e)}): the bundle is in {folder}"
        ) from e
    return {part: f"{version.name}/{version.version}" for part, version in versions.items()}


def new_version(client: mlflow.MlflowClient, entry: Registration, part: str, tags: dict[str, str]) -> ModelVersion:
    """A new version of one part; the registered model is created if absent."""
    name = f"{entry.name}-{part}"
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    model_id = entry.models[part]
    return client.create_model_version(name, f"models:/{model_id}", run_id=entry.run_id, tags=tags, model_id=model_id)


def registered_run(name: str) -> str:
    """The id of the run of a registered version, by `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises: InputError if the registry has no such version, or it has no run.
    """
    version = registered_version(name)[1]
    if not re.fullmatch("[0-9a-f]{32}", version.run_id or ""):
        raise InputError(f"{name} was registered without a run: give a version that jobs/export.py has registered")
    return str(version.run_id)


def fetch_bundle(name: str) -> Path:
    """Download the bundle of a registered version, by `models:/NAME@ALIAS` or `models:/NAME/VERSION`, into a temporary folder.

    Raises: InputError if the registry has no such version, or the version has no bundle.
    """
    client, version = registered_version(name)
    artifact = version.tags.get(ARTIFACT, "")
    if not re.fullmatch("bundles/[0-9a-f]{12}", artifact):
        raise InputError(f"{name} has no bundle: give a version that jobs/export.py has registered")
    folder = Path(tempfile.mkdtemp(prefix="cpgan-bundle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        run = client.get_run(version.run_id or "")
        ensure_same_host(run.info.artifact_uri, client.tracking_uri, of=f"MLflow run {version.run_id}")
        return Path(client.download_artifacts(run.info.run_id, artifact, str(folder)))
    except InputError:
        raise
    except Exception as e:  # each type of store raises its own errors
        raise InputError(f"the bundle of {name} cannot be downloaded ({short_message(e)}): export it again") from e


def registered_version(name: str) -> tuple[mlflow.MlflowClient, ModelVersion]:
    """The version of a registered privatizer. NAME is that of the bundle, or of one of its registered parts."""
    match = REGISTERED.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r:.200} is not models:/NAME@ALIAS or models:/NAME/VERSION: give one of these")
    model, alias, number = match.groups()
    uri = resolve_store_uri(None)
    client = open_client(uri, option="MLFLOW_TRACKING_URI")
    registered = model if model.endswith(tuple(f"-{part}" for part in PARTS)) else f"{model}-{PARTS[0]}"
    try:
        version = client.get_model_version_by_alias(registered, alias) if alias else client.get_model_version(registered, number)
    except Exception as e:  # each type of store raises its own errors
        raise InputError(
            f"MLflow at {redacted(uri)} has no version {name} ({short_message(e)}): register one with jobs/export.py --register, "
            "or set MLFLOW_TRACKING_URI"
        ) from e
    return client, version


def open_client(uri: str, *, option: str) -> mlflow.MlflowClient:
    """Raises: InputError if the store does not exist or does not respond."""
    if uri.startswith("sqlite:///") and not database_file(uri).is_file():
        raise InputError(f"there is no tracking store {redacted(uri)}: set MLFLOW_TRACKING_URI, or give --tracking.uri")
    ensure_store(uri, option=option)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return mlflow.MlflowClient(uri)

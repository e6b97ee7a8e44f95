"""The parent run of a search, and its children as the driver sees them."""

import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run

from cpgan_ray.common.credentials import redacted, redacted_values
from cpgan_ray.common.types import Metrics
from cpgan_ray.config import Config
from cpgan_ray.errors import printable
from cpgan_ray.tracking.store import all_runs, open_store
from cpgan_ray.tracking.uri import ensure_same_host


class SearchRun:
    """The parent run of a search. It is made before any trial, so that store and experiment are made once and by one process.

    Each trial's own process logs the trial's run, a child; the driver logs this one, and says of the children what only it knows.
    """

    def __init__(
        self,
        config: Config,
        output: Path,
        *,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        source: str = "jobs/tune_celeba.py",
    ) -> None:
        """Start it, or go on with `run_id`. `tags`: what may be another when it goes on; MLflow keeps a parameter as it was.

        Raises: InputError where the tracking store does not answer or does not have that run.
        """
        with open_store(config.tracking, output) as self.client:
            experiment = self.client.get_experiment_by_name(config.tracking.experiment)
            assert experiment is not None
            self.experiment_id = experiment.experiment_id
            if run_id is None:
                role = {"search.role": "parent", "mlflow.source.name": source}
                run_id = self.client.create_run(self.experiment_id, run_name=name, tags=role).info.run_id
                for key, value in redacted_values(params).items():
                    self.client.log_param(run_id, key, value)
            else:
                known = self.client.get_run(run_id).info
                ensure_same_host(known.artifact_uri, mlflow.get_tracking_uri(), of=f"MLflow run {run_id}")
                self.client.update_run(run_id, status="RUNNING")
            for key, value in (tags or {}).items():
                self.client.set_tag(run_id, key, value)
        self.run_id = run_id

    def log(self, metrics: Metrics, *, step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def log_files(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.client.log_artifact(self.run_id, str(path))

    def add_child(self, name: str, *, params: Mapping[str, Any], metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """A run below this one, of work whose own process logs nothing: all of it at once, ended."""
        now = int(time.time() * 1000)
        below = {
            "mlflow.parentRunId": self.run_id,
            "search.trial": name,
            **{key: redacted(printable(value)) for key, value in tags.items()},
        }
        run_id = self.client.create_run(self.experiment_id, run_name=name, tags=below).info.run_id
        told = [Param(key, redacted(str(value))) for key, value in params.items()]
        self.client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()], params=told)
        self.client.set_terminated(run_id, "FAILED" if "failed" in tags else "FINISHED")

    def children(self) -> list[Run]:
        """The trials' runs, those of failed and interrupted attempts included."""
        return children(self.client, self.experiment_id, self.run_id)

    def label(self, states: Mapping[str, str], front: Collection[str]) -> None:
        """Tag each trial's run with the trial's state, and whether it lies on the front. Both by the trial's name."""
        runs = self.children()
        last = {run.data.tags.get("search.trial"): run.info.run_id for run in sorted(runs, key=lambda run: run.info.start_time)}
        for run in runs:
            name = run.data.tags.get("search.trial", "")
            told = {"search.state": states.get(name, "killed"), "search.front": str(name in front).lower()}
            if run.info.run_id != last[name]:  # an attempt before the one that counts
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

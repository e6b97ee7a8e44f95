"""The parent run of a search and its children, logged by the driver."""

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
from cpgan_ray.tracking.store import all_runs, count_opening, open_store
from cpgan_ray.tracking.uri import ensure_same_host


class SearchRun:
    """The parent run of a search. It is created before the first trial, so that only one process creates store and experiment.

    Each trial's run is a child and is logged by the trial's own process. The driver logs the parent, and tags the children.
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
        """Starts the run, or continues `run_id`. tags: values that may change when it continues; MLflow parameters cannot change.

        Raises: InputError if the tracking store does not respond or does not have that run.
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
                info = self.client.get_run(run_id).info
                ensure_same_host(info.artifact_uri, mlflow.get_tracking_uri(), of=f"MLflow run {run_id}")
                self.client.update_run(run_id, status="RUNNING")
            for key, value in (tags or {}).items():
                self.client.set_tag(run_id, key, value)
        self.run_id = run_id

    def log(self, metrics: Metrics, *, step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def count_opening(self, digest: str) -> int:
        """See `store.count_opening`."""
        return count_opening(self.client, self.run_id, digest)

    def log_files(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.client.log_artifact(self.run_id, str(path))

    def add_child(self, name: str, *, params: Mapping[str, Any], metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Adds a finished child run, with everything at once, for work whose own process logs nothing."""
        now = int(time.time() * 1000)
        all_tags = {
            "mlflow.parentRunId": self.run_id,
            "search.trial": name,
            **{key: redacted(printable(value)) for key, value in tags.items()},
        }
        run_id = self.client.create_run(self.experiment_id, run_name=name, tags=all_tags).info.run_id
        logged_params = [Param(key, redacted(str(value))) for key, value in params.items()]
        self.client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()], params=logged_params)
        self.client.set_terminated(run_id, "FAILED" if "failed" in tags else "FINISHED")

    def children(self) -> list[Run]:
        """The runs of the trials, including failed and interrupted attempts."""
        return children(self.client, self.experiment_id, self.run_id)

    def label(self, states: Mapping[str, str], front: Collection[str]) -> None:
        """Tags each trial's run with the trial's state and whether it is on the front. states, front: by the name of the trial."""
        runs = self.children()
        last = {run.data.tags.get("search.trial"): run.info.run_id for run in sorted(runs, key=lambda run: run.info.start_time)}
        for run in runs:
            name = run.data.tags.get("search.trial", "")
            tags = {"search.state": states.get(name, "killed"), "search.front": str(name in front).lower()}
            if run.info.run_id != last[name]:  # an earlier attempt, which does not count
                tags = {"search.state": run.info.status.lower(), "search.front": "false"}
            for key, value in tags.items():
                if run.data.tags.get(key) != value:
                    self.client.set_tag(run.info.run_id, key, value)

    def end_children(self, status: str, *, names: Collection[str] | None = None) -> None:
        """Ends the running runs of trials whose processes have ended. names: only of these trials."""
        for run in self.children():
            selected = names is None or run.data.tags.get("search.trial") in names
            if selected and run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, status)

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)


def children(client: mlflow.MlflowClient, experiment_id: str, parent: str) -> list[Run]:
    """All runs below a parent run."""
    return all_runs(client, experiment_id, f"tags.`mlflow.parentRunId` = '{parent}'")


def end_attempts(uri: str, parent: str, trial: str) -> None:
    """Marks earlier attempts at a trial as FAILED if their process ended without setting a status."""
    client = mlflow.MlflowClient(uri)
    for run in children(client, client.get_run(parent).info.experiment_id, parent):
        if run.data.tags.get("search.trial") == trial and run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "FAILED")

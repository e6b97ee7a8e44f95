"""Logging of runs to MLflow, `metrics.jsonl`, `config.json` and the console. The only package that imports MLflow.

`store` finds and opens the tracking store; `run` logs one run, from the driver's process; `outbox` sends its metrics; `search` logs
the parent run of a search; `reading` reads tracked runs as trials; `registry` registers what is exported; `console` shows the
progress line.
"""

import os

from cpgan_ray.common.environment import complete_environment

complete_environment()  # MLflow looks for a home folder when it is imported
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported

from cpgan_ray.tracking.console import Console  # noqa: E402
from cpgan_ray.tracking.reading import fetch_run, read_curves, read_trials  # noqa: E402
from cpgan_ray.tracking.registry import fetch_bundle, register, registered_run, registration  # noqa: E402
from cpgan_ray.tracking.run import Tracker  # noqa: E402
from cpgan_ray.tracking.search import SearchRun, end_attempts  # noqa: E402
from cpgan_ray.tracking.store import STORE, ensure_trackable, tracking_uri  # noqa: E402

__all__ = [
    "STORE",
    "Console",
    "SearchRun",
    "Tracker",
    "end_attempts",
    "ensure_trackable",
    "fetch_bundle",
    "fetch_run",
    "read_curves",
    "read_trials",
    "register",
    "registered_run",
    "registration",
    "tracking_uri",
]

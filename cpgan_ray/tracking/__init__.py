"""Where runs leave their traces: MLflow, `metrics.jsonl`, `config.json` and the console. The only package that imports MLflow.

`store` finds and opens the tracking store; `run` logs one run, from the driver's process; `search` the parent run of a search;
`reading` makes trials of what was tracked; `console` is the progress line.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported

from cpgan_ray.tracking.console import Console
from cpgan_ray.tracking.reading import fetch_run, read_curves, read_trials
from cpgan_ray.tracking.run import Tracker
from cpgan_ray.tracking.search import SearchRun, end_attempts
from cpgan_ray.tracking.store import STORE, ensure_trackable, tracking_uri

__all__ = [
    "STORE",
    "Console",
    "SearchRun",
    "Tracker",
    "end_attempts",
    "ensure_trackable",
    "fetch_run",
    "read_curves",
    "read_trials",
    "tracking_uri",
]

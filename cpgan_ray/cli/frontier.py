"""The command line of jobs/frontier.py."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from cpgan_ray.cli.flags import read_flags
from cpgan_ray.common.environment import ensure_here
from cpgan_ray.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierJob:
    """What `jobs/frontier.py` is told."""

    experiments: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="EXPERIMENT...")]] = ()
    """MLflow experiments by name, or searches by the id of their MLflow run; each has a front of its own."""
    output: Path | None = None
    """Where `frontier.png`, `.json` and `.csv` go; none given: `outputs/frontier-<time>`."""
    max_r2: float | None = None
    """Recommend the setting of the best accuracy whose strongest R2 is at most this."""
    min_accuracy: float | None = None
    """Recommend the most private setting whose accuracy is at least this."""
    tracking_uri: str | None = None
    """Tracking store; none given: MLFLOW_TRACKING_URI, or `outputs/mlflow.db` (SQLite)."""

    def __post_init__(self) -> None:
        for name in ("max_r2", "min_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value!r}; it must be between 0 and 1")


def parse_frontier(arguments: Sequence[str], *, description: str) -> FrontierJob:
    """`EXPERIMENT... [--flag VALUE ...]`.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_here()
    job = read_flags(FrontierJob, FrontierJob(), arguments, usage=description)
    if not job.experiments:
        raise InputError("nothing to draw: give MLflow experiments by name, or the MLflow run id of a search")
    return dataclasses.replace(job, output=job.output and job.output.expanduser().resolve())

"""The command line of jobs/frontier.py."""

import dataclasses
from collections.abc import Sequence

from cpgan_ray.cli.flags import read_flags
from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.config import FrontierJob
from cpgan_ray.errors import InputError

CALL = "frontier.py EXPERIMENT... [--flag VALUE ...]"


def parse_frontier(arguments: Sequence[str], *, description: str) -> FrontierJob:
    """Parse `EXPERIMENT... [--flag VALUE ...]`.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_current_folder()
    job = read_flags(
        FrontierJob,
        FrontierJob(),
        arguments,
        usage=description,
        call=CALL,
        main=("output", "objectives", "max_r2", "min_accuracy", "max_multiply_adds", "tracking_uri"),
    )
    if not job.experiments:
        raise InputError("nothing to draw: give names of MLflow experiments, or the MLflow run id of a search")
    return dataclasses.replace(job, output=job.output and job.output.expanduser().resolve())

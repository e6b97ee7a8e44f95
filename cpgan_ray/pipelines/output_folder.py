"""The output folder of a job."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cpgan_ray.common.claims import claim_folder, claim_new_folder
from cpgan_ray.common.credentials import redacted
from cpgan_ray.config import ReproduceJob, SearchJob, SeedsJob
from cpgan_ray.config.folders.jobs import REPRODUCTION, SEARCH, SEEDS
from cpgan_ray.errors import InputError
from cpgan_ray.tracking import tracking_uri

J = TypeVar("J", SearchJob, ReproduceJob, SeedsJob)


@contextmanager
def output_folder(requested: Path | None, name: str, *, resume: bool = False, parent: Path | None = None) -> Iterator[Path]:
    """A job's output folder, absolute, locked for this process until the block ends. It is the requested folder, or a new folder in
    `parent` (default: `outputs`) named after `name` and the time. It is removed at the end if nothing has been written to it.

    Raises: InputError if it already holds the results of a job, or another process uses it.
    """
    if requested is None:
        base = (parent or Path("outputs").resolve()) / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        with claim_new_folder(base) as folder:
            yield folder
        return
    ensure_unused(requested, resume=resume)  # before the folder is changed
    with claim_folder(requested):
        ensure_unused(requested, resume=resume)  # again, because another process may have released it just now
        yield requested


def ensure_unused(output: Path, *, resume: bool) -> None:
    """Raises: InputError if the folder holds the results of a job; with `resume`, if it holds a run that has finished."""
    if resume and (output / "report" / "report.json").is_file():
        raise InputError(f"the run in {output} has finished: there is nothing to resume")
    kinds = (("config.json", "run"), (SEARCH, "search"), (REPRODUCTION, "comparison"), (SEEDS, "training under several seeds"))
    for file, kind in kinds:
        if not resume and (output / file).exists():
            remedy = "give another --output" if kind == "run" else "continue it with --resume, or give another --output"
            raise InputError(f"output folder {output} already holds a {kind}: {remedy}")


def with_output(job: J, folder: Path) -> J:
    """The job with this output folder and its tracking store, both absolute, because its trainings run in other processes."""
    uri = tracking_uri(job.config.tracking, folder)
    if redacted(uri) != uri:  # the URI contains a password, which must not be written into the job's record
        os.environ["MLFLOW_TRACKING_URI"] = uri
    tracking = dataclasses.replace(job.config.tracking, uri=uri if redacted(uri) == uri else None)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, output=folder, tracking=tracking))

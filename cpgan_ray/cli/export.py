"""The command line of jobs/export.py."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from cpgan_ray.cli.attack import find_target
from cpgan_ray.cli.flags import absolute, read_flags, take_trust
from cpgan_ray.cli.help import EXPORT, HELP, HELP_ALL
from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.config import ExportJob
from cpgan_ray.config.folders.targets import Target, complete_export_job, export_job_of
from cpgan_ray.errors import InputError

CALL = "export.py RUN_FOLDER | RUN_ID | models:/NAME@ALIAS [--flag VALUE ...]"
REGISTERED = "models:/"


def parse_export(
    arguments: Sequence[str], *, description: str, fetch: Callable[[str], Path], resolve: Callable[[str], str]
) -> tuple[Target, ExportJob]:
    """Parse `RUN [--flag VALUE ...]`; flags default to the values of the run.

    fetch: downloads the files of an MLflow run, by its id, into a folder (see `tracking.fetch_run`). resolve: the id of the run of
    a registered model, by `models:/NAME@ALIAS` or `models:/NAME/VERSION` (see `tracking.registered_run`). Each is called only if
    it is needed.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_current_folder()
    rest = list(arguments)
    no_run = "nothing to export: give a run's output folder, an MLflow run id, or models:/NAME@ALIAS"
    trust = take_trust(rest)
    asks_for_help = bool({*HELP, HELP_ALL} & set(rest))
    if not rest or (rest[0].startswith("-") and not asks_for_help):
        raise InputError(no_run)
    target = None
    if not rest[0].startswith("-"):
        name = rest.pop(0)
        target = find_target(resolve(name) if name.startswith(REGISTERED) else name, fetch=fetch, trust=trust)
    base = ExportJob() if target is None else export_job_of(target)
    job = absolute(read_flags(ExportJob, dataclasses.replace(base, trust=trust), rest, usage=description, call=CALL, main=EXPORT))
    if target is None:  # not reached: --help has ended the process
        raise InputError(no_run)
    return target, complete_export_job(job, target)

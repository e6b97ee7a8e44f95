"""The command line of jobs/serve.py."""

import dataclasses
from collections.abc import Sequence

from cpgan_ray.cli.flags import read_flags
from cpgan_ray.cli.help import SERVE
from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.config import ServeJob
from cpgan_ray.errors import InputError

CALL = "serve.py BUNDLE... [--flag VALUE ...]"


def parse_serve(arguments: Sequence[str], *, description: str) -> ServeJob:
    """Parse `BUNDLE... [--flag VALUE ...]`.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_current_folder()
    job = read_flags(ServeJob, ServeJob(), arguments, usage=description, call=CALL, main=SERVE)
    if not job.bundles:
        raise InputError("nothing to serve: give the folder or the zip archive of a bundle, or models:/NAME@ALIAS")
    keys_file = job.keys_file and job.keys_file.expanduser().resolve()
    return dataclasses.replace(job, keys_file=keys_file)

"""The files that a run, a search or a comparison is read back from, and what is used of those that another user has written.

Such a file says what was trained and also where: its tracking store, its cluster, its data. The latter would lead this user's
credentials and writes to places of somebody else's choice. It is used only if this user's own run has written the file (see
common/ownership.py), or if the user says by `--trust` that the folder is his own.
"""

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from cpgan_ray.common.json_files import parse_json, read_limited
from cpgan_ray.common.ownership import is_own
from cpgan_ray.config import AttackJob, Config, flatten, local_names, with_local
from cpgan_ray.credentials import has_stars
from cpgan_ray.errors import InputError
from cpgan_ray.presets import PRESETS

T = TypeVar("T")
C = TypeVar("C", Config, AttackJob)


@dataclasses.dataclass(frozen=True)
class Record:
    """What a file of a folder holds, and whether this user's own run has written it."""

    path: Path
    values: dict[str, Any]
    own: bool


def read_record(path: Path) -> Record:
    """Raises: ValueError if it is no JSON object; OSError if it cannot be read."""
    content = read_limited(path)
    values = parse_json(content)
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    return Record(path, values, is_own(path, content))


def run_id_in(record: Record) -> str:
    """Raises: KeyError or ValueError if the file names no MLflow run."""
    run_id = record.values["run_id"]
    if not (isinstance(run_id, str) and re.fullmatch(r"[\w-]{1,100}", run_id)):
        raise ValueError(f"run_id is {run_id!r:.60}")
    return run_id


def usable(found: T, mine: T, record: Record, *, trust: bool) -> T:
    """The configuration in a file, with the LOCAL fields of `mine` if another user has written the file; a line on standard error
    says which were ignored."""
    if record.own or trust:
        return found
    portable, ignored = with_local(found, mine)
    names = [name.removeprefix("config.") for name in ignored if name.removeprefix("config.") != "output"]
    if names:
        listed = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
        told = f"{record.path} was not written by this user: {listed} taken from your flags only; add --trust to use what it says"
        print(told, file=sys.stderr, flush=True)
    return portable


def defaults_for(config: Config) -> Config:
    """The preset that a configuration started from, as it comes with this package."""
    return PRESETS[config.preset]() if config.preset in PRESETS else Config()


def own_store(config: C) -> C:
    """With the user's tracking store unless he names another one: next to another user's folder may lie a store of that user's."""
    if config.tracking.uri is not None or os.environ.get("MLFLOW_TRACKING_URI"):
        return config
    uri = f"sqlite:///{Path('outputs').resolve() / 'mlflow.db'}"
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri=uri))


def ensure_complete(job: Any, record: Record) -> None:
    """Raises: InputError if a URI was read from a file, which is written without secrets, and not given again."""
    flat = flatten(job)
    for name in local_names(type(job)):
        for field in [field for field in flat if field == name or field.startswith(f"{name}.")]:
            if has_stars(flat[field]):
                flag = "--" + field.removeprefix("config.").replace("_", "-")
                raise InputError(f"{record.path} was written without the secret in {flag} {flat[field]}: give {flag} again")

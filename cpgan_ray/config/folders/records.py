"""Write and read such a file, and the use of the locations in it."""

import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cpgan_ray.common.credentials import is_redacted, redacted_values
from cpgan_ray.common.json_files import parse_json, read_limited, write_json
from cpgan_ray.common.ownership import is_own, sign
from cpgan_ray.config.io import flatten, local_names, with_local
from cpgan_ray.config.jobs import AttackJob, ExportJob
from cpgan_ray.config.parts import code_names
from cpgan_ray.config.presets import PRESETS
from cpgan_ray.config.schema import Config
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")
C = TypeVar("C", Config, AttackJob, ExportJob)


@dataclasses.dataclass(frozen=True)
class Record:
    """The content of such a file, and whether a run of this user has written it."""

    path: Path
    values: dict[str, Any]
    own: bool


FORMAT = 3
"""Version of the layout of output folders; folders of another version are refused."""
REPRODUCTION = "reproduction.json"
"""File of a comparison: its job, and its MLflow run. Written when the comparison starts."""
COMPARISON_FORMAT = 6
"""Version of the layout of the folders of comparisons."""


def format_of(path: Path) -> int:
    """The version of the layout of the folder to which one of these files belongs."""
    return COMPARISON_FORMAT if path.name == REPRODUCTION else FORMAT


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write one of these files: with its format, without secrets, signed."""
    write_json(path, {"format": format_of(path)} | redacted_values(dict(values)))
    sign(path)


def read_record(path: Path) -> Record:
    """Read one of these files; the values do not include the format.

    Raises: ValueError if it is not a JSON object; OSError if it cannot be read; InputError if it has another format.
    """
    content = read_limited(path)
    values = parse_json(content)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    if (version := values.pop("format", 1)) != format_of(path):
        raise InputError(
            f"{path} has format {version!r:.40}, this version reads {format_of(path)}: use the version that wrote it, or start in "
            "another folder"
        )
    return Record(path, values, is_own(path, content))


def run_id_in(record: Record) -> str:
    """The id of the MLflow run in a file.

    Raises: KeyError or ValueError if there is none.
    """
    run_id = record.values["run_id"]
    if not (isinstance(run_id, str) and re.fullmatch(r"[\w-]{1,100}", run_id)):
        raise ValueError(f"run_id is {run_id!r:.60}")
    return run_id


def usable(recorded: T, own: T, record: Record, *, trust: bool) -> T:
    """The configuration recorded in a file. If another user has written the file, LOCAL fields are those of `own`, and a warning
    names the ignored ones."""
    if record.own or trust:
        return recorded
    portable, ignored = with_local(recorded, own)
    names = [name.removeprefix("config.") for name in ignored if name.removeprefix("config.") != "output"]
    if names:
        listed = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
        logger.warning(
            f"{record.path} was not written by this user: {listed} taken from your flags only; add --trust to use what it says"
        )
    return portable


def ensure_own_code(config: Any, record: Record, *, trust: bool) -> None:
    """Check that a configuration, or a job around one, may be run: the code that it names is run.

    Raises: InputError if another user has written the file, and it names code.
    """
    if record.own or trust:
        return
    for field, name in code_names(config):
        raise InputError(
            f"{record.path} was not written by this user, and {field} in it names code, {name!r:.100}: look at that code, and add "
            "--trust to run it"
        )


def defaults_for(config: Config) -> Config:
    """The preset that a configuration started from, without its changes."""
    return PRESETS[config.preset]() if config.preset in PRESETS else Config()


def own_store(config: C) -> C:
    """The configuration with this user's tracking store, unless a flag names one: a store next to another user's folder may be that
    user's."""
    if config.tracking.uri is not None or os.environ.get("MLFLOW_TRACKING_URI"):
        return config
    uri = f"sqlite:///{Path('outputs').resolve() / 'mlflow.db'}"
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri=uri))


def ensure_complete(job: Any, record: Record) -> None:
    """Raises: InputError if a URI was read from a file, in which its secret is missing, and not given again by a flag."""
    flat = flatten(job)
    for name in local_names(type(job)):
        for field in [field for field in flat if field == name or field.startswith(f"{name}.")]:
            if is_redacted(flat[field]):
                flag = "--" + field.removeprefix("config.").replace("_", "-")
                raise InputError(f"{record.path} was written without the secret in {flag} {flat[field]}: give {flag} again")

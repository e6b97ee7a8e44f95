"""The files that a run, a search or a comparison is read back from, and what is used of those that another user has written.

Such a file says what was trained and also where: its tracking store, its cluster, its data. The latter would lead this user's
credentials and writes to places of somebody else's choice. It is used only if this user's own run has written the file (see
common/ownership.py), or if the user says by `--trust` that the folder is his own.
"""

import dataclasses
import json
import logging
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cpgan_ray.common.atomic_io import write_text
from cpgan_ray.common.credentials import is_redacted, redacted, redacted_values
from cpgan_ray.common.json_files import parse_json, read_limited
from cpgan_ray.common.ownership import is_own, sign
from cpgan_ray.config.io import flatten, from_json, local_names, with_local
from cpgan_ray.config.jobs import AttackJob, ReproduceJob, SearchJob
from cpgan_ray.config.presets import PRESETS
from cpgan_ray.config.schema import Config
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")
C = TypeVar("C", Config, AttackJob)


@dataclasses.dataclass(frozen=True)
class Record:
    """What a file of a folder holds, and whether this user's own run has written it."""

    path: Path
    values: dict[str, Any]
    own: bool


FORMAT = 2
"""Number of the layout of a job's output folder. It changes with the names in it; folders of another format are refused."""


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write one of the files that a job is resumed from: with its format, without secrets, signed."""
    write_text(path, json.dumps({"format": FORMAT} | redacted_values(dict(values)), indent=1) + "\n")
    sign(path)


def read_record(path: Path) -> Record:
    """The inverse of `write_record`; values without the format.

    Raises: ValueError if it is no JSON object; OSError if it cannot be read; InputError if it has another format.
    """
    content = read_limited(path)
    values = parse_json(content)
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    if (version := values.pop("format", 1)) != FORMAT:
        raise InputError(
            f"{path} has format {version!r:.40}, this version reads {FORMAT}: use the version that wrote it, or start in another "
            "folder"
        )
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
        logger.warning(told)
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
            if is_redacted(flat[field]):
                flag = "--" + field.removeprefix("config.").replace("_", "-")
                raise InputError(f"{record.path} was written without the secret in {flag} {flat[field]}: give {flag} again")


CONFIG = "config.json"
"""What a run's folder holds from its start on: its configuration, its prepared store, and its MLflow run."""
ADJUSTABLE = ("epochs", "output", "runtime.", "recovery.", "attacks.", "tracking.")
"""Fields that a run may be resumed with another value of: they do not alter what was played."""


def interrupted_run(folder: Path, *, trust: bool = False) -> tuple[Config, str, Record]:
    """Configuration and MLflow run of an output folder whose run has not come to its end.

    Raises: InputError where it is no run's folder, or the run has ended.
    """
    config, run_id, record = read_run_record(folder, trust=trust)
    if (folder / "report" / "report.json").is_file():
        raise InputError(f"the run in {folder} has finished: there is nothing to resume")
    if run_id is None:
        raise InputError(f"{folder / 'config.json'} names no MLflow run: begin the run again in another --output")
    return dataclasses.replace(config, output=folder), run_id, record


def read_run(folder: Path, *, trust: bool = False) -> tuple[Config, str | None]:
    """What the `config.json` of a run's output folder says: the configuration, and the MLflow run. If another user has written it,
    LOCAL fields are those of the preset, unless the user trusts it.

    Raises: InputError where there is none, or it is damaged.
    """
    return read_run_record(folder, trust=trust)[:2]


def read_run_record(folder: Path, *, trust: bool) -> tuple[Config, str | None, Record]:
    """The same, and the file itself."""
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} has no {CONFIG}: give the output folder of a run")
    try:
        record = read_record(path)
        values = record.values
        run_id = None if values.get("run_id") is None else run_id_in(record)
        values = {name: value for name, value in values.items() if name not in ("run_id", "store")}
    except InputError:
        raise
    except (OSError, ValueError) as e:
        raise InputError(f"{path} is damaged ({e}): give the output folder of a run") from e
    config = from_json(values)
    return usable(config, defaults_for(config), record, trust=trust), run_id, record


def store_of(folder: Path) -> str | None:
    """Digest of the prepared store that the run in an output folder was begun on; None if its `config.json` does not say."""
    try:
        store = read_record(folder / CONFIG).values.get("store")
    except (OSError, ValueError):
        return None
    return Path(store).name if isinstance(store, str) else None


def command_for(config: Config) -> str:
    """The arguments of `jobs/train_celeba.py` that make this run: its preset, and what differs from that.

    Attacks, output and tracking are left to the preset and its defaults.
    """
    base, told = flatten(PRESETS[config.preset]()) if config.preset in PRESETS else {}, flatten(config)
    left = ("preset", "output", "attacks.", "tracking.", "runtime.", "recovery.")
    words = [config.preset]
    for name, value in told.items():
        if name.startswith(left) or value == base.get(name):
            continue
        *path, last = name.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*path, last if value else f"no-{last}"]))
        else:
            words += ["--" + ".".join([*path, last]), *(map(str, value) if isinstance(value, list) else [str(value)])]
    return redacted(shlex.join(words))


SEARCH = "search.json"
"""What a search's folder holds from its start on: its job, and its MLflow run."""
PLACES = ("config.data_dir", "config.cache_dir", "config.shared_cache", "config.tracking.uri", "config.runtime.address")
RESUMABLE = ("max_r2", "min_accuracy", "max_failures", *PLACES)
"""Flags that may differ from those a search was begun with."""


def read_search(folder: Path) -> tuple[SearchJob, str]:
    """The job of a search's folder that is under way or that the user trusts, and the id of its MLflow run.

    Raises: InputError where the folder is not a search's, or has been moved.
    """
    return search_record(folder, trust=True)[1:]


def search_record(folder: Path, *, trust: bool) -> tuple[Record, SearchJob, str]:
    """The same, and the file that says so.

    Raises: InputError also if another user has written it: Ray Tune restores its state with pickle, which can run any code.
    """
    path = folder / SEARCH
    if not path.is_file():
        raise InputError(f"{folder} has no {SEARCH}: give the output folder of a search")
    try:
        record = read_record(path)
        run_id = run_id_in(record)
        job = from_json(record.values["job"], kind=SearchJob)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path} is damaged ({e}): start the search again in another folder") from e
    if not (record.own or trust):
        raise InputError(
            f"{path} was not written by this user, and to resume a search is to run what its pickled state says: add --trust if "
            "the folder is your own"
        )
    if job.config.output != folder:
        raise InputError(f"the search in {folder} was begun in {job.config.output}: move it back there to go on with it")
    return record, job, run_id


REPRODUCTION = "reproduction.json"
"""What a comparison's folder holds from its start on: its job, and its MLflow run."""
EXTENDABLE = ("mechanisms", "num_settings", "num_seeds", "weights", "published", "config.runtime.")
"""Fields that a comparison may be resumed with another value of: which cells there are, not what a cell is."""


def read_reproduction(folder: Path) -> tuple[ReproduceJob, str]:
    """The job of a comparison's folder, and the id of its MLflow run.

    Raises: InputError where the folder is not a comparison's, or has been moved.
    """
    return reproduction_record(folder, trust=True)[1:]


def reproduction_record(folder: Path, *, trust: bool) -> tuple[Record, ReproduceJob, str]:
    """The same, and the file that says so. If another user has written it, LOCAL fields are those of the preset, unless the user
    trusts it."""
    path = folder / REPRODUCTION
    if not path.is_file():
        raise InputError(f"{folder} has no {REPRODUCTION}: give the output folder of a comparison")
    try:
        record = read_record(path)
        job, run_id = from_json(record.values["job"], kind=ReproduceJob), run_id_in(record)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path} is damaged ({e}): start the comparison again in another folder") from e
    mine = dataclasses.replace(defaults_for(job.config), output=folder)
    job = usable(job, ReproduceJob(config=mine), record, trust=trust)
    if job.config.output != folder:
        raise InputError(f"the comparison in {folder} was begun in {job.config.output}: move it back there to go on with it")
    return record, job, run_id


@dataclasses.dataclass(frozen=True)
class Target:
    """What `jobs/attack.py` attacks: a run, or an encoder's file alone."""

    name: str
    program: Path  # the encoder's file
    folder: Path | None = None  # the run's output folder, or what MLflow has of it
    config: Config | None = None  # the run's
    run_id: str | None = None
    own: bool = True  # whether this user's own run has written the folder, or he trusts it
    kept: bool = False  # whether `folder` stays: what MLflow has is downloaded to a temporary one


def run_target(folder: Path, *, name: str, trust: bool) -> Target:
    """Raises: InputError where the folder is not a finished run's."""
    config, run_id, record = read_run_record(folder, trust=trust)
    if not (folder / "privatizer.pt2").is_file():
        raise InputError(f"{folder} has no privatizer.pt2: give the output folder of a finished run")
    return Target(name, folder / "privatizer.pt2", folder, config, run_id, own=record.own or trust)


def attack_job_of(target: Target) -> AttackJob:
    """The default settings of an attack: those of the attacked run if the target is one."""
    job = AttackJob()
    if target.config is None:
        return job
    same = ("data_dir", "cache_dir", "shared_cache", "seed", "skip_corrupt", "data", "attacks", "runtime", "tracking")
    job = dataclasses.replace(job, **{name: getattr(target.config, name) for name in same})
    return dataclasses.replace(job, tracking=dataclasses.replace(job.tracking, run_name=None))

"""The files in an output folder from which a run, a search or a comparison is resumed or attacked.

Such a file records what was trained and also where: tracking store, cluster, data. If another user has written it, these locations
would send this user's credentials and writes to an address of that user's choice. They are therefore used only if a run of this
user has written the file (see common/ownership.py), or with `--trust`.
"""

import dataclasses
import logging
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cpgan_ray.common.credentials import is_redacted, redacted, redacted_values
from cpgan_ray.common.json_files import parse_json, read_limited, write_json
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
    """The content of such a file, and whether a run of this user has written it."""

    path: Path
    values: dict[str, Any]
    own: bool


FORMAT = 2
"""Version of the layout of output folders; folders of another version are refused."""


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write one of these files: with its format, without secrets, signed."""
    write_json(path, {"format": FORMAT} | redacted_values(dict(values)))
    sign(path)


def read_record(path: Path) -> Record:
    """Read one of these files; the values do not include the format.

    Raises: ValueError if it is not a JSON object; OSError if it cannot be read; InputError if it has another format.
    """
    content = read_limited(path)
    values = parse_json(content)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    if (version := values.pop("format", 1)) != FORMAT:
        raise InputError(
            f"{path} has format {version!r:.40}, this version reads {FORMAT}: use the version that wrote it, or start in another "
            "folder"
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


CONFIG = "config.json"
"""File of a run: its configuration, its prepared store, and its MLflow run. Written when the run starts."""
ADJUSTABLE = ("epochs", "output", "runtime.", "recovery.", "attacks.", "tracking.")
"""Fields that may change when a run is resumed: they do not affect the rounds already played."""


def interrupted_run(folder: Path, *, trust: bool = False) -> tuple[Config, str, Record]:
    """Configuration and MLflow run of the output folder of an unfinished run.

    Raises: InputError if it is not the folder of a run, or if the run has finished.
    """
    config, run_id, record = read_run_record(folder, trust=trust)
    if (folder / "report" / "report.json").is_file():
        raise InputError(f"the run in {folder} has finished: there is nothing to resume")
    if run_id is None:
        raise InputError(f"{folder / 'config.json'} names no MLflow run: start the run again in another --output")
    return dataclasses.replace(config, output=folder), run_id, record


def read_run(folder: Path, *, trust: bool = False) -> tuple[Config, str | None]:
    """Configuration and MLflow run in the `config.json` of an output folder. If another user has written it, LOCAL fields are those
    of the preset, except with `trust`.

    Raises: InputError if there is none, or if it is damaged.
    """
    return read_run_record(folder, trust=trust)[:2]


def read_run_record(folder: Path, *, trust: bool) -> tuple[Config, str | None, Record]:
    """Like `read_run`, with the file itself."""
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
    """Digest of the prepared store that a run uses; None if its `config.json` does not contain it."""
    try:
        store = read_record(folder / CONFIG).values.get("store")
    except (OSError, ValueError):
        return None
    return Path(store).name if isinstance(store, str) else None


def command_for(config: Config) -> str:
    """The arguments of `jobs/train_celeba.py` that repeat this run: its preset, and the fields that differ from it. Attacks, output
    and tracking are left out.
    """
    base = flatten(PRESETS[config.preset]()) if config.preset in PRESETS else {}
    omitted = ("preset", "output", "attacks.", "tracking.", "runtime.", "recovery.")
    words = [config.preset]
    for name, value in flatten(config).items():
        if name.startswith(omitted) or value == base.get(name):
            continue
        *path, last = name.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*path, last if value else f"no-{last}"]))
        else:
            words += ["--" + ".".join([*path, last]), *(map(str, value) if isinstance(value, list) else [str(value)])]
    return redacted(shlex.join(words))


SEARCH = "search.json"
"""File of a search: its job, and its MLflow run. Written when the search starts."""
LOCATIONS = ("config.data_dir", "config.cache_dir", "config.shared_cache", "config.tracking.uri", "config.runtime.address")
RESUMABLE = ("max_r2", "min_accuracy", "max_failures", *LOCATIONS)
"""Fields that may change when a search is resumed."""


def read_search(folder: Path) -> tuple[SearchJob, str]:
    """Job and MLflow run of the folder of a search, for a folder that is known to be trusted.

    Raises: InputError if it is not the folder of a search, or if it has been moved.
    """
    return search_record(folder, trust=True)[1:]


def search_record(folder: Path, *, trust: bool) -> tuple[Record, SearchJob, str]:
    """Like `read_search`, with the file itself.

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
"""File of a comparison: its job, and its MLflow run. Written when the comparison starts."""
EXTENDABLE = ("mechanisms", "num_settings", "num_seeds", "weights", "published", "config.runtime.")
"""Fields that may change when a comparison is resumed: they affect which cells there are, not what a cell is."""


def read_reproduction(folder: Path) -> tuple[ReproduceJob, str]:
    """Job and MLflow run of the folder of a comparison.

    Raises: InputError if it is not the folder of a comparison, or if it has been moved.
    """
    return reproduction_record(folder, trust=True)[1:]


def reproduction_record(folder: Path, *, trust: bool) -> tuple[Record, ReproduceJob, str]:
    """Like `read_reproduction`, with the file itself. If another user has written it, LOCAL fields are those of the preset, except
    with `trust`."""
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
    own = dataclasses.replace(defaults_for(job.config), output=folder)
    job = usable(job, ReproduceJob(config=own), record, trust=trust)
    if job.config.output != folder:
        raise InputError(f"the comparison in {folder} was begun in {job.config.output}: move it back there to go on with it")
    return record, job, run_id


@dataclasses.dataclass(frozen=True)
class Target:
    """What `jobs/attack.py` attacks: a run, or only the file of an encoder."""

    name: str
    program: Path  # the encoder's file
    folder: Path | None = None  # output folder of the run, or the folder into which MLflow's copy was downloaded
    config: Config | None = None  # of the run
    run_id: str | None = None
    own: bool = True  # whether a run of this user has written the folder, or it is trusted
    kept: bool = False  # whether `folder` is permanent: a download from MLflow is temporary


def run_target(folder: Path, *, name: str, trust: bool) -> Target:
    """Raises: InputError if it is not the folder of a finished run."""
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


def complete_attack_job(job: AttackJob, target: Target) -> AttackJob:
    """The settings of an attack with what depends on its target: the tracking store if another user has written the folder, and the
    data set if a data folder is given without one.

    Raises: InputError if a URI of the attacked folder lacks its secret.
    """
    if target.folder is not None:
        ensure_complete(job, read_record(target.folder / CONFIG))
    if not target.own:
        job = own_store(job)
    if job.dataset is None and job.data_dir is not None and job.data.dataset == "faces":
        job = dataclasses.replace(job, dataset="celeba")
    return job

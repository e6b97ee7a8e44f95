"""The records of a search, of a comparison and of trainings under several seeds: the job, and its MLflow run."""

import dataclasses
from pathlib import Path
from typing import TypeVar

from cpgan_ray.config.folders.records import REPRODUCTION, Record, defaults_for, ensure_own_code, read_record, run_id_in, usable
from cpgan_ray.config.io import from_json
from cpgan_ray.config.jobs import ReproduceJob, SearchJob
from cpgan_ray.config.seeds import SeedsJob
from cpgan_ray.errors import InputError

J = TypeVar("J", SearchJob, ReproduceJob, SeedsJob)

SEARCH = "search.json"
"""File of a search: its job, and its MLflow run. Written when the search starts."""
LOCATIONS = ("config.data_dir", "config.cache_dir", "config.shared_cache", "config.tracking.uri", "config.runtime.address")
RESUMABLE = ("max_r2", "min_accuracy", "max_multiply_adds", "max_failures", "time_budget", *LOCATIONS)
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
    record, job, run_id = job_record(folder, SEARCH, kind=SearchJob, name="search")
    if not (record.own or trust):
        raise InputError(
            f"{record.path} was not written by this user, and to resume a search is to run what its pickled state says: add "
            "--trust if the folder is your own"
        )
    ensure_not_moved(job, folder, name="search")
    return record, job, run_id


EXTENDABLE = ("mechanisms", "num_settings", "num_seeds", "rounding", "published", "estimate", "config.runtime.")
"""Fields that may change when a comparison is resumed: they affect which cells there are, not what a cell is."""


def read_reproduction(folder: Path) -> tuple[ReproduceJob, str]:
    """Job and MLflow run of the folder of a comparison.

    Raises: InputError if it is not the folder of a comparison, or if it has been moved.
    """
    return reproduction_record(folder, trust=True)[1:]


def reproduction_record(folder: Path, *, trust: bool) -> tuple[Record, ReproduceJob, str]:
    """Like `read_reproduction`, with the file itself. If another user has written it, LOCAL fields are those of the preset, except
    with `trust`."""
    record, job, run_id = job_record(folder, REPRODUCTION, kind=ReproduceJob, name="comparison")
    ensure_own_code(job, record, trust=trust)
    own = dataclasses.replace(defaults_for(job.config), output=folder)
    job = usable(job, ReproduceJob(config=own), record, trust=trust)
    ensure_not_moved(job, folder, name="comparison")
    return record, job, run_id


def planned_seeds(folder: Path) -> int:
    """Number of seeds of a comparison when it was started, whatever was added later.

    Raises: InputError if the record is damaged.
    """
    path = folder / REPRODUCTION
    try:
        return int(read_record(path).values["planned_seeds"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path} is damaged ({e}): start the comparison again in another folder") from e


SEEDS = "seeds.json"
"""File of trainings under several seeds: their job, and the MLflow run above them. Written before the first training."""


def seeds_record(folder: Path, *, trust: bool) -> tuple[Record, SeedsJob, str]:
    """The record of trainings under several seeds, their job, and the id of the MLflow run above them. If another user has written
    it, LOCAL fields are those of the preset, except with `trust`.

    Raises: InputError if it is not such a folder, or if it has been moved.
    """
    name = "training under several seeds"
    record, job, run_id = job_record(folder, SEEDS, kind=SeedsJob, name=name)
    ensure_own_code(job, record, trust=trust)
    own = dataclasses.replace(defaults_for(job.config), output=folder)
    job = usable(job, SeedsJob(config=own), record, trust=trust)
    ensure_not_moved(job, folder, name=name)
    return record, job, run_id


def job_record(folder: Path, file: str, *, kind: type[J], name: str) -> tuple[Record, J, str]:
    """The record with this file name, the job in it, and the id of its MLflow run. name: "search", "comparison" or the like, for
    messages.

    Raises: InputError if there is none, or if it is damaged.
    """
    path = folder / file
    if not path.is_file():
        raise InputError(f"{folder} has no {file}: give the output folder of a {name}")
    try:
        record = read_record(path)
        return record, from_json(record.values["job"], kind=kind), run_id_in(record)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path} is damaged ({e}): start the {name} again in another folder") from e


def ensure_not_moved(job: SearchJob | ReproduceJob | SeedsJob, folder: Path, *, name: str) -> None:
    """Raises: InputError if the job was started in another folder: its trainings have absolute paths."""
    if job.config.output != folder:
        raise InputError(f"the {name} in {folder} was begun in {job.config.output}: move it back there to go on with it")

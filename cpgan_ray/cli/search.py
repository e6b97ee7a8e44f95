"""The command line of jobs/tune_celeba.py, and what a search's folder says of it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from cpgan_ray.cli.flags import absolute, differing, read_flags, take_resume, take_trust, with_dataset
from cpgan_ray.cli.folders import Record, ensure_complete, read_record, run_id_in
from cpgan_ray.common.environment import ensure_here
from cpgan_ray.config import Config, SearchJob, flatten, from_json
from cpgan_ray.errors import InputError
from cpgan_ray.presets import PRESETS, for_search, preset

SEARCH = "search.json"
"""What a search's folder holds from its start on: its job, and its MLflow run."""
PLACES = ("config.data_dir", "config.cache_dir", "config.shared_cache", "config.tracking.uri", "config.runtime.address")
RESUMABLE = ("max_r2", "min_accuracy", "max_failures", *PLACES)
"""Flags that may differ from those a search was begun with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchFlags(SearchJob):
    """A SearchJob whose run's fields are flags without a prefix."""

    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


def parse_search(arguments: Sequence[str], *, description: str) -> tuple[SearchJob, bool]:
    """`[PRESET] [--flag VALUE ...]`, or `--resume DIR [--flag VALUE ...]`; and whether it is the latter.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_here()
    rest = list(arguments)
    folder = take_resume(rest)
    if folder is not None:
        record, begun, _ = search_record(folder, trust=(trust := take_trust(rest)))
        begun = dataclasses.replace(begun, config=dataclasses.replace(begun.config, trust=trust))
        job = read_job(begun, rest, description)
        job = dataclasses.replace(job, config=absolute(job.config))
        if changed := differing(flatten(job), flatten(begun), but=RESUMABLE):
            name, now, before = changed
            flag = "--" + name.removeprefix("config.").replace("_", "-")
            raise InputError(f"{flag} is {now!r}, the search in {folder} was begun with {before!r}: leave it out")
        ensure_complete(job, record)
        return job, True
    name = rest.pop(0) if rest and not rest[0].startswith("-") else "faces"
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)} (default faces). Values shown are those of {name}."
    job = read_job(SearchJob(config=for_search(preset(name))), rest, usage)
    return dataclasses.replace(job, config=absolute(with_dataset(job.config))), False


def read_job(base: SearchJob, rest: Sequence[str], usage: str) -> SearchJob:
    return SearchJob(**vars(read_flags(SearchFlags, SearchFlags(**vars(base)), rest, usage=usage)))


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

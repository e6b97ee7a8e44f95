"""The command line of jobs/tune_celeba.py, and what a search's folder says of it."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from cpgan_ray.cli.flags import absolute, differing, read_flags, take_resume, take_trust, with_dataset
from cpgan_ray.cli.help import OF_RUN, RESUME
from cpgan_ray.cli.help import SEARCH as SEARCH_FLAGS
from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.config import Config, SearchJob, flatten
from cpgan_ray.config.folders import RESUMABLE, ensure_complete, search_record
from cpgan_ray.config.presets import PRESETS, for_search, preset
from cpgan_ray.errors import InputError

CALL = "tune_celeba.py [PRESET] [--flag VALUE ...]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchFlags(SearchJob):
    """A SearchJob whose run's fields are flags without a prefix."""

    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


def parse_search(arguments: Sequence[str], *, description: str) -> tuple[SearchJob, bool]:
    """`[PRESET] [--flag VALUE ...]`, or `--resume DIR [--flag VALUE ...]`; and whether it is the latter.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_current_folder()
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
    return SearchJob(
        **vars(
            read_flags(
                SearchFlags, SearchFlags(**vars(base)), rest, usage=usage, call=CALL, main=(*SEARCH_FLAGS, *OF_RUN), more=RESUME
            )
        )
    )

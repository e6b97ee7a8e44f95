"""The command line of jobs/tune_celeba.py."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from cpgan_ray.cli.flags import absolute, ensure_same_settings, read_flags, take_resume, take_trust, with_dataset
from cpgan_ray.cli.help import ADVERSARIES, OF_RUN, RESUME
from cpgan_ray.cli.help import SEARCH as SEARCH_FLAGS
from cpgan_ray.cli.parts import absolute_search_space
from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.config import Config, SearchJob
from cpgan_ray.config.folders.jobs import RESUMABLE, search_record
from cpgan_ray.config.folders.records import ensure_complete
from cpgan_ray.config.presets import PRESETS, for_search, preset

CALL = "tune_celeba.py [PRESET] [--flag VALUE ...]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchFlags(SearchJob):
    """A SearchJob in which the fields of `config` are flags without a prefix."""

    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


def parse_search(arguments: Sequence[str], *, description: str) -> tuple[SearchJob, bool]:
    """Parse `[PRESET] [--flag VALUE ...]`, or `--resume FOLDER [--flag VALUE ...]`. Returns the job, and whether it resumes.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_current_folder()
    rest = list(arguments)
    folder = take_resume(rest)
    if folder is not None:
        record, original, _ = search_record(folder, trust=(trust := take_trust(rest)))
        original = dataclasses.replace(original, config=dataclasses.replace(original.config, trust=trust))
        job = read_job(original, rest, description)
        job = dataclasses.replace(job, config=absolute(job.config))
        ensure_same_settings(job, original, ignore=RESUMABLE, subject=f"the search in {folder}", remedy="leave the flag out")
        ensure_complete(job, record)
        return job, True
    name = rest.pop(0) if rest and not rest[0].startswith("-") else "faces"
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)} (default faces). Values shown are those of {name}."
    job = read_job(SearchJob(config=for_search(preset(name))), rest, usage)
    return absolute_search_space(dataclasses.replace(job, config=absolute(with_dataset(job.config)))), False


def read_job(base: SearchJob, rest: Sequence[str], usage: str) -> SearchJob:
    return SearchJob(
        **vars(
            read_flags(
                SearchFlags,
                SearchFlags(**vars(base)),
                rest,
                usage=usage,
                call=CALL,
                main=(*SEARCH_FLAGS, *OF_RUN),
                more=ADVERSARIES | RESUME,
            )
        )
    )

"""The command line of jobs/reproduce.py."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from cpgan_ray.cli.flags import absolute, ensure_same_settings, read_flags, take_resume, take_trust, with_dataset
from cpgan_ray.cli.help import ADVERSARIES, HELP, HELP_ALL, OF_RUN, REPRODUCE, RESUME
from cpgan_ray.cli.parts import absolute_mechanisms
from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.config import Config, ReproduceJob, local_names
from cpgan_ray.config.folders.jobs import EXTENDABLE, reproduction_record
from cpgan_ray.config.folders.records import ensure_complete, own_store
from cpgan_ray.config.presets import PRESETS, for_comparison, preset, with_attackers_people
from cpgan_ray.errors import InputError

CALL = "reproduce.py DATASET [--flag VALUE ...]"
HELP_OPTIONS: dict[str, Any] = {"call": CALL, "main": (*REPRODUCE, *OF_RUN), "more": ADVERSARIES | RESUME}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceFlags(ReproduceJob):
    """A ReproduceJob in which the fields of `config` are flags without a prefix."""

    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


def parse_reproduce(arguments: Sequence[str], *, description: str) -> tuple[ReproduceJob, bool]:
    """Parse `DATASET [--flag VALUE ...]`, or `--resume FOLDER [--flag VALUE ...]`. Returns the job, and whether it resumes.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_current_folder()
    rest = list(arguments)
    folder = take_resume(rest)
    if folder is not None:
        record, original, _ = reproduction_record(folder, trust=(trust := take_trust(rest)))
        original = dataclasses.replace(original, config=dataclasses.replace(original.config, trust=trust))
        job = ReproduceJob(
            **vars(read_flags(ReproduceFlags, ReproduceFlags(**vars(original)), rest, usage=description, **HELP_OPTIONS))
        )
        paths = [name for name in local_names(ReproduceJob) if name != "config.output"]
        remedy = "leave the flag out, or start a new comparison"
        ensure_same_settings(job, original, ignore=(*EXTENDABLE, *paths), subject=f"the comparison in {folder}", remedy=remedy)
        ensure_complete(job, record)
        if not (record.own or trust):
            job = dataclasses.replace(job, config=own_store(job.config))
        return with_absolute_paths(job), True
    if not rest or (rest[0].startswith("-") and not {*HELP, HELP_ALL} & set(rest)):
        raise InputError(f"nothing to reproduce: give a data set's preset, one of {', '.join(PRESETS)}")
    name = "digits" if rest[0].startswith("-") else rest.pop(0)
    full = "--full" in rest
    base = with_attackers_people(preset(name)) if full else for_comparison(preset(name))
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)}. Values shown are those of {name}."
    job = ReproduceJob(**vars(read_flags(ReproduceFlags, ReproduceFlags(config=base), rest, usage=usage, **HELP_OPTIONS)))
    if job.theory and name != "gaussian":
        raise InputError(f"--theory is available only for gaussian, not for {name}")
    return with_absolute_paths(dataclasses.replace(job, config=with_dataset(job.config))), False


def with_absolute_paths(job: ReproduceJob) -> ReproduceJob:
    published, grids = (path.expanduser().absolute() if path else None for path in (job.published, job.grids))
    return absolute_mechanisms(dataclasses.replace(job, published=published, grids=grids, config=absolute(job.config)))

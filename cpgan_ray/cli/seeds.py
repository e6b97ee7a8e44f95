"""The command line of jobs/train_celeba.py with `--seeds`, and of `--resume` in the folder of such trainings."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cpgan_ray.cli.flags import absolute, ensure_same_settings, read_flags, take_resume, take_trust
from cpgan_ray.cli.help import ADVERSARIES, RESUME, SEEDS, TRAIN
from cpgan_ray.cli.train import CALL, parse_train
from cpgan_ray.config import Config, SeedsJob, local_names
from cpgan_ray.config.folders.jobs import SEEDS as RECORD
from cpgan_ray.config.folders.jobs import seeds_record
from cpgan_ray.config.folders.records import ensure_complete, own_store
from cpgan_ray.config.seeds import MIN_TRAININGS
from cpgan_ray.errors import InputError


def parse_seeds(arguments: Sequence[str], *, default: str, description: str) -> tuple[SeedsJob, bool] | None:
    """Parse `[PRESET | CONFIG.json] --seeds N [--flag VALUE ...]`, or `--resume FOLDER [--seeds N]` of such a folder. Returns the
    job, and whether it resumes; None if the command line is that of one run.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    rest = list(arguments)
    num_seeds, folder = take_seeds(rest), take_resume(list(rest))
    if folder is not None and (folder / RECORD).is_file():
        return resumed(folder, rest, num_seeds=num_seeds, description=description), True
    if num_seeds is None:
        return None
    if folder is not None:
        raise InputError(f"--seeds repeats a training, but {folder} has no {RECORD}: leave out --seeds, or start without --resume")
    config, _ = parse_train(rest, default=default, description=description)
    return SeedsJob(num_seeds=num_seeds, config=config), False


def resumed(folder: Path, rest: list[str], *, num_seeds: int | None, description: str) -> SeedsJob:
    """The job of a folder, with the flags that may change when it is resumed: the number of seeds, where it runs, and locations."""
    take_resume(rest)
    record, original, _ = seeds_record(folder, trust=(trust := take_trust(rest)))
    before = dataclasses.replace(original.config, trust=trust)
    config = absolute(read_flags(Config, before, rest, usage=description, call=CALL, main=TRAIN, more=ADVERSARIES | SEEDS | RESUME))
    remedy = "leave the flag out, or start in another folder"
    ignore = ("runtime.", *local_names(Config))
    ensure_same_settings(config, before, ignore=ignore, subject=f"the training in {folder}", remedy=remedy)
    ensure_complete(config, record)
    config = dataclasses.replace(config, output=folder)
    config = config if record.own or trust else own_store(config)
    return SeedsJob(num_seeds=original.num_seeds if num_seeds is None else num_seeds, config=config)


def take_seeds(rest: list[str]) -> int | None:
    """Remove `--seeds N` from the arguments and return N; None if it is absent.

    Raises: InputError if no whole number of at least two follows it.
    """
    for i, argument in enumerate(rest):
        flag, equals, value = argument.partition("=")
        if flag == "--seeds":
            value = value if equals else "".join(rest[i + 1 : i + 2])
            if not value.isdecimal() or int(value) < MIN_TRAININGS:
                given = f"is {value!r}" if value and not value.startswith("--") else "has no number"
                raise InputError(f"--seeds {given}; it must be a whole number of at least {MIN_TRAININGS}, such as --seeds 3")
            del rest[i : i + (1 if equals else 2)]
            return int(value)
    return None

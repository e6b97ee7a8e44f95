"""The command line of jobs/train_celeba.py."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cpgan_ray.cli.flags import absolute, ensure_same_settings, read_flags, take_resume, take_trust, with_dataset
from cpgan_ray.cli.help import ADVERSARIES, CHECK, RESUME, SEEDS, TRAIN
from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.config import Config, local_names
from cpgan_ray.config.folders.records import ensure_complete, own_store
from cpgan_ray.config.folders.runs import ADJUSTABLE, config_of_another_run, interrupted_run
from cpgan_ray.config.presets import PRESETS, preset

CALL = "train_celeba.py [PRESET | CONFIG.json] [--flag VALUE ...]"


def parse(arguments: Sequence[str], *, default: str, description: str) -> Config:
    """Parse `[PRESET | CONFIG.json] [--any.config.field VALUE ...]` into a configuration.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    return parse_train(arguments, default=default, description=description)[0]


def parse_train(arguments: Sequence[str], *, default: str, description: str) -> tuple[Config, str | None]:
    """Parse the same as `parse`, or `--resume FOLDER [--flag VALUE ...]`. Returns the configuration, and the id of the MLflow run
    that continues; None for a new run.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_current_folder()
    rest = list(arguments)
    folder = take_resume(rest)
    if folder is not None:
        original, run_id, record = interrupted_run(folder, trust=(trust := take_trust(rest)))
        config = absolute(
            read_flags(
                Config,
                dataclasses.replace(original, trust=trust),
                rest,
                usage=description,
                call=CALL,
                main=TRAIN,
                more=ADVERSARIES | SEEDS | RESUME,
            )
        )
        ignore, remedy = (*ADJUSTABLE, *local_names(Config)), "leave the flag out, or start a new run"
        ensure_same_settings(config, original, ignore=ignore, subject=f"the run in {folder}", remedy=remedy)
        ensure_complete(config, record)
        return config if record.own or trust else own_store(config), run_id
    name = rest.pop(0) if rest and not rest[0].startswith("-") else default
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)} (default {default}). Values shown are those of {name}."
    more = ADVERSARIES | CHECK | SEEDS | RESUME
    if not name.endswith(".json"):
        return absolute(with_dataset(read_flags(Config, preset(name), rest, usage=usage, call=CALL, main=TRAIN, more=more))), None
    base, record = config_of_another_run(Path(name).expanduser().resolve(), trust=(trust := take_trust(rest)))
    base = dataclasses.replace(base, trust=trust)
    config = absolute(with_dataset(read_flags(Config, base, rest, usage=usage, call=CALL, main=TRAIN, more=more)))
    ensure_complete(config, record)
    return config, None

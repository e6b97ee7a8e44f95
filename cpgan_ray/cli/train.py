"""The command line of jobs/train_celeba.py, and what a run's folder says of it."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from cpgan_ray.cli.flags import absolute, differing, read_flags, take_resume, take_trust, with_dataset
from cpgan_ray.cli.folders import Record, defaults_for, ensure_complete, own_store, read_record, run_id_in, usable
from cpgan_ray.common.environment import ensure_here
from cpgan_ray.config import Config, flatten, from_json, local_names
from cpgan_ray.credentials import redacted
from cpgan_ray.errors import InputError
from cpgan_ray.presets import PRESETS, preset

CONFIG = "config.json"
"""What a run's folder holds from its start on: its configuration, its prepared store, and its MLflow run."""
ADJUSTABLE = ("epochs", "output", "runtime.", "recovery.", "attacks.", "tracking.")
"""Fields that a run may be resumed with another value of: they do not alter what was played."""


def parse(arguments: Sequence[str], *, default: str, description: str) -> Config:
    """`[PRESET] [--any.config.field VALUE ...]` to a configuration.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    return parse_train(arguments, default=default, description=description)[0]


def parse_train(arguments: Sequence[str], *, default: str, description: str) -> tuple[Config, str | None]:
    """The same, or `--resume DIR [--flag VALUE ...]`: then also the MLflow run that goes on.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_here()
    rest = list(arguments)
    folder = take_resume(rest)
    if folder is not None:
        begun, run_id, record = interrupted_run(folder, trust=(trust := take_trust(rest)))
        config = absolute(read_flags(Config, dataclasses.replace(begun, trust=trust), rest, usage=description))
        if changed := differing(flatten(config), flatten(begun), but=(*ADJUSTABLE, *local_names(Config))):
            name, now, before = changed
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{flag} is {now!r}, the run in {folder} was begun with {before!r}: leave it out, or begin another run"
            )
        ensure_complete(config, record)
        return config if record.own or trust else own_store(config), run_id
    name = rest.pop(0) if rest and not rest[0].startswith("-") else default
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)} (default {default}). Values shown are those of {name}."
    return absolute(with_dataset(read_flags(Config, preset(name), rest, usage=usage))), None


def interrupted_run(folder: Path, *, trust: bool = False) -> tuple[Config, str, Record]:
    """Configuration and MLflow run of an output folder whose run has not come to its end.

    Raises: InputError where it is no run's folder, or the run has ended.
    """
    config, run_id, record = read_run_record(folder, trust=trust)
    if (folder / "report" / "report.json").is_file():
        raise InputError(f"the run in {folder} has come to its end: there is nothing to resume")
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

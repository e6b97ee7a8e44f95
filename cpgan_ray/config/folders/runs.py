"""The `config.json` of a run: its configuration, its prepared store, and its MLflow run."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from cpgan_ray.common.credentials import redacted
from cpgan_ray.config.adversaries import choose_adversaries, words_for
from cpgan_ray.config.folders.records import Record, defaults_for, ensure_own_code, read_record, run_id_in, usable
from cpgan_ray.config.io import flatten, from_json, is_weight
from cpgan_ray.config.players import ANSWERS
from cpgan_ray.config.presets import PRESETS
from cpgan_ray.config.schema import Config
from cpgan_ray.config.weights import weight_words
from cpgan_ray.errors import InputError

CONFIG = "config.json"
"""File of a run: its configuration, its prepared store, and its MLflow run. Written when the run starts."""
ADJUSTABLE = ("epochs", "output", "runtime.", "recovery.", "attacks.", "tracking.")
"""Fields that may change when a run is resumed: they do not affect the rounds already played."""


def interrupted_run(folder: Path, *, trust: bool = False) -> tuple[Config, str, Record]:
    """Configuration and MLflow run of the output folder of an unfinished run.

    Raises: InputError if it is not the folder of a run, or if the run has finished.
    """
    config, run_id, record = read_run_record(folder, trust=trust)
    ensure_own_code(config, record, trust=trust)
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
    return read_config(path, trust=trust)


def config_of_another_run(path: Path, *, trust: bool = False) -> tuple[Config, Record]:
    """The configuration in the `config.json` of another run, for a new run: without its output folder, the name of its MLflow run,
    its checkpoints, its classifier's file and what it has from its teachers.

    Raises: InputError if it is not such a file, or if another user has written it and it names code.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a preset, or the {CONFIG} of a run")
    config, _, record = read_config(path, trust=trust)
    ensure_own_code(config, record, trust=trust)
    tracking = dataclasses.replace(config.tracking, run_name=None)
    recovery = dataclasses.replace(config.recovery, checkpoints=None)
    utility = dataclasses.replace(config.utility, teacher_answers=None, learned_label_weights={})
    privatizer = config.privatizer
    if privatizer.family == ANSWERS:
        privatizer = dataclasses.replace(privatizer, weights=None)
    fresh = {"tracking": tracking, "recovery": recovery, "utility": utility, "privatizer": privatizer}
    return dataclasses.replace(config, output=None, **fresh), record


def read_config(path: Path, *, trust: bool) -> tuple[Config, str | None, Record]:
    """Configuration, MLflow run and the file itself."""
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
    start = PRESETS[config.preset]() if config.preset in PRESETS else Config()
    names, kinds = words_for(config, start)
    base = flatten(choose_adversaries(start, words=names, kinds=kinds)) if config.preset in PRESETS else {}
    omitted = ("preset", "output", "attacks.", "tracking.", "runtime.", "recovery.")
    words = [config.preset, *(["--adversaries", *names] if names else [])]
    words += [word for name, kind in kinds.items() for word in (f"--adversaries.{name}.kind", kind)]
    options: dict[str, dict[str, Any]] = {}
    weights: dict[str, dict[str, float]] = {}
    for name, value in flatten(config).items():
        section, dot, option = name.partition(".options.")
        if dot:
            options.setdefault(section, {})[option] = value
            continue
        if name.startswith(omitted) or value == base.get(name):
            continue
        if is_weight(name, config):
            section, _, entry = name.partition("_weights.")
            weights.setdefault(section, {})[entry] = value
            continue
        *path, last = name.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*path, last if value else f"no-{last}"]))
        else:
            words += ["--" + ".".join([*path, last]), *(map(str, value) if isinstance(value, list) else [str(value)])]
    for section, values in weights.items():
        words += [f"--{section}-weights", *weight_words(values)]
    for section, values in options.items():
        words += [f"--{section.replace('_', '-')}.options", json.dumps(values)]
    return redacted(shlex.join(words))

"""Flags that select parts: names become absolute, `--adversaries` chooses who plays, `--adversaries.NAME.kind` adds one."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from cpgan_ray.common.plugins.names import absolute_name, absolute_path
from cpgan_ray.config import AttackJob, Config, OwnConfig, ReproduceJob, SearchJob, UtilityConfig
from cpgan_ray.config.adversaries import choose_adversaries
from cpgan_ray.config.players import BUILT_IN_ADVERSARIES
from cpgan_ray.config.schema import NAME
from cpgan_ray.errors import InputError

T = TypeVar("T")
C = TypeVar("C", Config, AttackJob)
WORDS = re.compile(r"^--adversaries(=|$)")
KIND = re.compile(r"^--adversaries\.([^.=]+)\.kind(?:=(.*))?$")


def take_adversaries(base: T, rest: list[str]) -> T:
    """Remove `--adversaries NAME[=COUNT] ...` and `--adversaries.NAME.kind KIND` from the arguments. Returns the configuration with
    these adversaries, whose other fields are then flags.

    Raises: InputError if no name or kind follows, or one is not valid.
    """
    owner: Any = base if hasattr(base, "adversaries") else getattr(base, "config", None)
    if not isinstance(getattr(owner, "adversaries", {}), Mapping):
        return base  # the benchmark's flag of this name, which has numbers
    words, kinds = take_words(rest), take_kinds(rest)
    if not words and not kinds:
        return base
    if not hasattr(owner, "adversaries"):
        flag = "--adversaries" if words else f"--adversaries.{next(iter(kinds))}.kind"
        raise InputError(f"{flag} is a flag of trainings only: leave it out")
    changed: Any = choose_adversaries(owner, words=words, kinds=kinds)
    return changed if owner is base else dataclasses.replace(base, config=changed)  # pyright: ignore[reportArgumentType, reportCallIssue]


def take_words(rest: list[str]) -> list[str]:
    """Remove `--adversaries NAME[=COUNT] ...` from the arguments and return the words; the last one counts.

    Raises: InputError if no name follows.
    """
    words: list[str] = []
    while (at := next((i for i, argument in enumerate(rest) if WORDS.match(argument)), None)) is not None:
        _, equals, first = rest.pop(at).partition("=")
        words = [first] if equals else []
        while at < len(rest) and not rest[at].startswith("-"):
            words.append(rest.pop(at))
        if not any(words):
            raise InputError("--adversaries needs names, each with how many if not one, such as --adversaries ridge rbf decoder=4")
    return words


def take_kinds(rest: list[str]) -> dict[str, str]:
    """Remove `--adversaries.NAME.kind KIND` from the arguments and return the kinds by name.

    Raises: InputError if no kind follows, or the name is impossible.
    """
    kinds: dict[str, str] = {}
    i = 0
    while i < len(rest):
        if (match := KIND.match(rest[i])) is None:
            i += 1
            continue
        name, kind = match.groups()
        if kind is None:
            if i + 1 == len(rest) or rest[i + 1].startswith("--"):
                raise InputError(f"{rest[i]} needs a kind: {', '.join(BUILT_IN_ADVERSARIES)}, or FILE.py:NAME")
            kind = rest.pop(i + 1)
        if not re.fullmatch(NAME, name):
            raise InputError(f"{rest[i]}: {name!r} cannot be the name of an adversary: use 1 to 60 letters, digits or any of _+-")
        kinds[name] = kind
        del rest[i]
    return kinds


def absolute_parts(config: C) -> C:
    """The configuration with absolute paths in the names of its parts, because other processes have other working directories."""
    data = dataclasses.replace(config.data, dataset=absolute_name(config.data.dataset))
    folder = config.attacks.attacker_data
    attacks = dataclasses.replace(
        config.attacks,
        names=tuple(map(absolute_name, config.attacks.names)),
        attacker_data=None if folder is None else folder.expanduser().resolve(),
    )
    config = dataclasses.replace(config, data=data, attacks=attacks)
    if isinstance(config, AttackJob):
        return dataclasses.replace(config, dataset=None if config.dataset is None else absolute_name(config.dataset))
    p = config.privatizer
    return dataclasses.replace(
        config,
        privatizer=dataclasses.replace(p, family=absolute_name(p.family), weights=absolute_file(p.weights)),
        utility=absolute_teachers(dataclasses.replace(config.utility, family=absolute_name(config.utility.family))),
        adversaries={
            name: dataclasses.replace(a, kind=absolute_name(a.kind)) if isinstance(a, OwnConfig) else a
            for name, a in config.adversaries.items()
        },
    )


def absolute_teachers(utility: UtilityConfig) -> UtilityConfig:
    """The settings with absolute paths of the teachers; URIs stay as they are."""
    teachers = tuple(name if "://" in name else absolute_path(name) for name in utility.teachers)
    return dataclasses.replace(utility, teachers=teachers, teacher_answers=absolute_file(utility.teacher_answers))


def absolute_file(file: str | None) -> str | None:
    """A file, with its digest if it has one, as an absolute path."""
    if file is None:
        return None
    path, at, digest = file.partition("@")
    return f"{absolute_path(path)}{at}{digest}"


def absolute_search_space(job: SearchJob) -> SearchJob:
    """The search with absolute paths in the names of parts that it tries."""
    space = []
    for text in job.search_space:
        field, equals, values = text.partition("=")
        names = ",".join(map(absolute_name, values.split(","))) if field.endswith((".family", ".kind")) else values
        space.append(field + equals + names)
    return dataclasses.replace(job, search_space=tuple(space))


def absolute_mechanisms(job: ReproduceJob) -> ReproduceJob:
    """The comparison with absolute paths in the names of its mechanisms."""
    return dataclasses.replace(job, mechanisms=tuple(map(absolute_name, job.mechanisms)))

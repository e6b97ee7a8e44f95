"""Flags that select parts: names become absolute, and `--adversaries.NAME.kind` adds an adversary."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from cpgan_ray.common.plugins.names import absolute_name, absolute_path
from cpgan_ray.config import AdversaryConfig, AttackJob, Config, OwnConfig, ReproduceJob, SearchJob, UtilityConfig
from cpgan_ray.config.players import BUILT_IN_ADVERSARIES
from cpgan_ray.config.schema import NAME
from cpgan_ray.errors import InputError

T = TypeVar("T")
C = TypeVar("C", Config, AttackJob)
KIND = re.compile(r"^--adversaries\.([^.=]+)\.kind(?:=(.*))?$")


def take_adversaries(base: T, rest: list[str]) -> T:
    """Remove `--adversaries.NAME.kind KIND` from the arguments. Returns the configuration with a new adversary of that kind, whose
    other fields are then flags; one that already has this kind stays as it is.

    Raises: InputError if no kind follows, or the name is impossible.
    """
    chosen: dict[str, str] = {}
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
        chosen[name] = kind
        del rest[i]
    if not chosen:
        return base
    owner: Any = base if hasattr(base, "adversaries") else getattr(base, "config", None)
    if not hasattr(owner, "adversaries"):
        raise InputError(f"--adversaries.{next(iter(chosen))}.kind is a flag of trainings only: leave it out")
    changed = dataclasses.replace(owner, adversaries=with_kinds(owner.adversaries, chosen))
    return changed if owner is base else dataclasses.replace(base, config=changed)  # pyright: ignore[reportArgumentType, reportCallIssue]


def with_kinds(adversaries: Mapping[str, AdversaryConfig], kinds: Mapping[str, str]) -> dict[str, AdversaryConfig]:
    """The adversaries, with new ones of the given kinds."""
    result = dict(adversaries)
    for name, kind in kinds.items():
        if name not in result or result[name].kind != kind:
            result[name] = BUILT_IN_ADVERSARIES[kind]() if kind in BUILT_IN_ADVERSARIES else OwnConfig(kind=absolute_name(kind))
    return result


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

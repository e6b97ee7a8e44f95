"""Configurations to and from JSON and dotted field names, and without the local fields of another user."""

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from cpgan_ray.config.constraints import requirement
from cpgan_ray.config.marks import LOCAL
from cpgan_ray.config.schema import Config
from cpgan_ray.errors import InputError


@cache
def adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """The adapter of a configuration class; made once because that takes fifty times as long as using it."""
    return TypeAdapter(kind)


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as JSON-ready values; `from_json` reads a Config back."""
    return adapter(type(config)).dump_python(config, mode="json")


T = TypeVar("T")


def from_json(values: Any, *, kind: type[T] = Config) -> T:
    """The configuration in the values of a `config.json`.

    Raises: InputError naming the first field that does not fit.
    """
    try:
        return adapter(kind).validate_python(values)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where, got = ".".join(str(part) for part in first["loc"]), repr(first["input"])
        if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
            raise InputError(f"config field {where}: {cause}" if where else str(cause)) from e
        if first["type"] == "unexpected_keyword_argument":
            raise InputError(f"config field {where} does not exist; it is {got[:60]}: remove it") from e
        raise InputError(f"config field {where} is {got[:60]}; it must be {requirement(first)}") from e


def flatten(config: Any) -> dict[str, Any]:
    """Dotted field name -> JSON-ready value, down to the settings of each adversary."""

    def walk(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in values.items():
            flat |= walk(f"{prefix}{name}.", value) if isinstance(value, dict) else {prefix + name: value}
        return flat

    return walk("", to_json(config))


def with_local(config: T, local: T) -> tuple[T, list[str]]:
    """The configuration with the LOCAL fields of `local`, and the dotted names of the LOCAL fields that differ."""
    changes: dict[str, Any] = {}
    ignored: list[str] = []
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        if name.startswith("__"):
            continue
        value, own = getattr(config, name), getattr(local, name)
        if LOCAL in getattr(hint, "__metadata__", ()):
            changes[name] = own
            ignored += _differences(name, value, own)
        elif is_dataclass(value):
            changes[name], inner = with_local(value, own)
            ignored += [f"{name}.{field}" for field in inner]
    return replace(config, **changes), ignored  # pyright: ignore[reportArgumentType, reportCallIssue]


@cache
def local_names(kind: type[Any]) -> tuple[str, ...]:
    """Dotted names of the LOCAL fields of a configuration class."""
    found: list[str] = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if LOCAL in getattr(hint, "__metadata__", ()):
            found.append(name)
        elif is_dataclass(hint) and isinstance(hint, type):
            found += [f"{name}.{inner}" for inner in local_names(hint)]
    return tuple(found)


def _differences(name: str, value: Any, own: Any) -> list[str]:
    if is_dataclass(value):
        return [f"{name}.{f.name}" for f in fields(value) if getattr(value, f.name) != getattr(own, f.name)]
    return [name] if value != own else []


def is_option(name: str, known: Mapping[str, Any]) -> bool:
    """Whether a dotted name is an option of a part (`privatizer.options.width`), or all of them (`privatizer.options`): the
    flattened configuration (`known`) has only those that are set."""
    section, dot, option = f"{name}.".partition(".options.")
    has_options = f"{section}.family" in known or f"{section}.kind" in known or section == "data"
    return bool(dot) and option.count(".") <= 1 and has_options


WEIGHTS = ("game.target_weights", "utility.label_weights")
"""Fields that name their weights: the flattened configuration has only those that are set."""


def is_weight(name: str, config: Config) -> bool:
    """Whether a dotted name is a weight that is set: of a target of the game, or of a label (`utility.label_weights.Male`)."""
    section, _, entry = name.partition("_weights.")
    weights = {"game.target": config.game.target_weights, "utility.label": config.utility.label_weights}
    return entry in weights.get(section, {})


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with fields replaced by dotted name: `override(config, {"adversaries.rbf.penalties": (1e-2,)})`.

    Raises: InputError for a name that does not exist, with the nearest ones, or a value that does not fit.
    """
    values = to_json(config)
    known = flatten(config)
    for name, value in changes.items():
        if name not in known and not is_option(name, known) and name not in WEIGHTS:
            near = difflib.get_close_matches(name, known, n=3) or sorted(known)
            raise InputError(f"config has no field {name!r}; nearest: {', '.join(near)}")
        *path, last = name.split(".")
        inner = values
        for part in path:
            inner = inner[part]
        inner[last] = value
    return from_json(values)

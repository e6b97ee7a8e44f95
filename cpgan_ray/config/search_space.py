"""What a search varies: dotted config fields, each between two bounds or among values. Imports neither torch nor Ray."""

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from cpgan_ray.common.json_files import parse_json
from cpgan_ray.common.plugins.names import is_code, stored_name
from cpgan_ray.config.io import flatten, is_option, is_weight, override
from cpgan_ray.config.marks import Choices, Range
from cpgan_ray.config.schema import Config
from cpgan_ray.errors import InputError

Setting = dict[str, Any]
"""Dotted config field -> value, of the fields searched."""
DIGITS = 3
"""Significant digits of a sampled number: few enough to type it again."""


WEIGHTS = Range(0.05, 2.0, (0.1, 0.3, 1.0))
"""Where a search looks for the weight of a target: where it also looks for the privacy weight."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One field that is searched: among `values`, or between `low` and `high` if there are none."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = True
    integer: bool = False

    def rounded(self, value: Any) -> Any:
        """A number between the bounds, rounded to `DIGITS` significant digits; one of the values unchanged."""
        if self.values:
            return value
        short = float(f"{value:.{DIGITS}g}")
        return round(value) if self.integer else min(max(short, self.low), self.high)

    def sample(self, rng: np.random.Generator) -> Any:
        """A random value."""
        if self.values:
            return self.values[rng.integers(len(self.values))]
        if self.log:
            return self.rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.rounded(rng.uniform(self.low, self.high))


def dimensions(over: Sequence[str], config: Config, *, grid: bool) -> list[Dimension]:
    """A dimension for each `field`, `field=1,2,3` or `field=0.1..10`. With `grid`, each has values, declared or given.

    Raises: InputError for a field that does not exist or cannot be searched, and for a value that does not fit it.
    """
    found = [dimension(text, config, grid=grid) for text in over]
    names = [d.name for d in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"over names {twice[0]} twice: name each field once")
    for d in found:
        for value in d.values or (d.low, d.high):
            override(config, {d.name: d.rounded(value)})
    return found


def dimension(text: str, config: Config, *, grid: bool) -> Dimension:
    name, given, where = text.partition("=")
    kind, declared = field_type(name, config)
    low, dots, high = where.partition("..")
    integer = kind is int or (kind is None and all(isinstance(value(v), int) for v in (low, high)))
    if dots:
        bounds = [number(v, text) for v in (low, high)]
        log = bounds[0] > 0 and (declared.log if isinstance(declared, Range) else bounds[1] / bounds[0] >= 10)
        if not bounds[0] < bounds[1]:
            raise InputError(f"over {text}: {low} is not below {high}")
        if grid:
            raise InputError(f"over {text}: a grid needs values, such as {name}={low},{high}")
        return Dimension(name=name, low=bounds[0], high=bounds[1], log=log, integer=integer)
    if given:
        return Dimension(name=name, values=tuple(value(v) for v in where.split(",")))
    if isinstance(declared, Choices):
        return Dimension(name=name, values=declared.values)
    if kind is bool or get_origin(kind) is Literal:
        return Dimension(name=name, values=(False, True) if kind is bool else get_args(kind))
    if declared is None:
        raise InputError(f"over {name}: config.py declares no range for it; give one, as in {name}=1,2,3 or {name}=0.1..10")
    if grid:
        return Dimension(name=name, values=tuple(round(v) if integer else v for v in declared.grid))
    return Dimension(name=name, low=declared.low, high=declared.high, log=declared.log, integer=integer)


def field_type(name: str, config: Config) -> tuple[Any, Range | Choices | None]:
    """Type of a field by its dotted name, and its declared range or choices; both None for an option of a part."""
    kept = ("seed", "preset", "output", "data_dir", "cache_dir", "shared_cache", "data.dataset", "data.digest")
    kept += ("privatizer.num_workers",)
    known = [n for n in flatten(config) if n not in kept]
    known = [n for n in known if not n.startswith(("runtime.", "tracking.", "attacks."))]
    if is_option(name, flatten(config)):
        return None, None
    if is_weight(name, config):
        return float, WEIGHTS
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or ("k", "privacy_weight")
        raise InputError(f"over {name}: no field of that name can be searched; nearest: {', '.join(near)}")
    inner: Any = config
    *path, last = name.split(".")
    for part in path:
        inner = inner[part] if isinstance(inner, Mapping) else getattr(inner, part)
    hint = get_type_hints(type(inner), include_extras=True)[last]
    kind, *extras = (hint.__origin__, *hint.__metadata__) if hasattr(hint, "__metadata__") else (hint,)
    return kind, next((e for e in extras if isinstance(e, Range | Choices)), None)


def number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as e:
        raise InputError(f"over {where}: {text!r} is no number") from e


def value(text: str) -> Any:
    """A number, true, false or null if the text is one, else the text."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def pairs(found: Sequence[Dimension]) -> list[Setting]:
    """Every pair of dimensions with every pair of their values, or a single dimension with each of its values. A dimension between
    bounds is represented by its bounds, and a whole number also by the number above the lower bound, whose parity differs."""
    settings = []
    for some in itertools.combinations(found, min(2, len(found))):
        settings += combinations([replace(d, values=d.values or ends(d)) for d in some])
    return settings


def ends(d: Dimension) -> tuple[Any, ...]:
    low, high = d.rounded(d.low), d.rounded(d.high)
    return tuple(dict.fromkeys((low, low + 1, high) if d.integer else (low, high)))


def combinations(found: Sequence[Dimension]) -> list[Setting]:
    """Every combination of the values of the dimensions; the last dimension varies fastest."""
    return [dict(zip((d.name for d in found), values, strict=True)) for values in itertools.product(*(d.values for d in found))]


def shown(setting: Mapping[str, Any], *, seed: int | None = None) -> str:
    """`k=64 privacy_weight=0.2 seed=0`."""
    parts = [f"{name}={v:g}" if isinstance(v, float) else f"{name}={short(v)}" for name, v in setting.items()]
    return " ".join([*parts, *([] if seed is None else [f"seed={seed}"])])


def short(value: Any) -> Any:
    """A name of code without its folder, because the text becomes the name of a folder; any other value unchanged."""
    return stored_name(value) if isinstance(value, str) and is_code(value) else value

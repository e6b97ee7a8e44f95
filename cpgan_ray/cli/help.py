"""The short `--help` of a job: what it does, its examples, and the flags that matter most. `--help-all` shows every flag, by
group."""

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
COMMON = {
    "--log-level LEVEL": "Least level of the lines on standard error: debug, info (default), warning or error.",
    "--help-all": "Show every flag, by group.",
}
RUN = ("data_dir", "output", "k", "privacy_weight", "epochs", "batch_size", "seed", "data.labels", "data.table", "data.image_size")
WHERE = ("runtime.backend", "tracking.uri")
TRAIN = (*RUN, "privatizer.quantization_step", "attacks.names", "runtime.adversary_gpus", *WHERE)
ATTACK = (
    "data_dir",
    "dataset",
    "output",
    "variant",
    "fail_above",
    "fail_above_linkage",
    "fail_above_attribute",
    "final",
    "against",
    "attacks.names",
    "encoder.command",
    "encoder.layout",
    "encoder.size",
    "encoder.stochastic",
    *WHERE,
)
EXPORT = ("output", "zip", "weights", "full", "eve", "twin", "register", "alias", "data_dir", *WHERE)
SERVE = ("host", "port", "replicas", "keys_file", "tls_cert", "tls_key", "behind_proxy", "retire_s", "demo")
SERVE += ("limits.rate", "limits.max_codes", "runtime.address")
SEARCH = ("search_space", "searcher", "num_samples", "num_seeds", "objectives", "time_budget", "max_r2")
SEARCH += ("min_accuracy", "max_multiply_adds", "max_concurrent")
REPRODUCE = ("mechanisms", "num_settings", "num_seeds", "objectives", "rounding", "calibrate", "grids", "final", "estimate")
REPRODUCE += ("full", "published", "theory")
OF_RUN = tuple(f"config.{name}" for name in ("data_dir", "output", "epochs", "seed", *WHERE))
"""Which fields `--help` shows, by job: dotted names."""
CHECK = {"--check": "Read the data, print what they hold and what would be trained, draw a contact sheet, and train nothing."}
SEEDS = {"--seeds N": "Train N times, under the seeds from --seed on, and give means with intervals over seeds and people."}
ADVERSARIES = {"--adversaries NAME[=COUNT] ...": "Which adversaries play, and how many of each: ridge rbf mlp=2 decoder=4."}
RESUME = {"--resume FOLDER": "Continue in the folder of an interrupted job.", "--trust": "Use files that another user has written."}
MAX_TEXT = 200
"""Characters of a field's documentation that are shown whole; of a longer one the first sentence."""
INDENT = 28
"""Column at which the description of a flag starts."""


def short_help(base: Any, *, call: str, usage: str, fields: Sequence[str], more: Mapping[str, str] | None = None) -> str:
    """The text of `--help`.

    base: the configuration whose values are the defaults; call: the shape of the command line; usage: what the job does, with
    examples; fields: dotted names of the fields to show; more: further flags, each with its description.
    """
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [f"usage: {call}", "", usage.strip(), "", "Main flags:"]
    for flag, text in [*(_described(base, name) for name in fields), *{**(more or {}), **COMMON}.items()]:
        lines += _entry(flag, text, width)
    return "\n".join(lines)


def _described(base: Any, name: str) -> tuple[str, str]:
    """A field as a flag with the kind of its value, and its documentation, with its default."""
    owner = base
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    documented = {p.arg_name: p.description or "" for p in docstring_parser.parse_from_object(_declaring(type(owner), last)).params}
    text = " ".join(documented.get(last, "").split())
    text = text if len(text) <= MAX_TEXT else re.split(r"(?<=\.)\s", text, maxsplit=1)[0]
    hint, value = get_type_hints(type(owner), include_extras=True)[last], getattr(owner, last)
    flag = "--" + ".".join([*path, last]).replace("_", "-").removeprefix("config.")
    if value in (None, (), "") or isinstance(value, bool):
        shown = ""
    else:
        shown = f" (default: {' '.join(map(str, value)) if isinstance(value, tuple) else value})"
    return f"{flag}{_placeholder(hint)}", text + shown


def _declaring(kind: type[Any], field: str) -> type[Any]:
    """The class whose body declares a field: the text next to it documents it."""
    return next(c for c in kind.__mro__ if dataclasses.is_dataclass(c) and field in vars(c).get("__annotations__", {}))


def _placeholder(hint: Any) -> str:
    """What stands for the value of a flag."""
    if get_origin(hint) is Annotated:
        return _placeholder(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return " {" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        return f"{_placeholder(get_args(hint)[0])} ..."
    options = [part for part in get_args(hint) if part is not type(None)] or [hint]
    if bool in options:
        return ""
    return " " + {"Path": "DIR", "str": "TEXT", "int": "N", "float": "NUMBER"}.get(
        getattr(options[-1], "__name__", ""), _placeholder(options[0]).strip() if options != [hint] else "VALUE"
    )


def _entry(flag: str, text: str, width: int) -> list[str]:
    """A flag and its description, the latter in a column of its own."""
    body = textwrap.wrap(text, max(width - INDENT, 20)) or [""]
    first = f"  {flag:{INDENT - 3}} {body[0]}" if len(flag) <= INDENT - 3 else f"  {flag}"
    rest = body[1:] if len(flag) <= INDENT - 3 else body
    return [first, *(" " * INDENT + line for line in rest)]

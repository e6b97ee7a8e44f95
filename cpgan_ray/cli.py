"""From a command line to a configuration, and from an error to one line and an exit status. Imports neither torch nor Ray."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from cpgan_ray.config import Config, flatten
from cpgan_ray.errors import InputError
from cpgan_ray.presets import PRESETS, preset

BAD_INPUT, FAILED = 2, 1


def parse(arguments: Sequence[str], *, default: str, description: str) -> Config:
    """`[PRESET] [--any.config.field VALUE ...]` to a configuration.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    rest = list(arguments)
    name = rest.pop(0) if rest and not rest[0].startswith("-") else default
    base = preset(name)
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)} (default {default}). Values shown are those of {name}."
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config, unknown = tyro.cli(
                Annotated[Config, tyro.conf.AvoidSubcommands],  # pyright: ignore[reportArgumentType]
                default=base,
                args=rest,
                description=usage,
                return_unknown_args=True,
            )
    except SystemExit as e:
        if not e.code:
            raise
        raise InputError(one_line(said.getvalue())) from e
    if unknown:
        flags = ["--" + field.replace("_", "-") for field in flatten(config)]
        near = difflib.get_close_matches(unknown[0], flags, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all flags"
        raise InputError(f"unknown flag or value {unknown[0]!r}: {hint}")
    if config.data_dir is not None and config.data.dataset == "faces":
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="celeba"))
    return absolute(config)


def one_line(box: str) -> str:
    """The message of the box that tyro draws: without its frame, heading and pointers to help."""
    text = " ".join(re.sub(r"[^\x20-\x7e]", " ", box).split())
    text = re.split(r" Argument helptext:| For full helptext", text)[0]
    return re.sub(r"^(Value error|Parsing error) |Error parsing (Config: )?", "", text)


def absolute(config: Config) -> Config:
    """The same with absolute paths: a Ray actor has another working directory."""
    paths = {n: getattr(config, n) for n in ("data_dir", "cache_dir", "output")}
    resolved: dict[str, Any] = {name: path.expanduser().resolve() for name, path in paths.items() if path is not None}
    if config.tracking.undefended is not None:
        undefended = config.tracking.undefended.expanduser().resolve()
        resolved["tracking"] = dataclasses.replace(config.tracking, undefended=undefended)
    return dataclasses.replace(config, **resolved)


def stop_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit(143), so that runs are closed. Call after `ray.init`, which installs a handler of its own."""

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)


def run(job: Callable[[], None]) -> None:
    """Run a job and end the process: 0, 2 after one line for bad input, 130 when interrupted; other errors end it with 1.

    Before torch is imported, its threads are told to sleep while they wait: spinning ones cost others several times their time. The
    processes of a local Ray inherit that.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        job()
    except InputError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)

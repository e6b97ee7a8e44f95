"""From a command line to a configuration, and from an error to one line and an exit status. Imports neither torch nor Ray."""

import contextlib
import dataclasses
import difflib
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from cpgan_ray.config import AttackJob, Config, flatten, from_json
from cpgan_ray.errors import InputError
from cpgan_ray.presets import PRESETS, preset

BAD_INPUT, FAILED = 2, 1
STOPPED = threading.Event()
"""Set when SIGTERM came: a blocking call of Ray that it interrupts makes a SystemExit(1) of any other."""


def parse(arguments: Sequence[str], *, default: str, description: str) -> Config:
    """`[PRESET] [--any.config.field VALUE ...]` to a configuration.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    rest = list(arguments)
    name = rest.pop(0) if rest and not rest[0].startswith("-") else default
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)} (default {default}). Values shown are those of {name}."
    config = read_flags(Config, preset(name), rest, usage=usage)
    if config.data_dir is not None and config.data.dataset == "faces":
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="celeba"))
    return absolute(config)


@dataclasses.dataclass(frozen=True)
class Target:
    """What `jobs/attack.py` attacks: a run, or an encoder's file alone."""

    name: str
    program: Path  # the encoder's file
    folder: Path | None = None  # the run's output folder, or what MLflow has of it
    config: Config | None = None  # the run's
    run_id: str | None = None
    kept: bool = False  # whether `folder` stays: what MLflow has is downloaded to a temporary one


def parse_attack(arguments: Sequence[str], *, description: str) -> tuple[Target, AttackJob]:
    """`TARGET [--flag VALUE ...]`; the flags' values are the run's where the target is one.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    rest = list(arguments)
    if not rest or (rest[0].startswith("-") and not {"-h", "--help"} & set(rest)):
        raise InputError("nothing to attack: give a run's output folder, an MLflow run id, or an encoder file (.pt2, .onnx)")
    target = None if rest[0].startswith("-") else find_target(rest.pop(0))
    base = AttackJob()
    if target is not None and (c := target.config) is not None:
        same = ("data_dir", "cache_dir", "seed", "skip_corrupt", "data", "attacks", "runtime", "tracking")
        base = dataclasses.replace(base, **{name: getattr(c, name) for name in same})
        base = dataclasses.replace(base, tracking=dataclasses.replace(base.tracking, run_name=None))
    job = absolute(read_flags(AttackJob, base, rest, usage=description))
    if target is None:  # --help has ended the process
        raise InputError("nothing to attack")
    if job.dataset is None and job.data_dir is not None and job.data.dataset == "faces":
        job = dataclasses.replace(job, dataset="celeba")
    return target, job


def find_target(name: str) -> Target:
    """Raises: InputError where it is no finished run's folder, no MLflow run and no file."""
    path = Path(name).expanduser().resolve()
    if path.is_dir():
        return dataclasses.replace(run_target(path, name=path.name), kept=True)
    if path.is_file():
        return Target(path.name, path)
    if re.fullmatch(r"[0-9a-f]{32}", name):
        from cpgan_ray.tracking import fetch_run

        return run_target(fetch_run(name), name=name)
    raise InputError(f"{name} is no folder, no file and no MLflow run id: give a run's output folder or an encoder (.pt2, .onnx)")


def run_target(folder: Path, *, name: str) -> Target:
    """Raises: InputError where the folder is not a finished run's."""
    for needed in ("config.json", "privatizer.pt2"):
        if not (folder / needed).is_file():
            raise InputError(f"{folder} has no {needed}: give the output folder of a finished run")
    try:
        values = json.loads((folder / "config.json").read_text())
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        run_id = values.pop("run_id", None)
        values.pop("store", None)
    except ValueError as e:
        raise InputError(f"{folder / 'config.json'} is damaged ({e}): give the output folder of a finished run") from e
    return Target(name, folder / "privatizer.pt2", folder, from_json(values), run_id)


T = TypeVar("T")


def read_flags(kind: type[T], base: T, rest: Sequence[str], *, usage: str) -> T:
    """`--any.field VALUE ...` on top of `base`.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            read, unknown = tyro.cli(  # pyright: ignore[reportCallIssue]
                Annotated[kind, tyro.conf.AvoidSubcommands],  # pyright: ignore
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
        flags = ["--" + field.replace("_", "-") for field in flatten(read)]
        near = difflib.get_close_matches(unknown[0], flags, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all flags"
        raise InputError(f"unknown flag or value {unknown[0]!r}: {hint}")
    return read


def one_line(box: str) -> str:
    """The message of the box that tyro draws: without its frame, heading and pointers to help."""
    text = " ".join(re.sub(r"[^\x20-\x7e]", " ", box).split())
    text = re.split(r" Argument helptext:| For full helptext", text)[0]
    return re.sub(r"^(Value error|Parsing error) |Error parsing ((Config|AttackJob): )?", "", text)


C = TypeVar("C", Config, AttackJob)


def absolute(config: C) -> C:
    """The same with absolute paths: a Ray actor has another working directory."""
    paths = {n: getattr(config, n, None) for n in ("data_dir", "cache_dir", "output", "against")}
    resolved: dict[str, Any] = {name: path.expanduser().resolve() for name, path in paths.items() if path is not None}
    if config.tracking.undefended is not None:
        undefended = config.tracking.undefended.expanduser().resolve()
        resolved["tracking"] = dataclasses.replace(config.tracking, undefended=undefended)
    return dataclasses.replace(config, **resolved)


def stop_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit(143), so that runs are closed. Call after `ray.init`, which installs a handler of its own."""

    def stop(*_: object) -> None:
        STOPPED.set()
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
    except SystemExit:
        if STOPPED.is_set():
            sys.exit(128 + signal.SIGTERM)
        raise

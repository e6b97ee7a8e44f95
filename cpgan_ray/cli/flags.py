"""Flags: functions that the command lines of all jobs share."""

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from cpgan_ray.cli.help import HELP, HELP_ALL, short_help
from cpgan_ray.cli.parts import absolute_parts, take_adversaries
from cpgan_ray.common.credentials import move_to_env
from cpgan_ray.config import AttackJob, Config, ExportJob, flatten
from cpgan_ray.errors import InputError

T = TypeVar("T")
C = TypeVar("C", Config, AttackJob, ExportJob)


def read_flags(
    kind: type[T],
    base: T,
    rest: Sequence[str],
    *,
    usage: str,
    call: str = "",
    main: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
) -> T:
    """Parse `--any.field VALUE ...` on top of `base`. Credentials in a URI are moved to the environment, so that no configuration
    contains them.

    call, main, more: the shape of the command line, the fields and the further flags that a short `--help` shows; without `main` it
    shows all.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    if any(argument.partition("=")[0] == "--preset" for argument in rest):
        raise InputError("--preset is not a flag: the preset is the first word, as in `train_celeba.py celeba --k 64`")
    rest = list(rest)
    base = take_adversaries(base, rest)
    if main and set(HELP) & set(rest):
        print(short_help(base, call=call, usage=usage, fields=main, more=more))
        raise SystemExit(0)
    stderr, rest = io.StringIO(), [NEGATED.sub(r"--\1.no-\2", argument) for argument in without_credentials(rest)]
    rest = ["--help" if argument == HELP_ALL else argument for argument in rest]
    try:
        with contextlib.redirect_stderr(stderr):
            parsed, unknown = tyro.cli(  # pyright: ignore[reportCallIssue]
                Annotated[kind, tyro.conf.AvoidSubcommands],  # pyright: ignore
                default=base,
                args=rest,
                description=usage,
                return_unknown_args=True,
            )
    except SystemExit as e:
        if not e.code:
            raise
        raise InputError(one_line(stderr.getvalue())) from e
    if "--trust" in unknown:
        raise InputError("--trust needs a folder that is read: use it with --resume, or with a run to attack")
    if unknown:
        flags = ["--" + field.removeprefix("config.").replace("_", "-") for field in flatten(parsed)]
        similar = difflib.get_close_matches(unknown[0], flags, n=3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "--help-all lists all flags"
        raise InputError(f"unknown flag or value {unknown[0]!r}: {hint}")
    return parsed


COMMAND = "--encoder.command"


def without_credentials(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the credentials of their URIs moved to the environment. A command stays as it is: it is a program of the
    user's own, which may need what is in it."""
    is_command = [
        argument.startswith(f"{COMMAND}=") or previous == COMMAND
        for previous, argument in zip(["", *arguments], arguments, strict=False)
    ]
    return [a if command else move_to_env(a) for a, command in zip(arguments, is_command, strict=True)]


NEGATED = re.compile(r"^--no-([\w.-]+)\.([\w-]+)$")
"""`--no-attacks.identity`, which is read as `--attacks.no-identity`."""
FLAG = r"'?(--[\w.-]+)'?"
REWORDED = (
    (rf"Invalid choice invalid choice (.*?) for argument {FLAG}\. Expected one of \((.*?),?\)\.?", r"\2 is \1; choose from \3"),
    (rf"Missing argument Missing value for argument {FLAG}\..*", r"\1 needs a value"),
    (rf"{FLAG}: invalid literal for int\(\) with base 10: ('.*?')", r"\1 is \2; it must be a whole number"),
    (rf"{FLAG}: could not convert string to float: ('.*?')", r"\1 is \2; it must be a number"),
    (
        rf"{FLAG}: no type matching \{{None\}}\|\{{INT INT\}} could be instantiated from \[(.*?)\]\..*",
        r"\1 is \2; it must be two whole numbers",
    ),
    (
        rf"{FLAG}: no type matching \{{None\}}\|\{{FLOAT FLOAT\}} could be instantiated from \[(.*?)\]\..*",
        r"\1 is \2; it must be two numbers",
    ),
    (rf"{FLAG}: no type matching \{{None\}}\|FLOAT \w.* from \[(.*?)\]\..*", r"\1 is \2; it must be a number or None"),
    (rf"{FLAG}: no type matching (\S+) could be instantiated from \[(.*?)\]\..*", r"\1 is \3; it must be \2"),
    (rf"{FLAG}: Could not find valid parse for arguments: \[(.*?)\].*", r"\1 is \2, which is not valid: see --help"),
)
"""Patterns of tyro's error messages, and our wording of them."""


def one_line(box: str) -> str:
    """The error message in tyro's box, on one line, without the frame, the heading and the references to help."""
    text = " ".join(re.sub(r"[^\x20-\x7e]", " ", box).split())
    text = re.split(r" Argument helptext:| For full helptext", text)[0]
    for pattern, wording in REWORDED:
        text = re.sub(pattern, wording, text)
    text = re.sub(
        r"^(Value error|Parsing error) |"
        r"Error parsing ((Config|AttackJob|ExportJob|SearchFlags|FrontierJob|ReproduceFlags|ServeJob|Settings): )?",
        "",
        text,
    )
    return re.sub(r"^([\w.]+): (?=\1\.)", "", text)  # "encoder: encoder.mean is ..."


def take_resume(rest: list[str]) -> Path | None:
    """Remove `--resume FOLDER` from the arguments and return the folder; None if it is absent.

    Raises: InputError if no folder follows it.
    """
    for i, argument in enumerate(rest):
        flag, equals, value = argument.partition("=")
        if flag == "--resume":
            if not equals and (i + 1 == len(rest) or rest[i + 1].startswith("-")):
                raise InputError("--resume needs the folder of an interrupted run or search")
            value = value if equals else rest.pop(i + 1)
            del rest[i]
            return Path(value).expanduser().resolve()
    return None


def take_trust(rest: list[str]) -> bool:
    """Remove `--trust` from the arguments and return whether it was there: the folder that is read counts as the user's own, even
    if another user has written its files."""
    trust = "--trust" in rest
    rest[:] = [argument for argument in rest if argument != "--trust"]
    return trust


def take_check(rest: list[str]) -> bool:
    """Remove `--check` from the arguments and return whether it was there: the data are only read and described.

    Raises: InputError if a run is resumed, or if there are several.
    """
    check = "--check" in rest
    for flag in ("--resume", "--seeds"):
        if check and any(argument.partition("=")[0] == flag for argument in rest):
            raise InputError(f"--check reads the data of one new run: leave out {flag}")
    rest[:] = [argument for argument in rest if argument != "--check"]
    return check


def ensure_same_settings(job: Any, original: Any, *, ignore: tuple[str, ...], subject: str, remedy: str) -> None:
    """Check that a job that resumes has its original settings. Fields whose names start with one of `ignore` may differ.

    subject: the work that is resumed, for the message; remedy: the end of the message.

    Raises: InputError with the flag of the first field that differs, and both values.
    """
    now, before = flatten(job), flatten(original)
    for name in {**now, **before}:
        if now.get(name) != before.get(name) and not name.startswith(ignore):
            flag = "--" + name.removeprefix("config.").replace("_", "-")
            raise InputError(f"{flag} is {now.get(name)!r}, but {subject} was started with {before.get(name)!r}: {remedy}")


def with_dataset(config: Config) -> Config:
    """The configuration with data set `celeba`, if a data folder but no other data set is given."""
    if config.data_dir is None or config.data.dataset != "faces":
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="celeba"))


def absolute(config: C) -> C:
    """The same with absolute paths, because a Ray actor has another working directory. A cache folder with `~` or `$` stays as it
    is, because each node expands it."""
    paths = {n: getattr(config, n, None) for n in ("data_dir", "cache_dir", "shared_cache", "output", "against", "twin")}
    if config.cache_dir is not None and (str(config.cache_dir).startswith("~") or "$" in str(config.cache_dir)):
        del paths["cache_dir"]
    resolved: dict[str, Any] = {n: path.expanduser().resolve() for n, path in paths.items() if isinstance(path, Path)}
    if config.tracking.undefended is not None:
        undefended = config.tracking.undefended.expanduser().resolve()
        resolved["tracking"] = dataclasses.replace(config.tracking, undefended=undefended)
    moved = dataclasses.replace(config, **resolved)
    return moved if isinstance(moved, ExportJob) else absolute_parts(moved)

"""From a command line to a configuration, and from an error to one line and an exit status. Imports neither torch nor Ray."""

import contextlib
import dataclasses
import difflib
import io
import json
import os
import re
import select
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from cpgan_ray.config import AttackJob, Config, ReproduceJob, SearchJob, flatten, from_json
from cpgan_ray.credentials import redacted, taken
from cpgan_ray.errors import InputError
from cpgan_ray.presets import PRESETS, for_comparison, for_search, preset

BAD_INPUT, FAILED = 2, 1
POLITE_S = 30
"""How long a run that was asked to stop may need to end the rounds under way, write a checkpoint and close its MLflow run."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable by which a process knows that it is the entrypoint of a Ray job."""
STOPPED = threading.Event()
"""Set when SIGTERM came: a blocking call of Ray that it interrupts makes a SystemExit(1) of any other."""


def parse(arguments: Sequence[str], *, default: str, description: str) -> Config:
    """`[PRESET] [--any.config.field VALUE ...]` to a configuration.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    return parse_train(arguments, default=default, description=description)[0]


ADJUSTABLE = ("epochs", "output", "runtime.", "recovery.", "attacks.", "tracking.")
"""Fields that a run may be resumed with another value of: they do not alter what was played."""


def parse_train(arguments: Sequence[str], *, default: str, description: str) -> tuple[Config, str | None]:
    """The same, or `--resume DIR [--flag VALUE ...]`: then also the MLflow run that goes on.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    rest = list(arguments)
    folder = take_resume(rest)
    if folder is not None:
        begun, run_id = interrupted_run(folder)
        config = absolute(read_flags(Config, begun, rest, usage=description))
        if changed := differing(flatten(config), flatten(begun), but=ADJUSTABLE):
            name, now, before = changed
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{flag} is {now!r}, the run in {folder} was begun with {before!r}: leave it out, or begin another run"
            )
        return config, run_id
    name = rest.pop(0) if rest and not rest[0].startswith("-") else default
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)} (default {default}). Values shown are those of {name}."
    return absolute(with_dataset(read_flags(Config, preset(name), rest, usage=usage))), None


def differing(now: Mapping[str, Any], before: Mapping[str, Any], *, but: tuple[str, ...]) -> tuple[str, Any, Any] | None:
    """The first field, with both values, that is not the same; those whose names begin as in `but` may differ."""
    names = [name for name in {**now, **before} if now.get(name) != before.get(name) and not name.startswith(but)]
    return (names[0], now.get(names[0]), before.get(names[0])) if names else None


def interrupted_run(folder: Path) -> tuple[Config, str]:
    """Configuration and MLflow run of an output folder whose run has not come to its end.

    Raises: InputError where it is no run's folder, or the run has ended.
    """
    config, run_id = read_run(folder)
    if (folder / "report" / "report.json").is_file():
        raise InputError(f"the run in {folder} has come to its end: there is nothing to resume")
    if run_id is None:
        raise InputError(f"{folder / 'config.json'} names no MLflow run: begin the run again in another --output")
    return dataclasses.replace(config, output=folder), run_id


def with_dataset(config: Config) -> Config:
    """A data folder implies the CelebA layout."""
    if config.data_dir is None or config.data.dataset != "faces":
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="celeba"))


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
        same = ("data_dir", "cache_dir", "shared_cache", "seed", "skip_corrupt", "data", "attacks", "runtime", "tracking")
        base = dataclasses.replace(base, **{name: getattr(c, name) for name in same})
        base = dataclasses.replace(base, tracking=dataclasses.replace(base.tracking, run_name=None))
    job = absolute(read_flags(AttackJob, base, rest, usage=description))
    if target is None:  # --help has ended the process
        raise InputError("nothing to attack")
    if job.dataset is None and job.data_dir is not None and job.data.dataset == "faces":
        job = dataclasses.replace(job, dataset="celeba")
    return target, job


SEARCH = "search.json"
"""What a search's folder holds from its start on: its job, and its MLflow run."""
RESUMABLE = ("max_r2", "min_accuracy", "max_failures")
"""Flags that may differ from those a search was begun with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchFlags(SearchJob):
    """A SearchJob whose run's fields are flags without a prefix."""

    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


def parse_search(arguments: Sequence[str], *, description: str) -> tuple[SearchJob, bool]:
    """`[PRESET] [--flag VALUE ...]`, or `--resume DIR [--flag VALUE ...]`; and whether it is the latter.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    rest = list(arguments)
    folder = take_resume(rest)
    if folder is not None:
        begun, _ = read_search(folder)
        job = read_job(begun, rest, description)
        if changed := differing(flatten(job), flatten(begun), but=RESUMABLE):
            name, now, before = changed
            flag = "--" + name.removeprefix("config.").replace("_", "-")
            raise InputError(f"{flag} is {now!r}, the search in {folder} was begun with {before!r}: leave it out")
        return job, True
    name = rest.pop(0) if rest and not rest[0].startswith("-") else "faces"
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)} (default faces). Values shown are those of {name}."
    job = read_job(SearchJob(config=for_search(preset(name))), rest, usage)
    return dataclasses.replace(job, config=absolute(with_dataset(job.config))), False


def read_job(base: SearchJob, rest: Sequence[str], usage: str) -> SearchJob:
    return SearchJob(**vars(read_flags(SearchFlags, SearchFlags(**vars(base)), rest, usage=usage)))


def take_resume(rest: list[str]) -> Path | None:
    """Take `--resume DIR` out of the arguments.

    Raises: InputError where no folder follows it.
    """
    for i, argument in enumerate(rest):
        flag, equals, value = argument.partition("=")
        if flag == "--resume":
            if not equals and (i + 1 == len(rest) or rest[i + 1].startswith("-")):
                raise InputError("--resume needs a folder: that of an interrupted run or search")
            value = value if equals else rest.pop(i + 1)
            del rest[i]
            return Path(value).expanduser().resolve()
    return None


def read_search(folder: Path) -> tuple[SearchJob, str]:
    """The job of a search's folder, and the id of its MLflow run.

    Raises: InputError where the folder is not a search's, or has been moved.
    """
    path = folder / SEARCH
    if not path.is_file():
        raise InputError(f"{folder} has no {SEARCH}: give the output folder of a search")
    try:
        values = json.loads(path.read_text())
        run_id = str(values["run_id"])
        job = from_json(values["job"], kind=SearchJob)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise InputError(f"{path} is damaged ({e}): start the search again in another folder") from e
    if job.config.output != folder:
        raise InputError(f"the search in {folder} was begun in {job.config.output}: move it back there to go on with it")
    return job, run_id


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierJob:
    """What `jobs/frontier.py` is told."""

    experiments: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="EXPERIMENT...")]] = ()
    """MLflow experiments by name, or searches by the id of their MLflow run; each has a front of its own."""
    output: Path | None = None
    """Where `frontier.png`, `.json` and `.csv` go; none given: `outputs/frontier-<time>`."""
    max_r2: float | None = None
    """Recommend the setting of the best accuracy whose strongest R2 is at most this."""
    min_accuracy: float | None = None
    """Recommend the most private setting whose accuracy is at least this."""
    tracking_uri: str | None = None
    """Tracking store; none given: MLFLOW_TRACKING_URI, or `outputs/mlflow.db` (SQLite)."""

    def __post_init__(self) -> None:
        for name in ("max_r2", "min_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value!r}; it must be between 0 and 1")


def parse_frontier(arguments: Sequence[str], *, description: str) -> FrontierJob:
    """`EXPERIMENT... [--flag VALUE ...]`.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    job = read_flags(FrontierJob, FrontierJob(), arguments, usage=description)
    if not job.experiments:
        raise InputError("nothing to draw: give MLflow experiments by name, or the MLflow run id of a search")
    return dataclasses.replace(job, output=job.output and job.output.expanduser().resolve())


REPRODUCTION = "reproduction.json"
"""What a comparison's folder holds from its start on: its job, and its MLflow run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceFlags(ReproduceJob):
    """A ReproduceJob whose run's fields are flags without a prefix."""

    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


EXTENDABLE = ("mechanisms", "settings", "seeds", "weights", "published", "config.runtime.")
"""Fields that a comparison may be resumed with another value of: which cells there are, not what a cell is."""


def parse_reproduce(arguments: Sequence[str], *, description: str) -> tuple[ReproduceJob, bool]:
    """`DATASET [--flag VALUE ...]`, or `--resume DIR [--flag VALUE ...]`; and whether it is the latter.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    rest = list(arguments)
    folder = take_resume(rest)
    if folder is not None:
        begun = read_reproduction(folder)[0]
        job = ReproduceJob(**vars(read_flags(ReproduceFlags, ReproduceFlags(**vars(begun)), rest, usage=description)))
        if changed := differing(flatten(job), flatten(begun), but=EXTENDABLE):
            name, now, before = changed
            flag = "--" + name.removeprefix("config.").replace("_", "-")
            raise InputError(
                f"{flag} is {now!r}, the comparison in {folder} was begun with {before!r}: leave it out, or begin another one"
            )
        return settled_paths(job), True
    if not rest or (rest[0].startswith("-") and not {"-h", "--help"} & set(rest)):
        raise InputError(f"nothing to reproduce: give a data set's preset, one of {', '.join(PRESETS)}")
    name = "digits" if rest[0].startswith("-") else rest.pop(0)
    full = "--full" in rest
    base = preset(name) if full else for_comparison(preset(name))
    usage = f"{description}\n\nPresets: {', '.join(PRESETS)}. Values shown are those of {name}."
    job = ReproduceJob(**vars(read_flags(ReproduceFlags, ReproduceFlags(config=base), rest, usage=usage)))
    if job.theory and name != "gaussian":
        raise InputError(f"--theory of {name}: it is known of gaussian alone")
    return settled_paths(dataclasses.replace(job, config=with_dataset(job.config))), False


def settled_paths(job: ReproduceJob) -> ReproduceJob:
    """Its paths absolute."""
    published = job.published.expanduser().absolute() if job.published else None
    return dataclasses.replace(job, published=published, config=absolute(job.config))


def read_reproduction(folder: Path) -> tuple[ReproduceJob, str]:
    """The job of a comparison's folder, and the id of its MLflow run.

    Raises: InputError where the folder is not a comparison's, or has been moved.
    """
    path = folder / REPRODUCTION
    if not path.is_file():
        raise InputError(f"{folder} has no {REPRODUCTION}: give the output folder of a comparison")
    try:
        values = json.loads(path.read_text())
        job, run_id = from_json(values["job"], kind=ReproduceJob), str(values["run_id"])
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path} is damaged ({e}): start the comparison again in another folder") from e
    if job.config.output != folder:
        raise InputError(f"the comparison in {folder} was begun in {job.config.output}: move it back there to go on with it")
    return job, run_id


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
    config, run_id = read_run(folder)
    if not (folder / "privatizer.pt2").is_file():
        raise InputError(f"{folder} has no privatizer.pt2: give the output folder of a finished run")
    return Target(name, folder / "privatizer.pt2", folder, config, run_id)


def read_run(folder: Path) -> tuple[Config, str | None]:
    """What the `config.json` of a run's output folder says: the configuration, and the MLflow run.

    Raises: InputError where there is none, or it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json: give the output folder of a run")
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        run_id = values.pop("run_id", None)
        values.pop("store", None)
        if not (run_id is None or isinstance(run_id, str) and re.fullmatch(r"[\w-]{1,100}", run_id)):
            raise ValueError(f"run_id is {run_id!r:.60}")
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path} is damaged ({e}): give the output folder of a run") from e
    return from_json(values), run_id


T = TypeVar("T")


def read_flags(kind: type[T], base: T, rest: Sequence[str], *, usage: str) -> T:
    """`--any.field VALUE ...` on top of `base`; credentials in a URI go to the environment, so that no configuration holds any.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    said, rest = io.StringIO(), [taken(argument) for argument in rest]
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
        flags = ["--" + field.removeprefix("config.").replace("_", "-") for field in flatten(read)]
        near = difflib.get_close_matches(unknown[0], flags, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all flags"
        raise InputError(f"unknown flag or value {unknown[0]!r}: {hint}")
    return read


def one_line(box: str) -> str:
    """The message of the box that tyro draws: without its frame, heading and pointers to help."""
    text = " ".join(re.sub(r"[^\x20-\x7e]", " ", box).split())
    text = re.split(r" Argument helptext:| For full helptext", text)[0]
    return re.sub(
        r"^(Value error|Parsing error) |Error parsing ((Config|AttackJob|SearchFlags|FrontierJob|ReproduceFlags|Settings): )?",
        "",
        text,
    )


C = TypeVar("C", Config, AttackJob)


def absolute(config: C) -> C:
    """The same with absolute paths: a Ray actor has another working directory. What a node has to expand stays as it is."""
    paths = {n: getattr(config, n, None) for n in ("data_dir", "cache_dir", "shared_cache", "output", "against")}
    if config.cache_dir is not None and (str(config.cache_dir).startswith("~") or "$" in str(config.cache_dir)):
        del paths["cache_dir"]
    resolved: dict[str, Any] = {n: path.expanduser().resolve() for n, path in paths.items() if isinstance(path, Path)}
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


class Stop:
    """What was asked for while something was finished politely."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def asked(self) -> bool:
        return self.signal is not None

    def now(self) -> None:
        """Raises: KeyboardInterrupt or SystemExit(143), as was asked."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        STOPPED.set()
        raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def politely() -> Iterator[Stop]:
    """Within the block a first SIGINT or SIGTERM is only noted; a second one ends it at once. No effect outside the main thread."""
    stop = Stop()

    def note(number: int, frame: object) -> None:
        if stop.asked:
            stop.signal = number
            stop.now()
        stop.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def warn_of_hasty_end() -> None:
    """Say where `ray job stop` would kill this job before it has written a checkpoint: after 3 seconds, unless it was submitted
    with more."""
    patience_s = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")
    if JOB_CONFIG in os.environ and patience_s.isdigit() and int(patience_s) < POLITE_S:
        told = f"`ray job stop` leaves this job {patience_s} s to write a checkpoint, which may take {POLITE_S}: submit it with"
        print(f"{told} RAY_JOB_STOP_WAIT_TIME_S={POLITE_S} in the env_vars of its runtime environment", file=sys.stderr, flush=True)


def run(job: Callable[[], None]) -> None:
    """Run a job and end the process: 0, 2 after one line for bad input, 130 when interrupted; other errors end it with 1.

    Before torch is imported, its threads are told to sleep while they wait: spinning ones cost others several times their time. The
    processes of a local Ray inherit that.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "MLFLOW_TRACKING_URI" in os.environ:
        os.environ["MLFLOW_TRACKING_URI"] = taken(os.environ["MLFLOW_TRACKING_URI"])
    warn_of_hasty_end()
    try:
        job()
    except InputError as e:
        print(f"error: {redacted(' '.join(str(e).split()))}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        end_where_nobody_reads()
        raise
    except SystemExit:
        if STOPPED.is_set():
            sys.exit(128 + signal.SIGTERM)
        end_where_nobody_reads()
        raise


def end_where_nobody_reads() -> None:
    """End as a shell's own commands do where who read standard output (`| head`) has gone; otherwise do nothing."""
    readers = select.poll()
    readers.register(1, 0)
    if any(event & select.POLLERR for _, event in readers.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be written
        sys.exit(128 + signal.SIGPIPE)

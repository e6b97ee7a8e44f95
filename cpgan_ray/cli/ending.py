"""How a job ends: its exit status, and one line for bad input."""

import logging
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from cpgan_ray.common import logs, signals
from cpgan_ray.common.credentials import move_to_env, redacted
from cpgan_ray.common.signals import SHUTDOWN_GRACE_S
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

BAD_INPUT, FAILED = 2, 1
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable by which a process knows that it is the entrypoint of a Ray job."""


def run(job: Callable[[], None]) -> None:
    """Run a job and end the process: 0, 2 after one line for bad input, 130 or 143 when stopped; other errors end it with 1.

    Before torch is imported, its threads are told to sleep while they wait: spinning ones cost others several times their time. The
    processes of a local Ray inherit that.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signals.install()
    signals.ignore_at_exit()
    logs.configure("info")
    try:
        logs.configure(take_log_level(sys.argv))
        if "MLFLOW_TRACKING_URI" in os.environ:
            os.environ["MLFLOW_TRACKING_URI"] = move_to_env(os.environ["MLFLOW_TRACKING_URI"])
        ensure_folders()
        warn_of_hasty_end()
        job()
    except BaseException as e:
        if (number := signals.requested()) is not None:  # whatever it has led to: Ray turns SystemExit(143) into SystemExit(1)
            end_stopped(number, e)
        signals.end(status_of(e))
        end_failed(e)
        raise
    signals.end(0)


def take_log_level(arguments: list[str]) -> str | None:
    """Take `--log-level LEVEL` out of the arguments, which any job has; None if it is not given.

    Raises: InputError if no level follows it.
    """
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--log-level":
            if not equals and i + 1 == len(arguments):
                raise InputError(f"--log-level needs a level, one of {', '.join(logs.LEVELS)}")
            value = value if equals else arguments.pop(i + 1)
            del arguments[i]
            return value
    return None


def ensure_folders() -> None:
    """Raises: InputError if the current folder is gone, or there is no folder for temporary files."""
    try:
        Path.cwd()
    except OSError as e:
        raise InputError("the current folder has been deleted: change to one that exists (cd) and start again") from e
    try:
        tempfile.gettempdir()
    except OSError as e:
        raise InputError("no folder for temporary files can be written to: set TMPDIR to one that can") from e


def end_stopped(number: int, error: BaseException) -> None:
    """Exit with the status of a job that was asked to stop, after a line on what else went wrong meanwhile.

    Raises: SystemExit.
    """
    status = 128 + number
    signals.end(status)
    if isinstance(error, Exception):
        reason = redacted(" ".join(f"{type(error).__name__}: {error}".split())[:300])
        logger.warning(f"stopped by {signal.Signals(number).name}, and meanwhile: {reason}")
    elif number == signal.SIGINT:
        logger.info("interrupted")
    sys.exit(status)


def end_failed(error: BaseException) -> None:
    """Exit with the status and the line of an error that has one; return for any other.

    Raises: SystemExit.
    """
    if isinstance(error, InputError):
        logger.error(" ".join(str(error).split()))
        sys.exit(BAD_INPUT)
    if isinstance(error, KeyboardInterrupt):
        logger.info("interrupted")
        sys.exit(128 + signal.SIGINT)
    if isinstance(error, BrokenPipeError | SystemExit):
        end_where_nobody_reads()


def status_of(error: BaseException) -> int:
    if isinstance(error, InputError):
        return BAD_INPUT
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else FAILED


def warn_of_hasty_end() -> None:
    """Say where `ray job stop` would kill this job before it has written a checkpoint: after 3 seconds, unless it was submitted
    with more."""
    patience_s = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")
    if JOB_CONFIG in os.environ and patience_s.isdigit() and int(patience_s) < SHUTDOWN_GRACE_S:
        logger.warning(
            f"`ray job stop` leaves this job {patience_s} s to write a checkpoint, which may take {SHUTDOWN_GRACE_S}: submit it "
            f"with RAY_JOB_STOP_WAIT_TIME_S={SHUTDOWN_GRACE_S} in the env_vars of its runtime environment"
        )


def end_where_nobody_reads() -> None:
    """End as a shell's own commands do where who read standard output (`| head`) has gone; otherwise do nothing."""
    readers = select.poll()
    readers.register(1, 0)
    if any(event & select.POLLERR for _, event in readers.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be written
        sys.exit(128 + signal.SIGPIPE)

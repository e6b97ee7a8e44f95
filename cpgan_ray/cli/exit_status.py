"""Run a job and end the process with its exit status; bad input ends it with one line."""

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
"""Environment variable that is set in the entrypoint of a Ray job."""


def run(job: Callable[[], None]) -> None:
    """Run a job and end the process. Exit status: 0 for success, 2 after one line for bad input, 130 or 143 when stopped by a
    signal, 1 for other errors.
    """
    signals.install()
    signals.ignore_at_exit()
    logs.configure("info")
    try:
        logs.configure(take_log_level(sys.argv))
        if "MLFLOW_TRACKING_URI" in os.environ:
            os.environ["MLFLOW_TRACKING_URI"] = move_to_env(os.environ["MLFLOW_TRACKING_URI"])
        ensure_folders()
        warn_of_short_grace_period()
        job()
    except BaseException as e:
        if (number := signals.requested()) is not None:  # after any error: Ray turns SystemExit(143) into SystemExit(1)
            end_stopped(number, e)
        signals.end(status_of(e))
        end_failed(e)
        raise
    signals.end(0)


def take_log_level(arguments: list[str]) -> str | None:
    """Remove `--log-level LEVEL`, a flag of every job, from the arguments and return the level; None if it is absent.

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
    """Raises: InputError if the current folder has been deleted, or no folder for temporary files is writable."""
    try:
        Path.cwd()
    except OSError as e:
        raise InputError("the current folder has been deleted: change to an existing folder (cd) and start again") from e
    try:
        tempfile.gettempdir()
    except OSError as e:
        raise InputError("no folder for temporary files is writable: set TMPDIR to a writable folder") from e


def end_stopped(number: int, error: BaseException) -> None:
    """Exit with the status of a job that was stopped by a signal, after a line about any other error.

    Raises: SystemExit.
    """
    status = 128 + number
    signals.end(status)
    if isinstance(error, Exception):
        reason = redacted(" ".join(f"{type(error).__name__}: {error}".split())[:300])
        logger.warning(f"stopped by {signal.Signals(number).name}, and another error occurred: {reason}")
    elif number == signal.SIGINT:
        logger.info("interrupted")
    sys.exit(status)


def end_failed(error: BaseException) -> None:
    """Exit with the status and the line of a known kind of error; return for any other error.

    Raises: SystemExit.
    """
    if isinstance(error, InputError):
        logger.error(" ".join(str(error).split()))
        sys.exit(BAD_INPUT)
    if isinstance(error, KeyboardInterrupt):
        logger.info("interrupted")
        sys.exit(128 + signal.SIGINT)
    if isinstance(error, BrokenPipeError | SystemExit):
        exit_if_output_is_closed()


def status_of(error: BaseException) -> int:
    if isinstance(error, InputError):
        return BAD_INPUT
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else FAILED


def warn_of_short_grace_period() -> None:
    """Warn if `ray job stop` may kill this job before it has written a checkpoint. Ray waits 3 seconds, unless the job was
    submitted with a longer time."""
    wait_s = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")
    if JOB_CONFIG in os.environ and wait_s.isdigit() and int(wait_s) < SHUTDOWN_GRACE_S:
        logger.warning(
            f"`ray job stop` gives this job {wait_s} s to write a checkpoint, which may take {SHUTDOWN_GRACE_S} s: submit it "
            f"with RAY_JOB_STOP_WAIT_TIME_S={SHUTDOWN_GRACE_S} in the env_vars of its runtime environment"
        )


def exit_if_output_is_closed() -> None:
    """If the reader of standard output has closed it (`| head`), exit like a shell command does; otherwise do nothing."""
    readers = select.poll()
    readers.register(1, 0)
    if any(event & select.POLLERR for _, event in readers.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discard buffered output
        sys.exit(128 + signal.SIGPIPE)

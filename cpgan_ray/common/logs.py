"""What the jobs report while they run: the loggers of this package, on standard error, with one format.

Modules log to `logging.getLogger(__name__)`. As a library the package configures nothing; a job calls `configure`, and every Ray
process of a job `configure_like_job`. Messages may name anything: secrets in them are replaced by stars, control characters by
escapes.
"""

import logging
import os
import sys

from cpgan_ray.common.credentials import redacted
from cpgan_ray.errors import InputError, printable

LEVELS = ("debug", "info", "warning", "error")
LEVEL_VARIABLE = "CPGAN_LOG_LEVEL"
"""Environment variable by which the processes of a job know its level."""


class Formatter(logging.Formatter):
    """The message alone at level info, behind the name of the level at every other."""

    def format(self, record: logging.LogRecord) -> str:
        message = printable(redacted(super().format(record)))
        return message if record.levelno == logging.INFO else f"{record.levelname.lower()}: {message}"


class StandardError(logging.StreamHandler):
    """Writes to what `sys.stderr` is at the time of the message: tests and notebooks replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(Formatter())

    @property
    def stream(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return sys.stderr


def configure(level: str | None = None) -> None:
    """Show the messages of this package from a level on: the one given, that of the environment, or `info`.

    Raises: InputError for a level that does not exist.
    """
    level = level or os.environ.get(LEVEL_VARIABLE) or "info"
    if level not in LEVELS:
        raise InputError(f"--log-level is {level!r}; it must be one of {', '.join(LEVELS)}")
    os.environ[LEVEL_VARIABLE] = level
    logger = logging.getLogger("cpgan_ray")
    logger.setLevel(level.upper())
    logger.propagate = False
    if not any(isinstance(handler, StandardError) for handler in logger.handlers):
        logger.addHandler(StandardError())


def configure_like_job() -> None:
    """The same in another process of a job; nothing in a process of another program."""
    if LEVEL_VARIABLE in os.environ:
        configure()

"""Configuration of the package's loggers: standard error, one format.

Modules log to `logging.getLogger(__name__)`. As a library the package configures nothing; a job calls `configure`, and every Ray
process of a job calls `configure_like_job`. Secrets in messages are replaced by stars, control characters by escapes.
"""

import logging
import os
import sys

from cpgan_ray.common.credentials import redacted
from cpgan_ray.errors import InputError, printable

LEVELS = ("debug", "info", "warning", "error")
LEVEL_VARIABLE = "CPGAN_LOG_LEVEL"
"""Environment variable that passes the log level to all processes of a job."""


class Formatter(logging.Formatter):
    """Writes only the message at level info, and the name of the level before it at all other levels."""

    def format(self, record: logging.LogRecord) -> str:
        message = printable(redacted(super().format(record)))
        return message if record.levelno == logging.INFO else f"{record.levelname.lower()}: {message}"


class StandardError(logging.StreamHandler):
    """Writes to the `sys.stderr` of the moment: tests and notebooks replace that object."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(Formatter())

    @property
    def stream(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return sys.stderr


def configure(level: str | None = None) -> None:
    """Show this package's messages at a level and above. `level` defaults to the environment's CPGAN_LOG_LEVEL, then to `info`.

    Raises: InputError if the level is unknown.
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
    """Show messages at the level of the job that started this process. Does nothing in a process of another program."""
    if LEVEL_VARIABLE in os.environ:
        configure()

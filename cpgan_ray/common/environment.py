"""Substitutes for what a process may lack: a home folder, a user name, open standard streams.

Containers run with user ids that are in no password file and with read-only file systems. Libraries then fail at import, or print
warnings that a user can do nothing about.
"""

import atexit
import contextlib
import getpass
import io
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)


def complete_environment() -> None:
    """Sets what is missing in this process and in those that it starts. Call it before importing the libraries that need it. It
    changes nothing if nothing is missing."""
    open_streams()
    set_home()
    set_user_name()
    set_matplotlib_folder()


def open_streams() -> None:
    """Opens closed standard streams on /dev/null. Otherwise the next file that is opened would get the descriptor of a standard
    stream, and all output printed to it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # characters that the locale's encoding lacks


def set_home() -> None:
    """Sets HOME to a temporary folder if the user has no home: libraries look for it at import."""
    try:
        Path.home()
    except (RuntimeError, KeyError):
        if folder := temporary_folder("cpgan-home-"):
            os.environ["HOME"] = folder
            if not any(argument.startswith("--cache-dir") for argument in sys.argv):
                logger.warning("no home folder (HOME is not set): prepared data are deleted after this run; --cache-dir keeps them")


def set_user_name() -> None:
    """Sets LOGNAME if the user has no name: MLflow and torch need one."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def set_matplotlib_folder() -> None:
    """Sets MPLCONFIGDIR if Matplotlib cannot create its configuration folder: it would print a warning of two lines."""
    if "MPLCONFIGDIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "matplotlib"
    try:
        folder.mkdir(parents=True, exist_ok=True)  # as Matplotlib itself does
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable and (temporary := temporary_folder("cpgan-matplotlib-")):
        os.environ["MPLCONFIGDIR"] = temporary


def temporary_folder(prefix: str) -> str | None:
    """A new folder that is removed when the process ends; None if it cannot be created."""
    with contextlib.suppress(OSError):
        folder = tempfile.mkdtemp(prefix=prefix)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    return None


def ensure_current_folder() -> None:
    """Raises: InputError if the current folder has been removed."""
    try:
        Path.cwd()
    except OSError as e:
        raise InputError("the current folder no longer exists: change to another one") from e

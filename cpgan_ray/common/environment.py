"""What a process may lack, and what stands in for it: a home folder, a user name, open standard streams.

Containers run under numbers that no password file has, with file systems that cannot be written to. Libraries fail there when they
are imported, or print warnings that a user can do nothing about.
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
    """Give this process, and those that it starts, what it lacks. Called before the libraries that need it are imported; without
    effect where nothing is missing."""
    open_streams()
    give_home()
    give_user_name()
    give_matplotlib_a_folder()


def open_streams() -> None:
    """Standard streams that are closed lead to nowhere. Otherwise the next file that is opened would take the number of one, and
    get what is printed."""
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
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the locale has no characters for


def give_home() -> None:
    """HOME is a temporary folder where the user has none: libraries look for it as they are imported."""
    try:
        Path.home()
    except (RuntimeError, KeyError):
        if folder := temporary_folder("cpgan-home-"):
            os.environ["HOME"] = folder
            if not any(argument.startswith("--cache-dir") for argument in sys.argv):
                told = "there is no home folder (HOME is not set): prepared data are kept for this run only; --cache-dir keeps them"
                logger.warning(told)


def give_user_name() -> None:
    """MLflow and torch ask for the name of the user."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def give_matplotlib_a_folder() -> None:
    """Matplotlib prints two lines where its folder of settings cannot be made."""
    if "MPLCONFIGDIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "matplotlib"
    try:
        folder.mkdir(parents=True, exist_ok=True)  # as it does itself
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable and (made := temporary_folder("cpgan-matplotlib-")):
        os.environ["MPLCONFIGDIR"] = made


def temporary_folder(prefix: str) -> str | None:
    """A new folder that is removed when the process ends; None if there is no place for one."""
    with contextlib.suppress(OSError):
        folder = tempfile.mkdtemp(prefix=prefix)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    return None


def ensure_here() -> None:
    """Raises: InputError if the current folder has been removed."""
    try:
        Path.cwd()
    except OSError as e:
        raise InputError("the current folder no longer exists: change to another one") from e

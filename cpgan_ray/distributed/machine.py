"""Prepares what a local Ray needs on its machine: a short path for its sockets, shared memory, and a token."""

import contextlib
import logging
import os
import stat
import sys
from pathlib import Path

from ray._common.utils import get_default_system_temp_dir
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

MAX_FOLDER_BYTES = 40
"""The longest path of Ray's temporary folder. Ray adds up to 67 bytes, and Linux allows 107 for the path of a socket."""
FALLBACKS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
"""Folders in which a private folder is created if Ray's own choice is unusable."""
SHARED_MEMORY = Path("/dev/shm")
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def temporary_folder() -> str:
    """The folder of Ray's sockets and logs: `ray` in RAY_TMPDIR, TMPDIR or /tmp. If it is unusable, a folder that only this user
    can read, which a warning names.

    Raises: InputError if no folder is writable.
    """
    default = Path(get_default_system_temp_dir()).absolute() / "ray"
    problem = _problem(default)
    if problem is None:
        return str(default)
    for parent in FALLBACKS:
        private = parent / f"ray-{os.getuid()}"
        folder = private / "ray"  # Ray makes this folder accessible to everybody
        if _is_private(private) and _problem(folder) is None:
            logger.warning(f"Ray's temporary files go to {folder}: {default} {problem}")
            return str(folder)
    raise InputError(
        f"Ray has no folder for its temporary files: {default} {problem}, and none of {', '.join(map(str, FALLBACKS))} is "
        f"writable: set RAY_TMPDIR to a writable folder with a path of at most {MAX_FOLDER_BYTES - 4} bytes, or use "
        "--runtime.backend local"
    )


def _problem(folder: Path) -> str | None:
    """Why Ray cannot use this folder; None if it can."""
    if len(os.fsencode(folder)) > MAX_FOLDER_BYTES:
        return "is too long for the paths of its sockets"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        return f"cannot be created ({e.strerror})"
    return None if os.access(folder, os.W_OK | os.X_OK) else "is not writable"


def _is_private(folder: Path) -> bool:
    """Creates the folder if absent. Returns whether it belongs to this user and only this user can access it."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    try:
        info = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077


def ensure_shared_memory() -> None:
    """Raises: InputError if there is none. If there is too little, Ray uses its temporary folder instead."""
    if sys.platform == "linux" and not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        raise InputError(
            f"{SHARED_MEMORY}, where Ray stores its objects, is missing or not writable: mount it (docker run --shm-size 2g, "
            "in Kubernetes an emptyDir of medium Memory), or use --runtime.backend local"
        )


def ensure_token() -> None:
    """Creates a token for a local Ray, unless tokens are disabled or one is set.

    It is stored in `~/.ray/auth_token`, readable only for this user (Ray's own file would be readable for everybody), or in the
    environment if there is no home folder.
    """
    if not _uses_token() or {TOKEN, TOKEN_PATH} & os.environ.keys():
        return
    try:
        path = _token_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(generate_new_authentication_token())
        path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: neither HOME nor an entry in the list of users
        os.environ[TOKEN] = generate_new_authentication_token()


def warn_of_readable_token() -> None:
    """Warns if others can read the token: anybody who has it can run code on this user's clusters."""
    if not _uses_token() or TOKEN in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):
        path = _token_file()
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            logger.warning(f"{path} has mode {mode:04o}: others can read the token and run code on your clusters; chmod 600 it")


def _uses_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def _token_file() -> Path:
    return Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")

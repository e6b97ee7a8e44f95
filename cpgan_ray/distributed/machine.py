"""What a local Ray needs of its machine: a short path for its sockets, shared memory, and a place for its token."""

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
"""Where a private folder is made if Ray's own choice does not serve."""
SHARED_MEMORY = Path("/dev/shm")
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def temporary_folder() -> str:
    """Where Ray keeps its sockets and logs: `ray` in RAY_TMPDIR, TMPDIR or /tmp; if that does not serve, a folder that only this
    user can read, which a line on standard error names.

    Raises: InputError if none can be written to.
    """
    default = Path(get_default_system_temp_dir()).absolute() / "ray"
    fault = _fault(default)
    if fault is None:
        return str(default)
    for parent in FALLBACKS:
        private = parent / f"ray-{os.getuid()}"
        folder = private / "ray"  # which Ray opens for everybody
        if _is_private(private) and _fault(folder) is None:
            logger.warning(f"Ray's temporary files go to {folder}: {default} {fault}")
            return str(folder)
    raise InputError(
        f"Ray has no place for its temporary files: {default} {fault}, and none of {', '.join(map(str, FALLBACKS))} can be "
        f"written to: set RAY_TMPDIR to a writable folder, its path of at most {MAX_FOLDER_BYTES - 4} bytes, or use "
        "--runtime.backend local"
    )


def _fault(folder: Path) -> str | None:
    """Why Ray cannot keep its files there; None if it can."""
    if len(os.fsencode(folder)) > MAX_FOLDER_BYTES:
        return "is too long for the paths of its sockets"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        return f"cannot be made ({e.strerror})"
    return None if os.access(folder, os.W_OK | os.X_OK) else "cannot be written to"


def _is_private(folder: Path) -> bool:
    """Whether it is there now, and this user's only."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def ensure_shared_memory() -> None:
    """Raises: InputError if there is none; where there is little Ray takes its temporary folder instead."""
    if sys.platform == "linux" and not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        raise InputError(
            f"{SHARED_MEMORY} is missing or cannot be written to, where Ray keeps its objects: mount it (docker run --shm-size 2g, "
            "in Kubernetes an emptyDir of medium Memory), or use --runtime.backend local"
        )


def ensure_token() -> None:
    """Has a token ready for a local Ray, unless it wants none or one is named: in `~/.ray/auth_token`, for this user only, since
    the file that Ray itself would make is readable for everybody; or in the environment if there is no home folder to keep it in.
    """
    if not _wants_token() or {TOKEN, TOKEN_PATH} & os.environ.keys():
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
    """A line on standard error if others can read the token with which anybody may run code on this user's clusters."""
    if not _wants_token() or TOKEN in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):
        path = _token_file()
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            told = f"{path} has mode {mode:04o}: others can read the token and run code on your clusters; chmod 600 it"
            logger.warning(told)


def _wants_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def _token_file() -> Path:
    return Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")

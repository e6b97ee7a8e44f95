"""Atomic writes: a file is either complete or absent, and no write follows a symbolic link.

A folder copied from another user may hold symbolic links under the names that are about to be written. Every write therefore goes
to a new file with a random name in the same folder (created exclusively), which is synced and then renamed: a rename replaces a
link instead of following it.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cpgan_ray.errors import InputError


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[Path]:
    """Yields a new, empty file next to `path` to write to. It is synced and renamed to `path` when the block ends normally, and
    removed when the block raises.

    durable: sync the file before the rename. False is for files that can be produced again. mode: permissions of a new file, less
    those of the umask.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode))
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by a file with the given content."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Replaces `path` by a file with the given content, in UTF-8."""
    write_bytes(path, content.encode())


def open_to_append(path: Path) -> IO[str]:
    """Opens a file to append text to, in UTF-8; creates it if absent.

    Raises: InputError if it is a symbolic link or not a regular file.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as e:
        if e.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a named pipe, a folder
            raise
        raise InputError(f"{path} is a link or not a regular file: remove it, the run writes to this path") from e
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{path} is not a regular file: remove it, the run writes to this path")
    return os.fdopen(handle, "a", encoding="utf-8")


def make_folder(path: Path) -> Path:
    """Creates a folder inside a folder that may come from another user; returns it.

    Raises: InputError if it is a symbolic link: the files would be written to wherever it points.
    """
    refuse_link(path).mkdir(parents=True, exist_ok=True)
    return path


def refuse_link(path: Path) -> Path:
    """Returns the path of a file or folder that must not be a symbolic link.

    Raises: InputError if it is a symbolic link.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link to {path.readlink()}: remove it, the run does not write through links")
    return path


def sync(path: Path) -> None:
    """Waits until the content of a file is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files that are either complete or absent, written without following a link that somebody else has put in the way.

A folder that came from elsewhere may hold symbolic links under the very names that are about to be written. Every write therefore
goes to a new file of a random name in the same folder (created exclusively), which is synced and then renamed: a rename replaces a
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
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a new, empty file next to `path` to write to. It is synced and renamed to `path` when the block ends normally, and
    removed when the block raises. Without `durable` it is not synced: one of many files that can be had again."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by a file with this content."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Replaces `path` by a file with this content, in UTF-8."""
    write_bytes(path, content.encode())


def open_to_append(path: Path) -> IO[str]:
    """A file to append text to, in UTF-8, created if need be.

    Raises: InputError if it is a symbolic link or no regular file.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as e:
        if e.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a named pipe, a folder
            raise
        raise InputError(f"{path} is a link or no regular file: remove it, it is written to") from e
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{path} is no regular file: remove it, it is written to")
    return os.fdopen(handle, "a", encoding="utf-8")


def make_folder(path: Path) -> Path:
    """Creates a folder inside one that may come from elsewhere; returns it.

    Raises: InputError if it is a symbolic link, which could lead the files written to it anywhere.
    """
    no_link(path).mkdir(parents=True, exist_ok=True)
    return path


def no_link(path: Path) -> Path:
    """The path of a folder inside one that may come from elsewhere.

    Raises: InputError if it is a symbolic link.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link to {path.readlink()}: remove the link, nothing is written through it")
    return path


def sync(path: Path) -> None:
    """Waits until the content of a file is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

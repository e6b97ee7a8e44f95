"""Files that are either complete or absent, written without following a link that somebody else has put in the way.

A folder that came from elsewhere may hold symbolic links under the very names that are about to be written. Every write therefore
goes to a new file of a random name in the same folder (created exclusively), which is synced and then renamed: a rename replaces a
link instead of following it.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cpgan_ray.errors import InputError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a new, empty file next to `path` to write to. It is synced and renamed to `path` when the block ends normally, and
    removed when the block raises."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    try:
        yield temporary
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


def make_folder(path: Path) -> Path:
    """Creates a folder inside one that may come from elsewhere; returns it.

    Raises: InputError if it is a symbolic link, which could lead the files written to it anywhere.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link to {path.readlink()}: remove the link, nothing is written through it")
    path.mkdir(parents=True, exist_ok=True)
    return path


def sync(path: Path) -> None:
    """Waits until the content of a file is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Locks between processes of a node."""

from pathlib import Path

from filelock import FileLock

from cpgan_ray.errors import InputError


def file_lock(path: Path) -> FileLock:
    """The lock that is kept in a file, not held yet.

    Raises: InputError if something else lies there: a link would be opened for writing, a named pipe would wait for ever.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is a link or no regular file: remove it, a lock is kept there")
    return FileLock(path)

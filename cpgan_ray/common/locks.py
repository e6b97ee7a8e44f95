"""Locks between the processes of a node."""

from pathlib import Path

from filelock import FileLock

from cpgan_ray.errors import InputError


def file_lock(path: Path) -> FileLock:
    """A lock on a file, not acquired yet.

    Raises: InputError if the path is not a regular file: a link would be opened for writing, a named pipe would block for ever.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is a link or not a regular file: remove it, this path is a lock file")
    return FileLock(path)

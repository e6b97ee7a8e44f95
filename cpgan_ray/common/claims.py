"""Exclusive access to an output folder: one process at a time.

A process that writes to a folder holds an exclusive lock (flock) on the file `.lock` in it. The operating system frees the lock
when the process ends, even if it is killed, so that a lock file left behind blocks nobody. The file names the process and the
machine that hold the lock; the error message of another process repeats this note. NFS passes such locks on to its server. On a
file system without locks only the note protects the folder: the lock file of an ended process on this machine is taken over, and
the lock file of another machine must be removed by hand.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from cpgan_ray.errors import InputError

LOCK = ".lock"
NOTE = re.compile(r"process (\d{1,10}) on ([\w.-]{1,255}) since [\d: -]{19}")
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Error numbers of flock on a file system without locks."""
MAX_SUFFIX = 1000


@contextlib.contextmanager
def claim_folder(folder: Path, *, flag: str = "--output") -> Iterator[Path]:
    """Locks the folder for this process until the block ends. Creates it if absent, and removes it again if it is empty at the end.

    flag: the command-line flag that sets the folder, for error messages.

    Raises: InputError if another process has locked it, or if it cannot be created or written to. Its content is then unchanged.
    """
    try:
        claim = contextlib.ExitStack()
        claim.enter_context(_claim(folder, new=False))
    except InputError as e:
        raise InputError(str(e).replace("--output", flag)) from e
    with claim:
        yield folder


@contextlib.contextmanager
def claim_new_folder(base: Path) -> Iterator[Path]:
    """Creates and locks a new folder: `base`, or if that exists, the first free one of `base-2`, `base-3` and so on."""
    for number in range(1, MAX_SUFFIX):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_claim(folder, new=True))
            except FileExistsError:
                continue
            yield folder
            return
    raise InputError(f"{base} and {base}-2 to {base}-{MAX_SUFFIX - 1} exist: give another --output")


@contextlib.contextmanager
def _claim(folder: Path, *, new: bool) -> Iterator[None]:
    """Raises: FileExistsError if `new` and the folder exists."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} is a file: give a folder with --output")
    created: list[Path] = []
    try:
        handle = _make_and_lock(folder, created, new=new)
    except BaseException as e:
        _remove_empty(created)
        if isinstance(e, OSError) and not isinstance(e, FileExistsError):
            raise InputError(f"cannot write to the output folder {folder} ({e.strerror}): give another --output") from e
        raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_at(handle, folder / LOCK):
                (folder / LOCK).unlink()
        os.close(handle)
        _remove_empty(created)


def _make_and_lock(folder: Path, created: list[Path], *, new: bool) -> int:
    while True:
        for part in (*reversed(folder.parents), folder):
            try:
                if new and part == folder or not part.exists():
                    part.mkdir()
                    created.append(part)
            except FileExistsError:
                if new and part == folder:
                    raise
        try:
            return _lock(folder / LOCK, folder)
        except FileNotFoundError:  # the process that had created the folder has removed it again
            created.clear()


def _lock(path: Path, folder: Path) -> int:
    """Opens and locks the lock file; returns its handle."""
    while True:
        created = True
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            created = False
            try:
                handle = os.open(path, flags)
            except FileNotFoundError:  # its owner has just released it
                continue
            except OSError as e:
                if e.errno == errno.ELOOP:
                    raise InputError(f"{path} is a symbolic link: remove it, the run does not write through links") from e
                raise
        try:
            if not _is_free(handle, path, folder, created=created):
                continue
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {_host()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
            locked, handle = handle, -1
            return locked
        finally:
            if handle >= 0:
                os.close(handle)


def _is_free(handle: int, path: Path, folder: Path, *, created: bool) -> bool:
    """Tries to lock the file. Returns whether this process now holds the lock and the file is still the one at `path`.

    Raises: InputError if another process holds the lock.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        note = _note(handle)
        holder = note.group() if note else "another process"
        raise InputError(f"{folder} is in use by {holder}: wait until it has ended, stop it, or give another --output") from e
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
        note = None if created else _note(handle)
        if note is not None and not (note.group(2) == _host() and not _is_running(int(note.group(1)))):
            raise InputError(
                f"{folder} is in use by {note.group()}: give another --output, or remove {path} if that process has ended"
            ) from e
    return _is_at(handle, path)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _note(handle: int) -> re.Match[str] | None:
    return NOTE.match(os.pread(handle, 400, 0).decode(errors="replace"))


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())[:255] or "this machine"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()

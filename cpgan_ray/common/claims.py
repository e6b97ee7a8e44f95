"""One process at a time for an output folder.

A process that writes to a folder holds an exclusive lock (flock) on the file `.lock` in it. The operating system frees the lock
when the process ends, however it ends, so that a file that is left over blocks nobody. The file says which process on which
machine holds the lock, for the message that another process gets. NFS passes such locks on to its server. A file system without
locks has only that note: there a file left over by a process of this machine that has ended is taken over, and one of another
machine has to be removed by hand.
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
"""What flock answers on a file system that has no locks."""
MAX_SUFFIX = 1000


@contextlib.contextmanager
def claim_folder(folder: Path, *, flag: str = "--output") -> Iterator[Path]:
    """The folder is this process's until the block ends. It is made if absent, and removed again if the block leaves it empty.

    flag: by which another one is given.

    Raises: InputError if another process has it, or it cannot be made or written to; nothing in it is changed then.
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
    """The same for a folder that did not exist: `base`, or if there is one of that name `base-2`, `base-3` and so on."""
    for number in range(1, MAX_SUFFIX):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_claim(folder, new=True))
            except FileExistsError:
                continue
            yield folder
            return
    raise InputError(f"{base} and {MAX_SUFFIX} more of that name exist: give another --output")


@contextlib.contextmanager
def _claim(folder: Path, *, new: bool) -> Iterator[None]:
    """Raises: FileExistsError if there is a folder that should be new."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} is a file: give a folder with --output")
    made: list[Path] = []
    try:
        handle = _make_and_lock(folder, made, new=new)
    except BaseException as e:
        _remove_empty(made)
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
        _remove_empty(made)


def _make_and_lock(folder: Path, made: list[Path], *, new: bool) -> int:
    while True:
        for part in (*reversed(folder.parents), folder):
            try:
                if new and part == folder or not part.exists():
                    part.mkdir()
                    made.append(part)
            except FileExistsError:
                if new and part == folder:
                    raise
        try:
            return _lock(folder / LOCK, folder)
        except FileNotFoundError:  # who had made the folder has removed it again
            made.clear()


def _lock(path: Path, folder: Path) -> int:
    """A handle on the lock file, locked."""
    while True:
        created = True
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            created = False
            try:
                handle = os.open(path, flags)
            except FileNotFoundError:  # it has just been given back
                continue
            except OSError as e:
                if e.errno == errno.ELOOP:
                    raise InputError(f"{path} is a symbolic link: remove it, nothing is written through it") from e
                raise
        try:
            if not _is_free(handle, path, folder, created=created):
                continue
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {_host()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
            taken, handle = handle, -1
            return taken
        finally:
            if handle >= 0:
                os.close(handle)


def _is_free(handle: int, path: Path, folder: Path, *, created: bool) -> bool:
    """Whether the file is locked by this process now; not if it is no longer the one at `path`.

    Raises: InputError if another process has it.
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

"""One process at a time, checksums, and what is said meanwhile."""

import contextlib
import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import Timeout
from tqdm import tqdm

from cpgan_ray.common.locks import file_lock
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # not ours
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR),  # no place for a folder
)


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock that goes with `folder` (`<folder>.lock`), so that one process of the node makes it and the others wait.

    Raises:
        InputError: the place cannot be written to, then or in the block, or is full; something else lies where the lock is kept.
    """
    with writable(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = file_lock(folder.with_name(folder.name + ".lock"))
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            logger.info(f"waiting for another process that makes {folder}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in UNWRITABLE:
            raise
        reason = os.strerror(e.errno)
        raise InputError(f"prepared pictures cannot be kept in {folder} ({reason}): give another folder with --cache-dir") from e


@contextlib.contextmanager
def progress_bar(total: int, *, what: str, unit: str, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Call the function given with the number of things done since the last call: a bar on a terminal, else a line every 10 s."""
    start = said = time.monotonic()
    done = 0
    bar = tqdm(total=total, desc=what, unit=f" {unit}", disable=None if show and logger.isEnabledFor(logging.INFO) else True)

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        bar.update(count)
        if bar.disable and show and time.monotonic() - said >= 10:
            said = time.monotonic()
            logger.info(f"{what}: {done} of {total} {unit}, {said - start:.0f} s")

    try:
        yield advance
    finally:
        bar.close()

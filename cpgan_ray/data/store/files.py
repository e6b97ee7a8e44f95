"""Locks, checksums and progress bars for prepared folders."""

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
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # no permission
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR),  # a folder cannot be made there
)


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` (`<folder>.lock`), so that one process of the node makes the folder and the others wait.

    Raises:
        InputError: the parent folder cannot be written to or is full, now or in the block; or the lock file cannot be made because
            something else has its name.
    """
    with report_write_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = file_lock(folder.with_name(folder.name + ".lock"))
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            logger.info(f"waiting for another process that is making {folder}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def report_write_errors(folder: Path) -> Iterator[None]:
    """Turn errors of writing to `folder` in the block into an `InputError`."""
    try:
        yield
    except OSError as e:
        if e.errno not in UNWRITABLE:
            raise
        reason = os.strerror(e.errno)
        raise InputError(f"prepared pictures cannot be stored in {folder} ({reason}): give another folder with --cache-dir") from e


@contextlib.contextmanager
def progress_bar(total: int, *, what: str, unit: str, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Show progress: a bar on a terminal, a log line every 10 s otherwise. Yields a function to call with the number of items done
    since the last call."""
    start = last_log = time.monotonic()
    done = 0
    bar = tqdm(total=total, desc=what, unit=f" {unit}", disable=None if show and logger.isEnabledFor(logging.INFO) else True)

    def advance(count: int) -> None:
        nonlocal done, last_log
        done += count
        bar.update(count)
        if bar.disable and show and time.monotonic() - last_log >= 10:
            last_log = time.monotonic()
            logger.info(f"{what}: {done} of {total} {unit}, {last_log - start:.0f} s")

    try:
        yield advance
    finally:
        bar.close()

"""Decode the pictures of a large data set, in several processes if there are many."""

import contextlib
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from cpgan_ray.config import Config
from cpgan_ray.data.decoding import Decoded, decode_block
from cpgan_ray.errors import InputError

MIN_PICTURES_FOR_POOL = 2000
"""Minimum number of pictures for which decoding in several processes saves more time than starting them costs."""
MAX_PICTURES_PER_TASK = 32
"""Maximum number of pictures in one task of a decoding process."""
MAX_TASK_BYTES = 64 << 20
"""Maximum total size of the files in one task, for files that are not on disk."""
PictureFile = Path | bytes | str
"""The path of a picture file, its bytes, or (as a string) the reason why it could not be read."""
Decode = Callable[[Iterable[PictureFile]], Iterator[Decoded | str]]
"""Files to their pictures in the same order; a string is the reason why a file cannot be decoded."""


@contextlib.contextmanager
def decoder_pool(*, num_pictures: int, config: Config, upright: bool = False, processes: int | None = None) -> Iterator[Decode]:
    """Yields a function that decodes files. It uses processes, because threads were measured to be no faster for small pictures.

    num_pictures: how many pictures there are in all; processes: by default one per core if there are many pictures;
    upright: see `decoding.decode`.
    """
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if num_pictures >= MIN_PICTURES_FOR_POOL else 1
    data = config.data
    options = {"image_size": data.image_size, "image_width": data.image_width, "crop": data.crop, "upright": upright}
    work = functools.partial(decode_block, **options)
    if processes == 1:
        yield lambda files: itertools.chain.from_iterable(map(work, _tasks(files)))
        return
    context = multiprocessing.get_context("spawn")  # fork would copy locks that threads of Ray and torch hold
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_with_parent) as pool:

        def decode(files: Iterable[PictureFile]) -> Iterator[Decoded | str]:
            """Decode a few tasks at a time, because files that wait for a process are held in memory."""
            waiting = _tasks(files)
            while chunk := list(itertools.islice(waiting, 4 * processes)):
                for results in pool.map(work, chunk):
                    yield from results

        yield decode


def collect(
    results: Iterable[Decoded | str],
    *,
    num_pictures: int,
    config: Config,
    describe: Callable[[int], str],
    remarks: Counter[str],
) -> tuple[np.ndarray, np.ndarray]:
    """The result of `store.Plan.fetch`: pictures (n, H, W, 3) and the mask of the decoded ones (n,); adds to `remarks`.

    describe: the name of a picture for a message, by its position.

    Raises:
        InputError: a picture cannot be decoded, unless `config.skip_corrupt`.
    """
    pictures, valid = np.empty((num_pictures, *config.data.size, 3), np.uint8), np.zeros(num_pictures, bool)
    for i, result in enumerate(results):
        if not isinstance(result, str):
            pictures[i], valid[i] = result.pixels, True
            remarks.update(result.remarks)
        elif not config.skip_corrupt:
            raise InputError(f"{describe(i)} cannot be decoded ({result}): repair it, or skip such pictures with --skip-corrupt")
    return pictures, valid


def _tasks(files: Iterable[PictureFile]) -> Iterator[list[PictureFile]]:
    """The files in groups, of which each is one task."""
    task: list[PictureFile] = []
    remaining = MAX_TASK_BYTES
    for file in files:
        size = len(file) if isinstance(file, bytes) else 0
        if task and (len(task) == MAX_PICTURES_PER_TASK or size > remaining):
            yield task
            task, remaining = [], MAX_TASK_BYTES
        task.append(file)
        remaining -= size
    if task:
        yield task


def _leave_with_parent() -> None:
    """Initialise a decoding process: it ignores Ctrl-C, which the parent handles, and ends when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""The batch of each round, derived only from the seed: which training rows it shows, and how they are augmented.

The privatizer and each adversary compute the same `Batch` in their own process, so that no pictures travel between them.
"""

import functools

import numpy as np

from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Batch
from cpgan_ray.config import Config
from cpgan_ray.data.store import Dataset, Split
from cpgan_ray.errors import InputError

STATISTICS_ROWS = 2048
"""Number of training samples for the batch norm statistics of a released network. The error of a mean is then about 2 % of a
standard deviation (1 / sqrt(2048)), even if a layer sees only one value per sample."""


def plain_batch(rows: np.ndarray) -> Batch:
    """Rows (B,) without augmentation."""
    return Batch(rows=rows, mirrored=np.zeros(len(rows), bool), shift=np.zeros((len(rows), 2), np.int16))


def consecutive_batch(start: int, stop: int) -> Batch:
    """Rows `start` to `stop - 1` without augmentation."""
    return plain_batch(np.arange(start, stop))


def representative_rows(num_rows: int, batch_size: int) -> list[np.ndarray]:
    """Row numbers of several batches (B,), about STATISTICS_ROWS in total. Each batch is spread evenly over the whole split."""
    count = max(1, min(num_rows, STATISTICS_ROWS) // batch_size)
    rows = np.linspace(0, num_rows - 1, min(num_rows, count * batch_size)).astype(np.int64)
    return [rows[i::count] for i in range(count)]


def rounds_per_epoch(num_rows: int, batch_size: int) -> int:
    """Number of rounds in one pass over the training rows. Rows that remain after the last whole batch are not used in this epoch.

    Raises:
        InputError: there are fewer rows than the batch size.
    """
    if batch_size > num_rows:
        raise InputError(f"batch_size is {batch_size}, the training split has {num_rows} pictures: give at most that number")
    return num_rows // batch_size


def batch(round: int, *, seed: int, num_rows: int, batch_size: int, mirror: bool, shift: int) -> Batch:
    """The batch of a round (numbered from 0). Each epoch is a new permutation; each picture is mirrored with probability 0.5; both
    shifts are uniform in [-shift, shift].

    Raises:
        InputError: see `rounds_per_epoch`.
    """
    epoch, index = divmod(round, rounds_per_epoch(num_rows, batch_size))
    rng = stream(seed, "augment", round)
    mirrored = rng.random(batch_size) < 0.5
    shifts = rng.integers(-shift, shift, size=(batch_size, 2), dtype=np.int16, endpoint=True)
    return Batch(
        rows=_permutation(seed, epoch, num_rows)[index * batch_size : (index + 1) * batch_size],
        mirrored=mirrored if mirror else np.zeros(batch_size, bool),
        shift=shifts,
    )


def training_batch(round: int, dataset: Dataset, config: Config) -> Batch:
    """The batch of a round, with the augmentation that the configuration sets and the data set allows."""
    return batch(
        round,
        seed=config.seed,
        num_rows=len(dataset.train),
        batch_size=config.batch_size,
        mirror=config.data.horizontal_flip and dataset.info.mirrored,
        shift=config.data.max_shift_px,
    )


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    rows = stream(seed, "batches", epoch).permutation(num_rows)
    rows.flags.writeable = False
    return rows


def pictures(split: Split, batch: Batch) -> np.ndarray:
    """The pictures of a batch, mirrored and shifted, in the type of the store: (B, H, W, C)."""
    return augment(split.take(batch.rows), batch)


def augment(images: np.ndarray, batch: Batch) -> np.ndarray:
    """Mirror and shift the pictures (B, H, W, C) of a batch, in place. A shift repeats the edge that it uncovers."""
    for channel in range(images.shape[3]):  # mirroring all channels at once takes three times as long
        images[batch.mirrored, ..., channel] = images[batch.mirrored, :, ::-1, channel]
    margin = int(np.abs(batch.shift).max(initial=0))
    if margin == 0:
        return images
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
    for i, (down, right) in enumerate(batch.shift.tolist()):
        images[i] = padded[i, margin - down : margin - down + height, margin - right : margin - right + width]
    return images

"""What every player derives from the seed alone: which training rows a round shows, and how they are varied.

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
"""Training samples from which the batch norm statistics of a released network are computed: a mean is then known to within 2 % of a
standard deviation (1 / sqrt(2048)), even where a layer sees one value per sample."""


def unvaried(rows: np.ndarray) -> Batch:
    """Some rows (B,) as they lie in the store."""
    return Batch(rows=rows, mirrored=np.zeros(len(rows), bool), shift=np.zeros((len(rows), 2), np.int16))


def consecutive(start: int, stop: int) -> Batch:
    """Rows start to stop - 1 as they lie in the store."""
    return unvaried(np.arange(start, stop))


def representative_rows(num_rows: int, batch_size: int) -> list[np.ndarray]:
    """Row numbers of some batches (B,), about STATISTICS_ROWS in all, each spread evenly over the whole split."""
    count = max(1, min(num_rows, STATISTICS_ROWS) // batch_size)
    rows = np.linspace(0, num_rows - 1, min(num_rows, count * batch_size)).astype(np.int64)
    return [rows[i::count] for i in range(count)]


def rounds_per_epoch(num_rows: int, batch_size: int) -> int:
    """Rounds in one pass over the training rows; what is left over after the last whole batch waits for the next epoch's draw.

    Raises:
        InputError: there are fewer rows than a batch has.
    """
    if batch_size > num_rows:
        raise InputError(f"batch_size is {batch_size}, the training split has {num_rows} pictures: give at most that many")
    return num_rows // batch_size


def batch(round: int, *, seed: int, num_rows: int, batch_size: int, mirror: bool, shift: int) -> Batch:
    """The batch of a round (from 0). Each epoch is a fresh permutation; half of the pictures are mirrored, by chance; shifts are
    uniform in [-shift, shift] each way.

    Raises:
        InputError: see `rounds_per_epoch`.
    """
    epoch, number = divmod(round, rounds_per_epoch(num_rows, batch_size))
    rng = stream(seed, "augment", round)
    mirrored = rng.random(batch_size) < 0.5
    moved = rng.integers(-shift, shift, size=(batch_size, 2), dtype=np.int16, endpoint=True)
    return Batch(
        rows=_permutation(seed, epoch, num_rows)[number * batch_size : (number + 1) * batch_size],
        mirrored=mirrored if mirror else np.zeros(batch_size, bool),
        shift=moved,
    )


def training_batch(round: int, dataset: Dataset, config: Config) -> Batch:
    """The batch of a round as the configuration wants it of that data set."""
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
    """The pictures of a batch, mirrored and shifted, as stored: (B, H, W, C)."""
    return vary(split.take(batch.rows), batch)


def vary(taken: np.ndarray, batch: Batch) -> np.ndarray:
    """Mirror and shift, in place, the pictures (B, H, W, C) of a batch. A shift repeats the edge it uncovers."""
    for channel in range(taken.shape[3]):  # whole pixels at a time would take three times as long
        taken[batch.mirrored, ..., channel] = taken[batch.mirrored, :, ::-1, channel]
    margin = int(np.abs(batch.shift).max(initial=0))
    if margin == 0:
        return taken
    height, width = taken.shape[1:3]
    padded = np.pad(taken, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
    for i, (down, right) in enumerate(batch.shift.tolist()):
        taken[i] = padded[i, margin - down : margin - down + height, margin - right : margin - right + width]
    return taken

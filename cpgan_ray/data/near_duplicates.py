"""Find pictures that are almost the same and in different splits: an attack that was fitted on one of them is scored on the other.

A picture is described by its 8 x 8 lowest frequencies (a perceptual hash as in Zauner, "Implementation and Benchmarking of
Perceptual
Image Hash Functions", 2010), which another size, compression or brightness hardly changes. Candidates share 16 of the 64 bits that
say whether a frequency is above the median; two candidates are near-duplicates if their frequencies correlate.
"""

import logging
from collections.abc import Iterator

import numpy as np

from cpgan_ray.data.store import Dataset, Split

logger = logging.getLogger(__name__)

FREQUENCIES = 8
"""Number of frequencies in each direction."""
BAND_BITS = 16
"""Candidates are equal in at least one group of so many bits. Hashes that differ in up to 3 of 64 bits always are."""
MIN_CORRELATION = 0.995
"""Correlation of the frequencies of near-duplicates."""
GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""
BLOCK_ROWS = 1024


def near_duplicates(dataset: Dataset) -> dict[str, int]:
    """For val, test and final the number of pictures that have a near-duplicate in another split. Splits without any are left out.

    It takes time in proportion to the number of pictures, unless very many are alike, and 64 numbers of memory for each.
    """
    splits = {name: split for name, split in (*dataset.splits.items(), ("final", dataset.final)) if len(split)}
    names = [*splits]
    described = np.concatenate([frequencies(split) for split in splits.values()])
    part = np.repeat(np.arange(len(names)), [len(split) for split in splits.values()])
    repeated = np.zeros(len(part), bool)
    for rows in _candidates(described):
        if (part[rows] == part[rows[0]]).all():
            continue
        held_out = rows[(part[rows] != 0) & ~repeated[rows]]
        for start in range(0, len(held_out), BLOCK_ROWS):
            block = held_out[start : start + BLOCK_ROWS]
            alike = described[block] @ described[rows].T > MIN_CORRELATION
            repeated[block] |= (alike & (part[block][:, None] != part[rows])).any(axis=1)
    counts = np.bincount(part[repeated], minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def warn_of_duplicates(dataset: Dataset) -> dict[str, int]:
    """Log a warning if there are near-duplicates; returns their numbers."""
    found = near_duplicates(dataset)
    if found:
        numbers = ", ".join(f"{count} in {name}" for name, count in found.items())
        logger.warning(
            f"pictures with a near-duplicate in another split: {numbers}; their R2 may be too high: remove copies, or give the "
            "pictures of one person or scene the same identity"
        )
    return found


def frequencies(split: Split) -> np.ndarray:
    """The low frequencies of each picture, without its mean, as a unit vector: (N, 64) float32. A picture of one colour is zero."""
    side_y, side_x, channels = split.image_shape
    low_y, low_x = lowest_cosines(side_y), lowest_cosines(side_x)
    weights = GREY if channels == 3 else np.full(channels, 1 / channels, np.float32)
    described = np.empty((len(split), low_y.shape[0] * low_x.shape[0]), np.float32)
    start = 0
    for pictures in split.iter_batches(BLOCK_ROWS):
        grey = pictures.astype(np.float32) @ weights
        described[start : start + len(grey)] = (low_y @ grey @ low_x.T).reshape(len(grey), -1)
        start += len(grey)
    described[:, 0] = 0
    norm = np.linalg.norm(described, axis=1, keepdims=True)
    flat = norm < max(side_y, side_x)  # a standard deviation of about one grey level
    return np.where(flat, 0, described / np.maximum(norm, 1))


def lowest_cosines(side: int) -> np.ndarray:
    """The lowest frequencies of the orthonormal cosine transform (type 2) of `side` numbers, one in each row: float32 (F, side), F
    at most FREQUENCIES. scipy has the same transform, but its import takes 0.2 s in every process that opens data."""
    frequency, position = np.arange(min(FREQUENCIES, side))[:, None], np.arange(side)
    cosines = np.sqrt(2 / side) * np.cos(np.pi * frequency * (2 * position + 1) / (2 * side))
    cosines[0] /= np.sqrt(2)
    return cosines.astype(np.float32)


def _candidates(described: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of rows (n,), n > 1, that are equal in some of the bits of their hashes."""
    bits = described > np.median(described, axis=1, keepdims=True)
    for first in range(0, bits.shape[1], BAND_BITS):
        packed = np.packbits(bits[:, first : first + BAND_BITS], axis=1)
        band = packed[:, 0].astype(np.int64) * 256 + packed[:, -1]
        order = np.argsort(band, kind="stable")
        cuts = np.flatnonzero(np.diff(band[order])) + 1
        for rows in np.split(order, cuts):
            if len(rows) > 1:
                yield rows

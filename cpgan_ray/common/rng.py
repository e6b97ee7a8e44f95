"""Random streams: one per role, all derived from the seed of the run, so that no player's draws disturb another's."""

import zlib

import numpy as np


def stream(seed: int, *path: str | int) -> np.random.Generator:
    """The random stream of one role, for example `stream(seed, "adversary", "rbf", round)`.

    The same seed and path give the same draws in every process; any other path gives independent ones.
    """
    key = tuple(zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in path)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def torch_seed(seed: int, *path: str | int) -> int:
    """A seed in [0, 2^63) for a `torch.Generator`, derived as `stream` is."""
    return int(stream(seed, *path).integers(2**63))

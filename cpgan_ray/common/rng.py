"""Random streams: one per role, all derived from the run's seed, so that one player's draws never change another player's draws."""

import zlib

import numpy as np


def stream(seed: int, *path: str | int) -> np.random.Generator:
    """The random stream of one role, for example `stream(seed, "adversary", "rbf", round)`.

    The same seed and path give the same draws in every process; any other path gives independent draws.
    """
    key = tuple(zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in path)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def torch_seed(seed: int, *path: str | int) -> int:
    """A seed in [0, 2^63) for a `torch.Generator`, derived in the same way as `stream`."""
    return int(stream(seed, *path).integers(2**63))

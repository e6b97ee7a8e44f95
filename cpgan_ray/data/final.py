"""The final split: some of the identities, which nobody trains on, selects on or looks at before a result is published."""

import zlib
from collections.abc import Mapping

import numpy as np

FINAL = "final"


def hold_out_final(rows: Mapping[str, np.ndarray], identity: np.ndarray, *, fraction: float) -> dict[str, np.ndarray]:
    """Move the rows of the final identities from all splits to a split of their own, `final`.

    An identity is final if crc32 of "final" and its number, divided by 2^32, is below `fraction`. That depends on nothing else, so
    an identity stays final if pictures are added or other settings change. With few identities the split may be empty.

    rows: split -> row numbers; identity: (N,) int64.
    """
    numbers, index = np.unique(identity, return_inverse=True)
    hashes = np.array([zlib.crc32(f"final {number}".encode()) for number in numbers.tolist()], np.float64)
    chosen = (hashes / 2**32 < fraction)[index]
    kept = {name: members[~chosen[members]] for name, members in rows.items()}
    held_out = [members[chosen[members]] for members in rows.values()]
    return kept | {FINAL: np.concatenate([np.empty(0, np.int64), *held_out])}

"""The sets of samples whose codes an evaluation needs: the splits, and the mirror images of those that attacks are fitted on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cpgan_ray.data.store import SPLITS, Dataset, Split

EVALUATION_BLOCK = 500
"""Number of samples in a block."""


@dataclass(frozen=True, eq=False)
class CodeSet:
    """The samples of a split, or their mirror images."""

    split: Split
    mirrored: bool = False

    def __len__(self) -> int:
        return len(self.split)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the samples in `rows` (B,), in the type of the store: (B, H, W, C)."""
        return self._mirror(self.split.take(rows))

    def blocks(self) -> Iterator[np.ndarray]:
        """Copies of all samples in order, EVALUATION_BLOCK at a time (the last block may be smaller): (<=B, H, W, C)."""
        yield from map(self._mirror, self.split.iter_batches(EVALUATION_BLOCK))

    def _mirror(self, samples: np.ndarray) -> np.ndarray:
        return samples[:, :, ::-1].copy() if self.mirrored else samples


def code_sets(dataset: Dataset) -> dict[str, CodeSet]:
    """The sets by name: `train`, `val` and `test`; if the data set may be mirrored, also `train_mirrored` and `val_mirrored`."""
    sets = {name: CodeSet(getattr(dataset, name)) for name in SPLITS}
    if dataset.info.mirrored:
        sets |= {f"{name}_mirrored": CodeSet(sets[name].split, mirrored=True) for name in ("train", "val")}
    return sets

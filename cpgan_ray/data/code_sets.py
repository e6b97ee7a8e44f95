"""The sets of samples whose codes an evaluation needs: the splits, and further views of those that attacks are fitted on: mirror
images, and other draws of a mechanism's noise."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from cpgan_ray.data.store import Dataset, Split

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


def draw_name(name: str, draw: int) -> str:
    """The name of another draw of the codes of a set; draw 0 is the released one."""
    return f"{name}_draw{draw}" if draw else name


def code_sets(dataset: Dataset, *, draws: int = 1) -> dict[str, CodeSet]:
    """The sets by name. Each split: `train`, `val`, `test`, and `attacker` if there is one. Of the splits that attacks are fitted
    on (`Dataset.fit_splits`) also the mirror images, such as `train_mirrored`, if the data set may be mirrored; and with several
    draws of the noise both again, such as `train_draw1` and `train_mirrored_draw1`."""
    sets = {name: CodeSet(split) for name, split in dataset.splits.items()}
    fitted = {name: sets[name] for name in dataset.fit_splits}
    if dataset.info.mirrored:
        fitted |= {f"{name}_mirrored": CodeSet(sets[name].split, mirrored=True) for name in dataset.fit_splits}
    return sets | {draw_name(name, draw): code_set for draw in range(draws) for name, code_set in fitted.items()}


def views_of(names: Collection[str], split: str, *, mirrored: bool) -> list[tuple[str, bool]]:
    """Those of the names that are views of a split, the released codes first: name, whether the samples are mirrored."""
    views = [(split, False), *([(f"{split}_mirrored", True)] if mirrored else [])]
    draws = itertools.takewhile(lambda draw: draw_name(split, draw) in names, itertools.count())
    return [(draw_name(name, draw), is_mirrored) for draw in draws for name, is_mirrored in views]

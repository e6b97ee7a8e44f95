"""The sets of samples whose codes an evaluation needs: the splits, and further views of those that attacks are fitted on: mirror
images, other draws of the release's noise, and shifted copies.

A shifted picture is a new sample of the same kind with a new code, so an attacker who has the encoder gets further pairs for
nothing. The shifts are drawn from a stream of their own, without the run's seed: all runs on a data set have the same copies.
"""

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Batch
from cpgan_ray.config import AttackConfig
from cpgan_ray.data.batching import pictures, plain_batch
from cpgan_ray.data.store import Dataset, Split

EVALUATION_BLOCK = 500
"""Number of samples in a block."""
REFERENCE_SIDE, REFERENCE_SHIFT_PX = 64, 3
"""Unless set, the largest shift is in proportion to the shorter side of a picture: 3 pixels for 64."""
DRAWS = 4
"""Number of draws of the noise that an attacker has of each picture on which an attack is fitted: she knows the release and can
draw as often as she likes. The pictures on which an attack is tuned and scored are released once."""
MAX_SHIFTED_ROWS = 1 << 17
"""Largest number of shifted copies of a split: with more pictures there are fewer copies of each."""
MAX_SHIFTED_VALUES = 1 << 25
"""Largest number of values in the codes of a split's shifted copies: 128 MB of float32."""
SHIFTED = re.compile(r"(\w+)_shifted(\d+)")


@dataclass(frozen=True, eq=False)
class CodeSet:
    """The samples of a split, or copies that are mirrored or shifted as the batch sets it."""

    split: Split
    batch: Batch

    def __len__(self) -> int:
        return len(self.batch.rows)

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """Copies of the samples in `rows` (B,), in the type of the store: (B, H, W, C)."""
        return pictures(self.split, self.batch[rows])

    def blocks(self) -> Iterator[np.ndarray]:
        """Copies of all samples in order, EVALUATION_BLOCK at a time (the last block may be smaller): (<=B, H, W, C)."""
        for start in range(0, len(self), EVALUATION_BLOCK):
            yield self.take(slice(start, start + EVALUATION_BLOCK))


def draw_name(name: str, draw: int) -> str:
    """The name of another draw of the codes of a set; draw 0 is the released one."""
    return f"{name}_draw{draw}" if draw else name


def code_sets(dataset: Dataset, *, draws: int = 1, attacks: AttackConfig | None = None, k: int = 1) -> dict[str, CodeSet]:
    """The sets by name. Each split: `train`, `val`, `test`, and `attacker` if there is one. Of the splits that attacks are fitted
    on (`Dataset.fit_splits`) also the mirror images, such as `train_mirrored`, if the data set may be mirrored; with several draws
    of the noise both again, such as `train_draw1` and `train_mirrored_draw1`; and if attacks on codes of `k` numbers are given, the
    shifted copies that these use, such as `train_shifted1`."""
    names = list(dataset.splits)
    fitted = [*dataset.fit_splits, *(f"{name}_mirrored" for name in dataset.fit_splits if dataset.info.mirrored)]
    names += [draw_name(name, draw) for draw in range(1, draws) for name in fitted] + fitted
    shift = 0
    if attacks is not None:
        shift, copies = max_shift_px(dataset, attacks), num_shifted(dataset, attacks, k=k)
        names += [f"{name}_shifted{number}" for number in range(1, copies + 1) for name in dataset.fit_splits]
    return {name: CodeSet(split_of(name, dataset), set_batch(name, dataset, shift=shift)) for name in dict.fromkeys(names)}


def split_of(name: str, dataset: Dataset) -> Split:
    """The split of a set."""
    return dataset.splits[name.partition("_")[0]]


def set_batch(name: str, dataset: Dataset, *, shift: int) -> Batch:
    """How the samples of a set are mirrored and shifted.

    Pictures in a set of shifted copies are shifted by up to `shift` pixels in both directions, and mirrored with probability 0.5 if
    a mirror image is a valid sample of the data set.
    """
    plain = plain_batch(np.arange(len(split_of(name, dataset))))
    if (copy := SHIFTED.fullmatch(name)) is None:
        return replace(plain, mirrored=np.full(len(plain.rows), "_mirrored" in name))
    rng = stream(0, "view", copy[1], int(copy[2]))
    mirrored = (rng.random(len(plain.rows)) < 0.5) & dataset.info.mirrored
    shifts = rng.integers(-shift, shift, size=(len(plain.rows), 2), dtype=np.int16, endpoint=True)
    return Batch(rows=plain.rows, mirrored=mirrored, shift=shifts)


def max_shift_px(dataset: Dataset, attacks: AttackConfig) -> int:
    """Largest shift of a copy, in pixels; 0 if the samples are not pictures or are too small to be shifted."""
    if dataset.train.dtype != np.uint8:
        return 0
    if attacks.max_shift_px is not None:
        return attacks.max_shift_px
    return round(REFERENCE_SHIFT_PX * min(dataset.image_shape[:2]) / REFERENCE_SIDE)


def num_shifted(dataset: Dataset, attacks: AttackConfig, *, k: int) -> int:
    """Number of shifted copies of each picture, for codes of k numbers."""
    if max_shift_px(dataset, attacks) == 0:
        return 0
    rows = max(len(dataset.splits[name]) for name in dataset.fit_splits)
    return min(attacks.num_shifted, MAX_SHIFTED_ROWS // rows, MAX_SHIFTED_VALUES // (rows * k))


def views_of(names: Collection[str], split: str, *, mirrored: bool) -> list[str]:
    """Those of the names that are the samples of a split, their mirror images and other draws of both, the released codes first."""
    views = [split, *([f"{split}_mirrored"] if mirrored else [])]
    draws = itertools.takewhile(lambda draw: draw_name(split, draw) in names, itertools.count())
    return [draw_name(name, draw) for draw in draws for name in views]


def shifted_of(names: Collection[str], split: str) -> list[str]:
    """Those of the names that are shifted copies of a split."""
    return sorted(name for name in names if (copy := SHIFTED.fullmatch(name)) and copy[1] == split)

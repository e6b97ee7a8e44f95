"""Who sees which pictures: the three disjoint sets of an evaluation.

* The *defender's training set*: the split `train`, on which the privatizer was trained.
* The *attacks' set*: the pictures that an attack is fitted on, and those on which it chooses its settings and stops.
* The *score set*: the split `test`. Neither privatizers nor attacks are fitted or tuned on it. The only exception are the
  bounds of a search (`--max-r2`, `--min-accuracy`): they choose among settings by their numbers on this set.

Variant `fresh`: the attacker has its own pictures. If people are withheld from the defender (`data.attacker_share`), the attack is
fitted on them and tuned on `val`. Otherwise it is fitted on three quarters of the people of `val` and tuned on the rest.
Variant `leaked`: the defender's training pictures have leaked. The attack is fitted on `train` and tuned on `val`.
With people withheld, both variants are fitted on equally many pictures, so that they differ only in what the defender has seen.

Variant `queries_<number>`: the attacker can only query. It has that number of pairs of a picture and its code: three quarters from
`train`, to fit on, and the rest from `val`, to tune on. It has no code of a mirrored, shifted or chosen picture beyond them.
Variant `other_data`: the attacker has pictures of another data set, and the codes of these, on which the attack is fitted and
tuned.

In the variants `fresh`, `leaked` and `other_data` the attacker knows the privatizer. It therefore also has the codes of the mirror
images of its pictures, if the data set may be mirrored (`DatasetInfo.mirrored`), several codes of each picture if the release draws
noise, and the codes of shifted copies. The tuning rows are not copied until all settings are chosen: then an attack is fitted once
more, on fitting and tuning rows together. In all variants the mean picture and the principal components are those of `train`: this
does not make the attacker weaker.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Batch
from cpgan_ray.data import Dataset
from cpgan_ray.data.code_sets import set_batch, shifted_of, split_of, views_of
from cpgan_ray.data.pca import Projection, targets
from cpgan_ray.data.store import ATTACKER, SPLITS, Split
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks.base import BLOCK_VALUES, AttackData, Pairs, StoredPixels
from cpgan_ray.training.adversaries.base import Target

VARIANTS = ("leaked", "fresh")
QUERIES = "queries_"
"""How the names of the variants with a limited number of queries begin."""
OTHER_DATA = "other_data"
"""Variant of an attacker with pictures of another data set."""
TUNING_SHARE = 0.25
"""Share of the people of `val` on which an attack of variant `fresh` is tuned."""
MIN_ROWS = 4
"""An attack is fitted on at least this many pictures, and tuned on at least this many."""

OTHER_PEOPLE = np.iinfo(np.int64).min
"""The smallest identity of people of another data set."""

Codes = dict[str, np.ndarray]
"""Codes (N, k) float32 of each set in `code_sets`: of `train`, `val` and `test` the released ones, and further views of the splits
on which attacks are fitted."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Where the pairs of an attack come from."""

    dataset: Dataset
    codes: Codes
    basis: Projection
    shift: int  # largest shift of the shifted copies
    device: torch.device | None
    other: bool = False  # whether it is another data set than the one that is attacked

    def pairs(self, names: Sequence[str], rows: np.ndarray) -> Pairs:
        """The same rows (n,) of several sets of one split, one set after the other."""
        shown = [(set_batch(name, self.dataset, shift=self.shift)[rows], self.codes[name][rows]) for name in names]
        split = split_of(names[0], self.dataset)
        split = of_other_people(split) if self.other else split
        return pairs(split, shown, basis=self.basis, device=self.device)


@dataclass(frozen=True, eq=False)
class OtherData:
    """Pictures of another data set, of the size of the attacked one, and their codes."""

    dataset: Dataset
    codes: Codes


def of_other_people(split: Split) -> Split:
    """A split of another data set: with a name of its own, because the coordinates of `train` are cached under that name, and with
    identities of its own, because its people are none of the attacked data set."""
    _, people = np.unique(split.identity, return_inverse=True)
    renamed = split.select(np.arange(len(split)), name=f"other_{split.name}")
    return replace(renamed, identity=OTHER_PEOPLE + len(SPLITS) * people + [*SPLITS].index(split.name))


@dataclass(frozen=True, eq=False)
class EncodedCopies:
    """The copies of an attacker's pictures (see `Copies`), read when they are asked for."""

    sources: Sources
    fit_split: str
    fit_rows: np.ndarray
    tune_rows: np.ndarray

    def fit_shifted(self) -> Pairs | None:
        names = shifted_of(self.sources.codes, self.fit_split)
        return self.sources.pairs(names, self.fit_rows) if names else None

    def tune_mirrored(self) -> Pairs | None:
        return self.sources.pairs(["val_mirrored"], self.tune_rows) if "val_mirrored" in self.sources.codes else None

    def tune_shifted(self) -> Pairs | None:
        names = shifted_of(self.sources.codes, "val")
        return self.sources.pairs(names, self.tune_rows) if names else None


def attack_data(
    dataset: Dataset,
    codes: Codes,
    *,
    basis: Projection,
    variant: str = "leaked",
    share: float = 1.0,
    max_rows: int = 0,
    shift: int = 0,
    seed: int,
    trained_against: tuple[str, ...] = (),
    device: torch.device | None = None,
    other: OtherData | None = None,
) -> AttackData:
    """The three sets of one variant; the attack is fitted on that `share` of its pictures, and on at most `max_rows` of them.

    shift: the largest shift of the shifted copies among the codes, in pixels; other: the pictures of variant `other_data`.

    Raises:
        InputError: there are too few pictures to fit or to tune on, or a person is in two of the sets.
    """
    own = dataset if other is None else other.dataset  # the attacker's
    fit_split, fit_rows, tune_rows = attackers_rows(own, variant, seed=seed)
    count = min(len(fit_rows), fit_size(own, variant, seed=seed))
    count = max(1, round(share * count))
    count = min(count, max_rows) if max_rows else count
    if count < len(fit_rows):
        fit_rows = np.sort(stream(seed, "attack", "rows", variant, count).choice(fit_rows, count, replace=False))
    if min(len(fit_rows), len(tune_rows)) < MIN_ROWS:
        raise InputError(
            f"attack variant {variant!r} would be fitted on {len(fit_rows)} pictures and tuned on {len(tune_rows)}; "
            f"each must be at least {MIN_ROWS}: leave out the variant or the share {share:g}, or add pictures"
        )

    sources = Sources(dataset, codes, basis, shift, device)
    owned = sources if other is None else Sources(other.dataset, other.codes, basis, shift, device, other=True)
    only_queries, pictures = is_query_only(variant), dataset.train.dtype == np.uint8
    views = [fit_split] if only_queries else views_of(owned.codes, fit_split, mirrored=own.info.mirrored)
    fit, tune = owned.pairs(views, fit_rows), owned.pairs(["val"], tune_rows)
    lower_bound = torch.from_numpy(-1 - basis.mean).to(device)
    data = AttackData(
        fit=fit,
        tune=tune,
        score=sources.pairs(["test"], np.arange(len(dataset.test))),
        components=torch.from_numpy(np.require(basis.components, np.float32, ["C", "W"])).to(device),
        bounds=(lower_bound, lower_bound + 2) if pictures else value_bounds(fit, tune),
        image_shape=dataset.image_shape,
        seed=seed,
        trained_against=trained_against,
        unit=dataset.info.unit,
        pictures=pictures,
        face=None if dataset.info.face is None else torch.from_numpy(region(dataset.info.face, dataset.image_shape)).to(device),
        views=len(views),
        copies=None if only_queries else EncodedCopies(owned, fit_split, fit_rows, tune_rows),
    )
    ensure_disjoint(data)
    return data


def region(edges: tuple[float, float, float, float], image_shape: tuple[int, int, int]) -> np.ndarray:
    """Which values of a flattened picture (H * W * C,) belong to pixels with their centre in a rectangle: bool.

    edges: top, left, bottom, right as fractions of the sides.
    """
    top, left, bottom, right = edges
    y, x = ((np.arange(side) + 0.5) / side for side in image_shape[:2])
    inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
    return np.repeat(inside[:, :, None], image_shape[2], axis=2).ravel()


def attackers_rows(dataset: Dataset, variant: str, *, seed: int) -> tuple[str, np.ndarray, np.ndarray]:
    """What an attacker of this variant has: the split and its rows to fit on, and the rows of `val` to tune on."""
    all_of_val = np.arange(len(dataset.val))
    if is_query_only(variant):
        fit, tune = query_sizes(dataset, int(variant.removeprefix(QUERIES)))
        rng = stream(seed, "attack", "rows", variant)
        fit_rows, tune_rows = (
            np.sort(rng.choice(len(split), number, replace=False)) for split, number in ((dataset.train, fit), (dataset.val, tune))
        )
        return "train", fit_rows, tune_rows
    if variant in ("leaked", OTHER_DATA):
        return "train", np.arange(len(dataset.train)), all_of_val
    if dataset.attacker is not None:
        return ATTACKER, np.arange(len(dataset.attacker)), all_of_val
    return "val", *split_by_identity(dataset.val.identity, seed=seed)


def is_query_only(variant: str) -> bool:
    """Whether the attacker of a variant has no codes but those of a limited number of pictures."""
    return variant.startswith(QUERIES)


def query_sizes(dataset: Dataset, queries: int) -> tuple[int, int]:
    """How many of the pairs of an attacker with a limited number of queries are to fit on, and to tune on.

    Raises: InputError if the data set has too few pictures.
    """
    tune = min(round(TUNING_SHARE * queries), len(dataset.val))
    if queries - tune > len(dataset.train):
        raise InputError(
            f"attacks.queries has {queries}, but train and val have {len(dataset.train)} and {len(dataset.val)} pictures: lower it "
            f"to at most {len(dataset.train)}"
        )
    return queries - tune, tune


def fit_size(dataset: Dataset, variant: str, *, seed: int) -> int:
    """The number of pictures that an attack of this variant is fitted on. With people withheld from the defender it is the same for
    both variants: the smaller of the two numbers."""
    if dataset.attacker is not None and not is_query_only(variant):
        return min(len(dataset.train), len(dataset.attacker))
    return len(attackers_rows(dataset, variant, seed=seed)[1])


def value_bounds(*sets: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value (D,) of each pixel in the attacker's own sets. Used for signals, which have no bounds by
    definition."""
    extremes = [torch.stack([x.amin(0), -x.amax(0)]) for pairs in sets for _, x in pairs.pixel_blocks()]
    low, negative_high = torch.stack(extremes).amin(0)
    return low, -negative_high


def split_by_identity(identity: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the people on whom an attack is fitted, and of the people on whom it is tuned."""
    people = np.unique(identity)
    tuning_people = stream(seed, "attack", "people").permutation(people)[: max(1, round(TUNING_SHARE * len(people)))]
    tuning = np.isin(identity, tuning_people)
    return np.flatnonzero(~tuning), np.flatnonzero(tuning)


def pairs(
    split: Split, views: Sequence[tuple[Batch, np.ndarray]], *, basis: Projection, device: torch.device | None = None
) -> Pairs:
    """Pictures of a split with their codes (n, k), view after view: each is a batch, which says how its pictures are mirrored and
    shifted, and its codes."""
    batches = [batch for batch, _ in views]
    batch = Batch(
        rows=np.concatenate([b.rows for b in batches]),
        mirrored=np.concatenate([b.mirrored for b in batches]),
        shift=np.concatenate([b.shift for b in batches]),
    )
    codes = np.concatenate([z for _, z in views])
    values, residual = coordinates(split, batch, basis=basis)
    z_, values_, residual_ = (torch.from_numpy(np.require(a, np.float32, ["C", "W"])).to(device) for a in (codes, values, residual))
    target = Target(values_, residual_, int(np.prod(split.image_shape)))
    pixels = StoredPixels(split, batch, np.asarray(basis.mean), device)
    return Pairs(z_, target, pixels, split.identity[batch.rows])


def coordinates(split: Split, batch: Batch, *, basis: Projection) -> tuple[np.ndarray, np.ndarray]:
    """`targets` in blocks, so that only the pictures of one block are in memory."""
    values = np.empty((len(batch.rows), len(basis.components)), np.float32)
    residual = np.empty(len(values), np.float32)
    size = max(1, BLOCK_VALUES // int(np.prod(split.image_shape)))
    for start in range(0, len(values), size):
        block = slice(start, start + size)
        values[block], residual[block] = targets(basis, split, batch[block])
    return values, residual


def ensure_disjoint(data: AttackData) -> None:
    """Check that no person is in two of the three sets.

    Raises: InputError if a person is.
    """
    sets = {name: np.unique(getattr(data, name).identity) for name in ("fit", "tune", "score")}
    for first, second in (("fit", "tune"), ("fit", "score"), ("tune", "score")):
        shared = np.intersect1d(sets[first], sets[second])
        if len(shared):
            raise InputError(
                f"identity {shared[0]} is in the attacks' {first} set and in their {second} set ({len(shared)} people in both): "
                "the sets must not share people; draw new partitions with --data.split identity"
            )

"""Who sees which pictures: the three disjoint sets of an evaluation.

* The *defender's training set*: the split `train`, which the privatizer was trained on.
* The *attacks' set*: what an attack is fitted on, and its last part, on which it chooses its settings and stops.
* The *score set*: the split `test`. Neither privatizers nor attacks are fitted or tuned on it. A
  search's bounds (`--max-r2`, `--min-accuracy`) are the exception: they choose among settings by their numbers on this set.

Variant `fresh`: the attacker has pictures of its own. It is fitted on three quarters of the people of `val` and tuned on the rest.
Variant `leaked`: the defender's training pictures have leaked. The attack is fitted on all of `train` and tuned on `val`: the
harder one for the defender as a rule, since there are more of them and the codes were made for them.

Either way the attacker knows the privatizer, so it has the codes of its pictures' mirror images too, where such are pictures of the
same kind. Mean picture and principal
components are those of `train` in both variants: an attacker who has them is no weaker for it.
"""

import numpy as np
import torch

from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Batch
from cpgan_ray.data import Dataset
from cpgan_ray.data.batching import consecutive_batch
from cpgan_ray.data.pca import Projection, targets
from cpgan_ray.data.store import Split
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks.base import BLOCK_VALUES, AttackData, Pairs, StoredPixels
from cpgan_ray.training.adversaries.base import Target

VARIANTS = ("leaked", "fresh")
TUNING_SHARE = 0.25
"""Of the people of `val`, how many an attacker with pictures of its own keeps for tuning."""
MIN_ROWS = 4
"""Pictures that an attack is fitted on, and tuned on, at the least."""

Codes = dict[str, np.ndarray]
"""(N, k) float32 of `train`, `val` and `test`; of `train_mirrored` and `val_mirrored` where `Nature.mirrored`."""


def attack_data(
    dataset: Dataset,
    codes: Codes,
    *,
    basis: Projection,
    variant: str = "leaked",
    share: float = 1.0,
    max_rows: int = 0,
    seed: int,
    trained_against: tuple[str, ...] = (),
    device: torch.device | None = None,
) -> AttackData:
    """The three sets of one variant; the attack is fitted on that `share` of its pictures, and on at most `max_rows` of them.

    Raises:
        InputError: too few pictures are left to fit or to tune on, or a person is in two of the sets.
    """
    if variant == "leaked":
        split, fitted, tuned = "train", np.arange(len(dataset.train)), ("val", np.arange(len(dataset.val)))
    else:
        mine, kept = split_by_identity(dataset.val.identity, seed=seed)
        split, fitted, tuned = "val", mine, ("val", kept)
    count = max(1, round(share * len(fitted)))
    count = min(count, max_rows) if max_rows else count
    if count < len(fitted):
        fitted = np.sort(stream(seed, "attack", "rows", variant, count).choice(fitted, count, replace=False))
    if min(len(fitted), len(tuned[1])) < MIN_ROWS:
        raise InputError(
            f"attack variant {variant!r} would be fitted on {len(fitted)} pictures and tuned on {len(tuned[1])}; "
            f"each must be at least {MIN_ROWS}: leave the variant or the share {share:g} out, or give more pictures"
        )

    def part(name: str, rows: np.ndarray, *, mirrored: bool = False) -> Pairs:
        chosen: Split = getattr(dataset, name)
        turned = codes[f"{name}_mirrored"][rows] if mirrored else None
        return pairs(chosen, rows, codes[name][rows], turned, basis=basis, device=device)

    mirrored, pictures = dataset.info.mirrored, dataset.train.dtype == np.uint8
    fit, tune = part(split, fitted, mirrored=mirrored), part(*tuned)
    least = torch.from_numpy(-1 - basis.mean).to(device)
    data = AttackData(
        fit=fit,
        tune=tune,
        score=part("test", np.arange(len(dataset.test))),
        components=torch.from_numpy(np.require(basis.components, np.float32, ["C", "W"])).to(device),
        bounds=(least, least + 2) if pictures else value_bounds(fit, tune),
        image_shape=dataset.image_shape,
        seed=seed,
        trained_against=trained_against,
        unit=dataset.info.unit,
        pictures=pictures,
        mirrored=mirrored,
    )
    ensure_disjoint(data)
    return data


def value_bounds(*attackers: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest value (D,) of each pixel in an attacker's own sets: signals have no bounds else."""
    ends = [torch.stack([x.amin(0), -x.amax(0)]) for some in attackers for _, x in some.pixel_blocks()]
    low, high = torch.stack(ends).amin(0)
    return low, -high


def split_by_identity(identity: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the people that an attacker is fitted on, and of those it is tuned on."""
    people = np.unique(identity)
    kept = stream(seed, "attack", "people").permutation(people)[: max(1, round(TUNING_SHARE * len(people)))]
    tuning = np.isin(identity, kept)
    return np.flatnonzero(~tuning), np.flatnonzero(tuning)


def pairs(
    split: Split, rows: np.ndarray, z: np.ndarray, mirrored: np.ndarray | None, *, basis: Projection, device: torch.device | None
) -> Pairs:
    """Some rows of a split with their codes (one for each row), and their mirror images with theirs if given."""
    batch, chosen = consecutive_batch(0, len(rows)), z
    batch = Batch(rows=rows, mirrored=batch.mirrored, shift=batch.shift)
    if mirrored is not None:
        both = np.concatenate([rows, rows])
        turned = np.repeat([False, True], len(rows))
        batch = Batch(rows=both, mirrored=turned, shift=np.zeros((len(both), 2), np.int16))
        chosen = np.concatenate([z, mirrored])
    values, residual = coordinates(split, batch, basis=basis)
    z_, values_, residual_ = (
        torch.from_numpy(np.require(a, np.float32, ["C", "W"])).to(device) for a in (chosen, values, residual)
    )
    target = Target(values_, residual_, int(np.prod(split.image_shape)))
    pixels = StoredPixels(split, batch, np.asarray(basis.mean), device)
    return Pairs(z_, target, pixels, split.identity[batch.rows])


def coordinates(split: Split, batch: Batch, *, basis: Projection) -> tuple[np.ndarray, np.ndarray]:
    """`targets` in blocks, so that no more pictures than a block's are in memory."""
    values = np.empty((len(batch.rows), len(basis.components)), np.float32)
    residual = np.empty(len(values), np.float32)
    size = max(1, BLOCK_VALUES // int(np.prod(split.image_shape)))
    for start in range(0, len(values), size):
        here = slice(start, start + size)
        part = Batch(rows=batch.rows[here], mirrored=batch.mirrored[here], shift=batch.shift[here])
        values[here], residual[here] = targets(basis, split, part)
    return values, residual


def ensure_disjoint(data: AttackData) -> None:
    """Raises: InputError where somebody is in two of the three sets."""
    sets = {name: np.unique(getattr(data, name).identity) for name in ("fit", "tune", "score")}
    for one, other in (("fit", "tune"), ("fit", "score"), ("tune", "score")):
        shared = np.intersect1d(sets[one], sets[other])
        if len(shared):
            raise InputError(
                f"identity {shared[0]} is in the attacks' {one} set and in their {other} set ({len(shared)} people are): "
                "no identity may cross; draw new partitions with --data.split identity"
            )

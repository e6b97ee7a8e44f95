"""Bounds on every attacker for the codes of a run, and the check that no attack is above them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cpgan_ray.evaluation.attacks.base import AttackData
from cpgan_ray.evaluation.bounds.bits import clipped_information, gaussian_information, largest_success, success_by_leakage
from cpgan_ray.evaluation.bounds.channel import Channel
from cpgan_ray.evaluation.bounds.gallery import SIZES, Galleries, GalleryBound, bound_of, draw_galleries, exceeds
from cpgan_ray.evaluation.rate import CodeRate
from cpgan_ray.evaluation.scoring import RowErrors

DISTINCT = "No bound: every picture has a code of its own, and the code has no noise."
UNKNOWN_NOISE = "No bound: the code is drawn at random in a way that is not known here."
FEW_PEOPLE = "No bound: the test split has too few people to draw galleries of them."
NO_BUDGET = "No bound: the code is neither rounded nor noisy, so that it may carry any number of bits."
ROWS_PER_NUMBER = 20
"""A covariance of k numbers is used only if so many times more codes were measured: from few codes its determinant is too small,
and with it the bound."""
USELESS = 0.999
"""A probability from here on is no bound worth stating."""


class BoundExceededError(RuntimeError):
    """An attack is better than any attack can be: the evaluation, or what it knows about the release, is wrong."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What no attacker exceeds."""

    gallery: tuple[GalleryBound, ...] = ()
    """For each size; empty if there is no such bound."""
    no_gallery: str | None = None
    """Why there is none, in words."""
    information: float | None = None
    """Largest number of bits about the picture that the code carries."""
    information_from: str | None = None
    """What that number follows from."""
    candidates: int
    """Number of test pictures, among which an attacker may try to find the right one."""
    success: float | None = None
    """Largest probability of finding it that the information allows; None: no bound below certainty."""
    leakage_success: float | None = None
    """Largest probability that the number of different codes allows."""

    @property
    def tightest(self) -> GalleryBound | None:
        """The gallery bound whose interval has the lowest upper end."""
        return min(self.gallery, key=lambda bound: bound.high, default=None)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"gallery": [asdict(bound) for bound in self.gallery]}


def measure_bounds(data: AttackData, channel: Channel, rate: CodeRate) -> tuple[Bounds, list[Galleries]]:
    """The bounds on every attacker on the codes of the score set, and the galleries that they come from."""
    galleries, reason = galleries_of(data, channel)
    information, source = information_of(channel, rate, k=data.score.z.shape[1])
    candidates = len(data.score)
    prior = 1 / candidates
    success = None if information is None else largest_success(information, prior=prior)
    leakage = None if rate.log2_codes is None else success_by_leakage(rate.log2_codes, prior=prior)
    bounds = Bounds(
        gallery=tuple(bound_of(part) for part in galleries),
        no_gallery=reason,
        information=information,
        information_from=source,
        candidates=candidates,
        success=success if success is not None and success < USELESS else None,
        leakage_success=leakage if leakage is not None and leakage < USELESS else None,
    )
    return bounds, galleries


def galleries_of(data: AttackData, channel: Channel) -> tuple[list[Galleries], str | None]:
    """Galleries of every size that has enough people; and if there are none, the reason why they bound nothing."""
    if channel.random or (channel.noise and channel.clean is None):
        return [], UNKNOWN_NOISE
    y = data.score.z.cpu().numpy() if channel.clean is None else channel.clean
    if not channel.noise and len(np.unique(y, axis=0)) == len(y):
        return [], DISTINCT
    drawn = (
        draw_galleries(data.score.pixels.__getitem__, y, data.score.identity, n=n, noise=channel.noise, seed=data.seed)
        for n in SIZES
    )
    galleries = [part for part in drawn if part is not None]
    if not galleries:
        return [], FEW_PEOPLE
    if not any(part.variances.any() for part in galleries):
        return [], DISTINCT
    return galleries, None


def information_of(channel: Channel, rate: CodeRate, *, k: int) -> tuple[float | None, str | None]:
    """The smallest bound on the information of a code, and what it follows from; None if there is none."""
    found: dict[str, float] = {}
    if channel.noise:
        found["the noise and the clipping of the code"] = clipped_information(k, clip=channel.clip, noise=channel.noise)
        if channel.clean is not None and len(channel.clean) >= ROWS_PER_NUMBER * k:
            found["the noise and the covariance of the codes of these pictures"] = gaussian_information(
                channel.clean, noise=channel.noise
            )
    if rate.information is not None:
        found["the mean length of these codes under a table made beforehand"] = rate.information
    if rate.log2_codes is not None:
        found["the number of different codes"] = rate.log2_codes
    if not found:
        return None, None
    source = min(found, key=found.__getitem__)
    return found[source], source


def ensure_below(attacks: Mapping[str, RowErrors], galleries: Sequence[Galleries]) -> None:
    """Check that no attack is above a gallery bound beyond the intervals.

    attacks: errors of each attack on the score rows.

    Raises: BoundExceededError with the attack and both numbers.
    """
    for name, rows in attacks.items():
        for part in galleries:
            if exceeds(rows.errors, part):
                cap, n = bound_of(part).r2, part.rows.shape[1]
                r2 = 1 - rows.errors[part.rows].sum() / part.mean_errors.sum()
                raise BoundExceededError(
                    f"attack {name} recovers R2 {r2:.4f} of the pictures of {len(part.rows)} galleries, but no attack can recover "
                    f"more than {cap:.4f} (galleries of {n}): the codes that were attacked are not those that are released, or the "
                    "noise is not the one of the configuration"
                )

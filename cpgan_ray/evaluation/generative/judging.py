"""What draws show of the pictures, and what controls show that do not use the code. Everything is paired picture by picture.

Two measures: the likeness of a draw to its own picture by the judge of identity (the cosine of their embeddings), and SSIM. All
draws and controls, and the nearest picture too, are shown in the same principal components, so that no measure favours fine
detail.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cpgan_ray.evaluation.attacks.base import AttackData, Pairs
from cpgan_ray.evaluation.generative.controls import CONTROLS
from cpgan_ray.evaluation.identity.identification import identification
from cpgan_ray.evaluation.identity.judges import Judge
from cpgan_ray.evaluation.linkage import linkage
from cpgan_ray.evaluation.scoring import mean_interval
from cpgan_ray.evaluation.similarity import KERNEL, as_unit, ssim

SAMPLE = "sample"
"""Name of the attack itself: the draw that it selects."""


@dataclass(frozen=True)
class Measure:
    """A mean over pictures with its 95 % interval over people."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Judged:
    """How similar pictures of one kind are to the true ones. None: not measured, because there is no judge, or SSIM needs larger
    pictures."""

    name: str
    likeness: Measure | None
    auc: Measure | None  # of linking people
    mean_rank: float | None  # of the true picture among all
    ssim: Measure | None


@dataclass(frozen=True)
class Gain:
    """The measures of the attack less those of a control, paired picture by picture."""

    control: str
    likeness: Measure | None
    ssim: Measure | None


@dataclass(frozen=True)
class Judgement:
    """All kinds of pictures, and the gains of the attack over its controls."""

    judge: str | None  # its name
    kinds: tuple[Judged, ...]
    gains: tuple[Gain, ...]

    @property
    def sample(self) -> Judged:
        """The attack itself."""
        return next(kind for kind in self.kinds if kind.name == SAMPLE)


def can_judge(data: AttackData, judge: Judge | None) -> bool:
    """Whether there is a measure for these pictures."""
    return judge is not None or has_ssim(data)


def has_ssim(data: AttackData) -> bool:
    """Whether the samples are pictures that are large enough for SSIM."""
    return data.pictures and data.image_shape is not None and min(data.image_shape[:2]) >= KERNEL


def judge_kinds(data: AttackData, score: Pairs, kinds: Mapping[str, Tensor], *, judge: Judge | None) -> Judgement:
    """Compare each kind of pictures with the true ones.

    score: the true pictures; kinds: coordinates (N, p) by name, among them SAMPLE and the controls.
    """
    likeness: dict[str, np.ndarray] = {}
    similarities: dict[str, np.ndarray] = {}
    judged = []
    truth = None if judge is None else judge.of_pictures(score)
    for name, coordinates in kinds.items():
        auc = rank = None
        if judge is not None and truth is not None:
            embedded = judge.of_reconstructions(lambda block: pixels(data, block), coordinates, rows=score.pixel_rows)
            likeness[name] = np.einsum("nq,nq->n", embedded, truth)
            link = linkage(embedded, truth, score.identity, seed=data.seed)
            auc = None if link is None else Measure(link.auc, link.low, link.high)
            rank = identification(embedded, truth, score.identity, seed=data.seed).mean_rank
        if has_ssim(data):
            similarities[name] = ssim_of(data, score, coordinates)
        of_likeness, of_ssim = (mean_of(values.get(name), score, seed=data.seed) for values in (likeness, similarities))
        judged.append(Judged(name, of_likeness, auc, rank, of_ssim))
    gains = tuple(
        Gain(name, gain_of(likeness, name, score, seed=data.seed), gain_of(similarities, name, score, seed=data.seed))
        for name in CONTROLS
    )
    return Judgement(None if judge is None else judge.name, tuple(judged), gains)


def pixels(data: AttackData, coordinates: Tensor) -> Tensor:
    """Possible pictures (B, D) minus the mean picture, from coordinates (B, p)."""
    x = coordinates @ data.components
    return x if data.bounds is None else x.clamp(*data.bounds)


def ssim_of(data: AttackData, score: Pairs, coordinates: Tensor) -> np.ndarray:
    """SSIM (N,) of pictures with these coordinates (N, p) to the true ones."""
    assert data.bounds is not None and data.image_shape is not None
    mean, parts, start = -data.bounds[0] - 1, [], 0
    for _, x in score.pixel_blocks():
        shown = pixels(data, coordinates[start : (start := start + len(x))])
        a, b = (as_unit((values + mean).cpu().view(len(x), *data.image_shape)) for values in (shown, x))
        parts.append(ssim(a, b))
    return np.concatenate(parts)


def mean_of(values: np.ndarray | None, score: Pairs, *, seed: int) -> Measure | None:
    """The mean of a value (N,) of each picture, with its interval over people."""
    if values is None:
        return None
    return Measure(float(values.mean()), *mean_interval(values, score.identity, seed=seed))


def gain_of(values: Mapping[str, np.ndarray], control: str, score: Pairs, *, seed: int) -> Measure | None:
    """The attack's values less those of a control."""
    return mean_of(values[SAMPLE] - values[control] if values else None, score, seed=seed)

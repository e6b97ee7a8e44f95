"""The generative attack of a tournament, with its controls and its judgement."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cpgan_ray.common.process import trim_memory
from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Metrics
from cpgan_ray.evaluation.attacks.base import Fitted
from cpgan_ray.evaluation.fitting import FLOOR, EvaluationContext, FittedAttack
from cpgan_ray.evaluation.generative.controls import nearest_pictures, of_other_people
from cpgan_ray.evaluation.generative.draws import Generator, fit_generator, fit_unconditional
from cpgan_ray.evaluation.generative.flow import FlowSettings
from cpgan_ray.evaluation.generative.judging import SAMPLE, Judgement, Measure, can_judge, judge_kinds
from cpgan_ray.evaluation.generative.selection import Encode, Recoder, closest, true_distances
from cpgan_ray.evaluation.identity.embedding_target import some
from cpgan_ray.evaluation.identity.judges import Judge

logger = logging.getLogger(__name__)

DRAWS = 8
"""Number of draws of each picture, of which the attack selects one."""
SHOWN = 3
"""Number of draws of each picture in the panels."""
MAX_SCORED = 2048
"""Largest number of score pictures that are judged."""


@dataclass(frozen=True, eq=False)
class GenerativeAttack:
    """The fitted attack, for the panels, and what it shows."""

    generator: Generator
    judgement: Judgement
    pictures: int  # number of score pictures that were judged
    selected: bool  # whether it selects among its draws by their codes, which needs the privatizer
    seconds: float
    seed: int

    def draws(self, z: torch.Tensor) -> torch.Tensor:
        """SHOWN draws of each code (N, k), as coordinates (SHOWN, N, p)."""
        return self.generator.draw(z, number=SHOWN, seed=self.seed)

    def metrics(self) -> Metrics:
        """The metrics that a run logs."""
        sample = self.judgement.sample
        values = with_ends("generative/likeness", sample.likeness) | with_ends("generative/ssim", sample.ssim)
        values |= with_ends("generative/auc", sample.auc)
        if sample.mean_rank is not None:
            values["generative/identification_rank"] = sample.mean_rank / self.pictures
        for gain in self.judgement.gains:
            values |= with_ends(f"generative/{gain.control}/likeness_gain", gain.likeness)
            values |= with_ends(f"generative/{gain.control}/ssim_gain", gain.ssim)
        return values | {"generative/seconds": self.seconds}

    def as_json(self) -> dict[str, Any]:
        """The entry `generative` of the report."""
        numbers = {"pictures": self.pictures, "draws": DRAWS, "selected": self.selected, "seconds": round(self.seconds, 2)}
        return asdict(self.judgement) | numbers


def with_ends(name: str, value: Measure | None) -> Metrics:
    """A number and the ends of its interval as metrics; none if it was not measured."""
    return {} if value is None else {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}


def attack_by_draws(
    context: EvaluationContext,
    attacks: Sequence[FittedAttack],
    *,
    strongest: FittedAttack,
    floor: FittedAttack,
    judge: Judge | None,
    encode: Encode | None,
    flow: FlowSettings | None = None,
) -> GenerativeAttack | None:
    """Fit the generative attack and judge it; None if nothing can judge these samples.

    attacks: all of the tournament; strongest: of those on z; floor: of those on the true answers; encode: the privatizer, None if
    the attacker does not have it; flow: settings of the flows.
    """
    data = context.data(context.first_variant)
    if not data.pictures or not can_judge(data, judge):
        return None
    trim_memory()
    started, seed = time.perf_counter(), context.seed
    rows = np.arange(len(data.score))
    if len(rows) > MAX_SCORED:
        rows = np.sort(stream(seed, "generative", "judged").choice(rows, MAX_SCORED, replace=False))
    score = some(data.score, rows)
    kernel = kernel_of(attacks, context.first_variant)
    generator = fit_generator(data, strongest.fitted, flow, kernel=kernel, name="z")
    draws = generator.draw(score.z, number=DRAWS, seed=seed)
    truth = score.target.values
    selected = draws[0]
    if encode is not None:
        selected = closest(draws, Recoder(encode, data, np.asarray(context.pca_basis().mean)).distances(draws, score.z))
    of_labels = fit_generator(context.data(FLOOR), floor.fitted, flow, kernel=kernel_of(attacks, FLOOR), name="labels")
    kinds = {
        SAMPLE: selected,
        "single": draws[0],
        "oracle": closest(draws, true_distances(draws, truth)),
        "start": generator.starts(score.z),
        "shuffled": selected[torch.from_numpy(of_other_people(score.identity, seed=seed)).to(selected.device)],
        "labels": of_labels.draw(context.floor(data).score.z[torch.from_numpy(rows)], number=1, seed=seed)[0],
        "unconditional": fit_unconditional(data, flow).draw(score.z, torch.zeros_like(truth), path=("unconditional",), seed=seed),
        "nearest": nearest_pictures(data, score.z),
    }
    judgement = judge_kinds(data, score, kinds, judge=judge)
    seconds = time.perf_counter() - started
    logger.info(f"generative attack: {sentence(judgement)}, {seconds:.0f} s")
    return GenerativeAttack(generator, judgement, len(score), encode is not None, seconds, seed)


def kernel_of(attacks: Sequence[FittedAttack], variant: str) -> Fitted | None:
    """The kernel attack of a variant on all its pictures; None if there is none."""
    return next((a.fitted for a in attacks if (a.spec.name, a.spec.variant, a.spec.share) == ("kernel", variant, 1)), None)


def sentence(judgement: Judgement) -> str:
    """The result in words, for the log."""
    sample = judgement.sample
    measured = {"likeness": sample.likeness, "SSIM": sample.ssim}
    return ", ".join(f"{name} {value.mean:.3f}" for name, value in measured.items() if value is not None)

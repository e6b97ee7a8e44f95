"""The attacks on the codes of a comparison's cells, and what cells share of them.

A process keeps the last attacks on true labels, and the last tournament on hard answers, which do not depend on the mechanism.
Cells run seed by seed, so both are made once for each seed in each process.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from cpgan_ray.analysis.cells import Cell
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, task_of
from cpgan_ray.evaluation.bounds.channel import Channel
from cpgan_ray.evaluation.fitting import (
    FLOOR,
    REFERENCES,
    AttackSpec,
    EvaluationContext,
    FittedAttack,
    answers_attacks,
    attack_specs,
    fit_in_process,
    fit_stacks,
    hard_answers,
    trained_against,
)
from cpgan_ray.evaluation.tournament import TournamentResult, score_attacks
from cpgan_ray.mechanisms import Released
from cpgan_ray.pipelines.reproduce.cell_config import cell_config


def context_of(released: Released, cell: Cell, config: Config, dataset: Dataset) -> EvaluationContext:
    """What the attacks on a cell's codes need."""
    return EvaluationContext(
        dataset,
        released.codes,
        config.attacks,
        cell.seed,
        trained_against(config),
        config.data.labels,
        hard_answers(released.logits, task_of(dataset, config.data.labels)),
        channel=released.channel or Channel.of_mechanism(list(released.codes), cell_config(cell, config).privatizer),
        late_labels=config.data.late_labels,
    )


_on_answers: dict[Hashable, TournamentResult] = {}
"""The tournament on hard answers that this process has made last."""


def attack(released: Released, context: EvaluationContext, *, brief: bool) -> TournamentResult:
    """Fit all attacks on a cell's codes, and score them. brief: see `attack_specs`.

    Hard answers are attacked once for all cells that send the same ones: `answers` with one bit, and `answers_subset` with all.
    """
    if not context.sends_answers:
        return tournament(released, context, brief=brief)
    key = (*conditions(context), brief, released.bits, sha256_of(context.codes))
    if key not in _on_answers:
        result = tournament(released, context, brief=brief)
        _on_answers.clear()
        _on_answers[key] = result
    return _on_answers[key]


def sha256_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays."""
    total = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        total.update(f"{name} {values.shape} {values.dtype}\n".encode() + np.ascontiguousarray(values).tobytes())
    return total.hexdigest()


def conditions(context: EvaluationContext) -> tuple[Hashable, ...]:
    """What attacks depend on in addition to the codes."""
    dataset = context.dataset
    of_data = (dataset.digest, len(dataset.test), dataset.attacker_share)
    return *of_data, context.config, context.seed, context.task, context.late_labels, context.trained_against


def tournament(released: Released, context: EvaluationContext, *, brief: bool) -> TournamentResult:
    """See `attack`."""
    specs = attack_specs(context.config, context.dataset, brief=brief, answers=context.has_answers)
    attacks = [*fit_in_process([spec for spec in specs if spec.variant not in REFERENCES], context, done=lambda attack: None)]
    attacks += answers_attacks(specs, attacks, context)
    attacks += floor_attacks([spec for spec in specs if spec.variant == FLOOR], context)
    attacks += fit_stacks(attacks, context, done=lambda attack: None)
    return score_attacks(attacks, context, raw_bits=released.bits)


_floors: dict[Hashable, list[FittedAttack]] = {}
"""The attacks on the true labels that this process has fitted last."""


def floor_attacks(specs: Sequence[AttackSpec], context: EvaluationContext) -> list[FittedAttack]:
    """Fit the attacks on the true labels, which do not depend on the codes: cells with the same data, attacks and seed share
    them."""
    dataset, names = context.dataset, tuple(sorted(name for name in context.codes if "_draw" not in name))
    key = (*specs, dataset.digest, dataset.attacker_share, context.config, context.seed, context.task, names)
    if key not in _floors:
        fitted = fit_in_process(specs, context, done=lambda attack: None)
        _floors.clear()
        _floors[key] = fitted
    return _floors[key]

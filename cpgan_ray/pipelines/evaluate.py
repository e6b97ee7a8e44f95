"""Evaluation of codes: the tournament of fresh attacks, as Ray tasks or in this process, and its report."""

import dataclasses
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpgan_ray.common.process import available_cpus
from cpgan_ray.config import Config, RuntimeConfig
from cpgan_ray.data import Dataset
from cpgan_ray.data.task import describe_task
from cpgan_ray.evaluation.client import client_cost
from cpgan_ray.evaluation.degenerate import code_warnings, is_uninformative
from cpgan_ray.evaluation.fitting import (
    EvaluationContext,
    FittedAttack,
    attack_specs,
    fit_in_process,
    fit_stacks,
    hard_answers,
    stack_specs,
)
from cpgan_ray.evaluation.generative.attack import attack_by_draws
from cpgan_ray.evaluation.generative.selection import Encode
from cpgan_ray.evaluation.identity.embedding_target import embeddings_of
from cpgan_ray.evaluation.late_tasks import late_tasks, twin_answers
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.report.card import Curves, card
from cpgan_ray.evaluation.report.paired import comparison
from cpgan_ray.evaluation.report.panels import attack_panels
from cpgan_ray.evaluation.report.report import LIBRARIES, EvaluationReport, alice_answers, console_lines, reference_rows, twin_codes
from cpgan_ray.evaluation.report.threat_model import limits, threat_model
from cpgan_ray.evaluation.tournament import TournamentResult, identity_judge, score_attacks
from cpgan_ray.evaluation.tournament_numbers import as_json, failed_tournament
from cpgan_ray.evaluation.utility import head_answers, label_metrics, utility_metrics
from cpgan_ray.models import build_privatizer

logger = logging.getLogger(__name__)


def attacks_on_ray(runtime: RuntimeConfig) -> bool:
    """Whether the attacks are Ray tasks. With `auto`: if there is a cluster to join, or this machine has a second core."""
    address = runtime.address or os.environ.get("RAY_ADDRESS")
    return runtime.backend == "ray" or (runtime.backend == "auto" and (bool(address) or available_cpus() > 1))


def fit_attacks(context: EvaluationContext, *, runtime: RuntimeConfig, brief: bool = False) -> list[FittedAttack]:
    """Fit all attacks of the tournament, as Ray tasks in parallel or one after the other in this process. Logs a line for each."""
    specs = attack_specs(
        context.config,
        context.dataset,
        brief=brief,
        answers=context.has_answers,
        embeddings=bool(context.embeddings),
        other=None if context.other is None else context.other.dataset,
    )
    context.pca_basis()  # computed once here, before many processes need it
    num_done, num_attacks = 0, len(specs) + len(stack_specs(specs, context.config))

    def log_attack(attack: FittedAttack) -> None:
        nonlocal num_done
        num_done += 1
        spec = attack.spec
        share = "" if spec.share == 1 else f" {100 * spec.share:g} %"
        logger.info(
            f"attack {num_done}/{num_attacks}: {spec.name} ({spec.variant}{share}), tuning R2 {attack.fitted.tune_r2:.3f}, "
            f"{attack.seconds:.0f} s"
        )

    if attacks_on_ray(runtime):
        from cpgan_ray.distributed.tasks import fit_on_ray

        attacks = fit_on_ray(specs, context, runtime=runtime, done=log_attack)
    else:
        torch.set_num_threads(runtime.threads or available_cpus())
        attacks = fit_in_process(specs, context, done=log_attack)
    return attacks + fit_stacks(attacks, context, done=log_attack)


def with_embeddings(context: EvaluationContext) -> EvaluationContext:
    """The context with the judge's embeddings of the attacker's pictures, for the attacks that predict them. Unchanged if identity
    cannot be judged."""
    if (judge := identity_judge(context, context.data("leaked"))) is None:
        return context
    logger.debug(f"{judge.name} judges who is on the pictures")
    data = context.data(context.first_variant)
    return dataclasses.replace(context, embeddings=embeddings_of(judge, data, seed=context.seed))


def with_draws(
    result: TournamentResult, attacks: Sequence[FittedAttack], context: EvaluationContext, *, encode: Encode | None
) -> TournamentResult:
    """The result with the generative attack. encode: see `evaluate_codes`."""
    generative = attack_by_draws(
        context,
        attacks,
        strongest=result.strongest.attack,
        floor=result.floor.attack,
        judge=identity_judge(context, context.data("leaked")),
        encode=encode,
    )
    return dataclasses.replace(result, generative=generative)


def client_of_run(config: Config, codes: Codes, dataset: Dataset) -> dict[str, Any]:
    """The report's entry on the client's cost of a run with these codes."""
    with torch.random.fork_rng(devices=()):
        network = build_privatizer(config.privatizer, k=config.k, image_shape=dataset.image_shape)
    return asdict(client_cost(network, codes["train"], image_shape=dataset.image_shape))


def evaluate_codes(
    context: EvaluationContext,
    *,
    runtime: RuntimeConfig,
    logits: Mapping[str, np.ndarray],
    description: Mapping[str, Any],
    curves: Curves,
    undefended: Path | None = None,
    against: Path | None = None,
    encode: Encode | None = None,
) -> EvaluationReport:
    """Run the tournament on codes, and build its report.

    logits: the utility head's logits on the codes, see `utility_metrics`; empty if there is no head. With those of all codes the
    answers floor is measured, too;
    description: `name`, `k`, `privacy_weight`, `seed`, `settings` of the report;
    undefended: the output folder of a finished undefended twin;
    against: a report folder for a paired comparison;
    encode: the privatizer, with which the generative attack selects among its draws; None: it does not select.
    """
    task, utility = context.task, dict[str, Any](utility={}, labels=[])
    if logits:
        utility = {
            "utility": utility_metrics(logits, context.dataset, task, seed=context.seed),
            "labels": label_metrics(logits["test"], context.dataset, task, seed=context.seed),
        }
    warnings = code_warnings(context.codes, context.dataset, task, logits=logits, seed=context.seed)
    for line in console_lines(utility["utility"], warnings):
        logger.info(line)
    context = dataclasses.replace(context, answers=hard_answers(logits, task))
    brief = is_uninformative(warnings)
    context = context if brief else with_embeddings(context)
    attacks = fit_attacks(context, runtime=runtime, brief=brief)
    result = score_attacks(attacks, context)
    if context.config.generative and not brief:
        result = with_draws(result, attacks, context, encode=encode)
    if (failure := failed_tournament(result)) is not None:
        logger.warning(failure.message)
        warnings = [*warnings, failure]
    twin = twin_codes(undefended / "privatizer.pt2", context.dataset) if undefended else None
    answers_of_twin = twin_answers(undefended, twin, task) if undefended and twin and context.late_labels else None
    late = late_tasks(context, twin=answers_of_twin)
    attacked = description.get("attacked", {})
    report: dict[str, Any] = dict(description) | {
        "made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "warnings": [asdict(warning) for warning in warnings],
        "task": describe_task(context.dataset, task),
        **utility,
        **as_json(result),
        "late_tasks": None if late is None else late.as_json(),
        "references": reference_rows(result, undefended),
        "alice": alice_answers(undefended) if undefended else None,
        "threat_model": threat_model(context, queries=attacked["queries"] if attacked.get("black_box") else None),
        "limits": limits(
            context.dataset,
            stochastic=attacked.get("stochastic", False),
            reduced=bool(attacked.get("reduced_to")),
            noisy=bool(context.channel.noise),
            drawn=result.generative is not None,
        ),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
    }
    if against is not None:
        report["comparison"] = comparison(result, against, seed=context.seed)
    panels = attack_panels(result, context, undefended=twin)
    answers = head_answers(logits, context.dataset, task) if logits else None
    return EvaluationReport(result, report, panels, card(report, panels=panels, curves=curves), answers)

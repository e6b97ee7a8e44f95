"""From codes to a report: the tournament of fresh attacks, as Ray tasks or in this process."""

import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpgan_ray.common.process import available_cpus
from cpgan_ray.config import RuntimeConfig
from cpgan_ray.evaluation.degenerate import code_warnings, says_nothing
from cpgan_ray.evaluation.fitting import EvaluationContext, FittedAttack, attack_specs, fit_in_process
from cpgan_ray.evaluation.report.card import Curves, card
from cpgan_ray.evaluation.report.paired import comparison
from cpgan_ray.evaluation.report.panels import attack_panels
from cpgan_ray.evaluation.report.report import LIBRARIES, EvaluationReport, console_lines, references, twin_codes
from cpgan_ray.evaluation.report.threat_model import limits, threat_model
from cpgan_ray.evaluation.tournament import as_json, score_attacks
from cpgan_ray.evaluation.utility import labels_of, utility_of

logger = logging.getLogger(__name__)


def attacks_on_ray(runtime: RuntimeConfig) -> bool:
    """Whether the attacks are Ray tasks. `auto`: where there is a cluster to join, or a second core here."""
    named = runtime.address or os.environ.get("RAY_ADDRESS")
    return runtime.backend == "ray" or (runtime.backend == "auto" and (bool(named) or available_cpus() > 1))


def fit_attacks(context: EvaluationContext, *, runtime: RuntimeConfig, brief: bool = False) -> list[FittedAttack]:
    """All attacks of the tournament, as Ray tasks in parallel or one after the other here; a line on standard error for each."""
    todo = attack_specs(context.config, context.dataset, brief=brief)
    context.pca_basis()  # once, before many processes ask for it
    done = 0

    def say(made: FittedAttack) -> None:
        nonlocal done
        done += 1
        e = made.spec
        share = "" if e.share == 1 else f" {100 * e.share:g} %"
        logger.info(
            f"attack {done}/{len(todo)}: {e.name} ({e.variant}{share}), tuning R2 {made.fitted.tune_r2:.3f}, {made.seconds:.0f} s"
        )

    if attacks_on_ray(runtime):
        from cpgan_ray.distributed.tasks import fit_on_ray

        return fit_on_ray(todo, context, runtime=runtime, done=say)
    torch.set_num_threads(runtime.threads or available_cpus())
    return fit_in_process(todo, context, done=say)


def evaluate_codes(
    context: EvaluationContext,
    *,
    runtime: RuntimeConfig,
    logits: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    curves: Curves,
    undefended: Path | None = None,
    against: Path | None = None,
) -> EvaluationReport:
    """The tournament on some codes, and all that is written about it.

    logits: the utility head's answers to them, see `utility_of`; empty where there is none;
    about: `name`, `k`, `privacy_weight`, `seed`, `settings` of the report;
    undefended: the output folder of a finished undefended twin; against: a report folder to compare with, pair by pair.
    """
    told: dict[str, Any] = {"utility": {}, "labels": []}
    if logits:
        told = {
            "utility": utility_of(logits, context.dataset, context.task, seed=context.seed),
            "labels": labels_of(logits["test"], context.dataset, context.task, seed=context.seed),
        }
    warnings = code_warnings(context.codes, context.dataset, context.task, logits=logits, seed=context.seed)
    for line in console_lines(told["utility"], warnings):
        logger.info(line)
    made = fit_attacks(context, runtime=runtime, brief=says_nothing(warnings))
    result = score_attacks(made, context)
    report: dict[str, Any] = dict(about) | {
        "made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "warnings": [asdict(warning) for warning in warnings],
        **told,
        **as_json(result),
        "references": references(result, undefended),
        "threat_model": threat_model(context),
        "limits": limits(context.dataset, stochastic=about.get("attacked", {}).get("stochastic", False)),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
    }
    if against is not None:
        report["comparison"] = comparison(result, against, seed=context.seed)
    twin = twin_codes(undefended / "privatizer.pt2", context.dataset) if undefended else None
    panels = attack_panels(result, context, undefended=twin)
    return EvaluationReport(result, report, panels, card(report, panels=panels, curves=curves))

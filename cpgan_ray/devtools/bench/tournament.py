"""Measures the attacks of a tournament on a finished run: CPU seconds and R2 of each."""

import contextlib
import dataclasses
import logging
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpgan_ray.devtools.bench.settings import Settings
from cpgan_ray.errors import InputError

if TYPE_CHECKING:
    from cpgan_ray.evaluation.fitting import EvaluationContext

logger = logging.getLogger(__name__)


def measure_tournament(s: Settings, folder: Path) -> dict[str, Any]:
    """CPU seconds, R2 on the tuning rows and R2 on the score rows of each attack, fitted on all pictures of one variant with one
    torch thread; and `total_cpu_s` of all of them. CPU seconds include reading the pictures, but not encoding them.

    Raises: InputError if the folder has no finished run, or the run has no such attack.
    """
    assert s.tournament is not None
    return measure_attacks(context_of_run(s.tournament), names=s.tournament_attacks, variant=s.tournament_variant)


def context_of_run(folder: Path) -> "EvaluationContext":
    """The codes of a finished run, and what else its attacks need, with the settings of the run.

    Raises: InputError if the folder has no finished run.
    """
    from cpgan_ray.cli.attack import find_target
    from cpgan_ray.common.process import set_up_process
    from cpgan_ray.config.folders.targets import attack_job_of, complete_attack_job
    from cpgan_ray.data import load
    from cpgan_ray.evaluation.encoders.encoder import encode_all
    from cpgan_ray.evaluation.fitting import EvaluationContext, hard_answers, trained_against
    from cpgan_ray.pipelines.attack import attacked_config, head_logits, open_target, released_codes
    from cpgan_ray.tracking import fetch_run

    target = find_target(str(folder), fetch=fetch_run)
    if target.config is None:
        raise InputError(f"tournament is {folder}, which is no run: give the output folder of a finished run")
    set_up_process(threads=1)
    job = complete_attack_job(attack_job_of(target), target)
    with contextlib.closing(open_target(target, job)) as encoder:
        config = attacked_config(target, job, encoder, folder)
        dataset = load(config)
        codes = encode_all(encoder, dataset, config.attacks)
    codes, channel = released_codes(target, codes, dataset, seed=config.seed)
    logits = head_logits(target, codes, dataset, config)
    context = EvaluationContext(
        dataset, codes, config.attacks, config.seed, trained_against(config), config.data.labels, channel=channel
    )
    return dataclasses.replace(context, answers=hard_answers(logits, context.task))


def measure_attacks(context: "EvaluationContext", *, names: tuple[str, ...], variant: str) -> dict[str, Any]:
    """The values of `measure_tournament`.

    Raises: InputError if one of the names is of no attack of this variant.
    """
    from cpgan_ray.evaluation.fitting import ANSWERS, FLOOR, attack_specs, fit_attack
    from cpgan_ray.evaluation.scoring import score

    specs = attack_specs(context.config, context.dataset, answers=context.has_answers)
    whole = {spec.name: spec for spec in specs if spec.variant == variant and spec.share == 1}
    for name in names:
        if name not in whole:
            raise InputError(f"tournament_attacks has {name!r}; variant {variant!r} of the run has {', '.join(whole) or 'none'}")
    if not whole:
        raise InputError(f"tournament_variant is {variant!r}; choose from {', '.join(dict.fromkeys(s.variant for s in specs))}")
    data = context.data("leaked")
    data = {FLOOR: context.floor, ANSWERS: context.answered}.get(variant, lambda data: data)(data)
    result: dict[str, Any] = {}
    total = 0.0
    for name in names or whole:
        begun = cpu_s()
        attack = fit_attack(whole[name], context)
        spent = cpu_s() - begun
        total += spent
        scored, _ = score(data, attack.fitted, similar=False)
        values = {"cpu_s": spent, "tune_r2": attack.fitted.tune_r2, "r2": scored.r2}
        logger.info(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in values.items()))
        logger.debug(f"{name}: {attack.fitted.settings} {attack.fitted.budgets}")
        result |= {f"{name}_{key}": value for key, value in values.items()}
    return result | {"total_cpu_s": total}


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

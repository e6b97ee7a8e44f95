"""Comparison of mechanisms. One cell is a mechanism at one setting with one seed, with the results of fresh attacks on it.

All cells of a comparison have the same data set, backbone, longest code and attacks. All mechanisms use the same seeds and are
scored on the same people, so that differences are paired by both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.analysis.cells import by_name, field_of, strongest
from cpgan_ray.analysis.crossed import (
    CrossedEstimate,
    Replicates,
    estimate,
    outcomes_without_people,
    replicates,
    stack,
    verdicts,
)
from cpgan_ray.analysis.fronts import (
    Recommendation,
    Reference,
    Trial,
    correlations_of,
    finite,
    hull,
    mean,
    points,
    r2_at,
    reference_point,
    setting_key,
    utility_levels,
)
from cpgan_ray.config import MIN_SEEDS, Objective
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.fitting import STACK
from cpgan_ray.evaluation.report.paired import read_rows

OURS = "cpgan"
TOLERATED_LOSS = 0.01
"""The recommended setting may lose at most this utility."""
UNDEFENDED = "bottleneck"
"""The mechanism whose longest code is the undefended twin: the same network, trained only for the task."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many seeds a comparison has, and had before its first training."""

    planned_seeds: int
    num_seeds: int

    @property
    def untested(self) -> str | None:
        """Why the comparison makes no statements about mechanisms, or None if it does."""
        if self.num_seeds != self.planned_seeds:
            return f"not tested: {self.planned_seeds} seeds were planned, and {self.num_seeds} are used"
        if self.num_seeds < MIN_SEEDS:
            return f"not tested: {self.num_seeds} seeds, at least {MIN_SEEDS} are needed"
        return None


@dataclass(frozen=True, eq=False)
class Outcomes:
    """R2 and utility of each training, by name: (G + 1, 2), on all rows and without each group of people."""

    objective: Objective
    strongest: Mapping[str, np.ndarray]
    floor: Mapping[str, np.ndarray]
    """With the R2 of the attack on the true labels."""
    answers_floor: Mapping[str, np.ndarray]
    """With the R2 of the attack on the training's own hard answers; only of the trainings that have it."""


def read_outcomes(trials: Sequence[Trial], objective: Objective) -> Outcomes:
    """Raises: InputError if a training's `errors.npz` is missing or damaged, or has no answers to the task."""
    strongest: dict[str, np.ndarray] = {}
    floor: dict[str, np.ndarray] = {}
    answers_floor: dict[str, np.ndarray] = {}
    for t in trials:
        rows = read_rows(Path(t.output or ""))
        if rows.answers is None or rows.floor is None:
            raise InputError(f"{t.output} has no answers to the task: remove this folder, and the cell is run again")
        for by_trial, errors in ((strongest, rows.strongest), (floor, rows.floor), (answers_floor, rows.answers_floor)):
            if errors is not None:
                by_trial[t.name] = outcomes_without_people(errors, rows.answers, objective=objective)
    return Outcomes(objective, strongest, floor, answers_floor)


def outcomes_of_settings(outcomes: Outcomes, trials: Sequence[Trial], seeds: Sequence[int]) -> np.ndarray:
    """(S, G + 1, P, 2) of the settings that are not degenerate; each must have a trial with every seed."""
    settings: dict[str, dict[int, Trial]] = {}
    for t in trials:
        settings.setdefault(setting_key(t.setting), {})[t.seed] = t
    useful = [by_seed for by_seed in settings.values() if all(t.degenerate is None for t in by_seed.values())]
    if not useful:
        return np.empty((len(seeds), 1, 0, 2))
    return stack([[outcomes.strongest[by_seed[seed].name] for by_seed in useful] for seed in seeds])


def complete_trials(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Mechanism -> its trials of settings that were trained with all seeds of the mechanism. A mechanism without such a setting is
    left out."""
    result: dict[str, list[Trial]] = {}
    for method in dict.fromkeys(t.method for t in trials):
        of_method = [t for t in trials if t.method == method]
        seeds = {t.seed for t in of_method}
        complete = [t for t in of_method if {other.seed for other in of_method if other.setting == t.setting} == seeds]
        if complete:
            result[method] = complete
    return result


def seeds_of(trials: Sequence[Trial]) -> list[int]:
    return sorted({t.seed for t in trials})


def hull_volume(points: np.ndarray, *, reference: Reference) -> float:
    """Hypervolume of settings (P, 2)."""
    return hull(points, reference)[1]


def hull_r2(points: np.ndarray, *, reference: Reference, utility: float) -> float:
    """R2 of the hull of settings (P, 2) at a utility; NaN if the hull does not reach it."""
    r2 = r2_at(hull(points, reference)[0], utility)
    return float("nan") if r2 is None else r2


def findings(
    cells: Sequence[Mapping[str, Any]], trials: Sequence[Trial], *, plan: Plan, objective: Objective = "accuracy"
) -> dict[str, Any]:
    """The numbers behind the claims: hypervolumes and R2 at fixed utilities, the paired differences of our hypervolume to that of
    each other mechanism with Holm's correction, utility loss and excess R2 of the recommended setting, the strongest attacks, and
    the correlation of each knob with the results."""
    reference = reference_point(trials, objective)
    assert reference is not None
    outcomes, complete = read_outcomes(trials, objective), complete_trials(trials)
    levels = utility_levels(reference, twin_utility(trials, objective))
    volume = partial(hull_volume, reference=reference)
    numbers: dict[str, Any] = {"objective": objective, "planned_seeds": plan.planned_seeds, "num_seeds": plan.num_seeds}
    numbers |= {"hypervolume": {}, "r2_at": {}}
    for method, of_method in complete.items():
        of_settings = outcomes_of_settings(outcomes, of_method, seeds_of(of_method))
        numbers["hypervolume"][method] = interval_of(estimate(replicates(volume, of_settings)))
        numbers["r2_at"][method] = [
            {
                "share": share,
                objective: utility,
                **interval_of(estimate(replicates(partial(hull_r2, reference=reference, utility=utility), of_settings))),
            }
            for share, utility in levels.items()
        ]
    numbers |= {
        "ours_less": differences(outcomes, complete, volume, plan),
        "gap": gap(trials, outcomes),
        "strongest_attacks": strongest_attack_counts(cells),
        "neural_less_closed_form": neural_gain(cells),
        "spearman": knob_correlations(trials, objective),
    }
    return finite(numbers)


def interval_of(value: CrossedEstimate) -> dict[str, float | None]:
    return {"value": value.value, "low": value.low, "high": value.high}


Statistic = Callable[[np.ndarray], float]
"""Function of R2 and utility of P settings, (P, 2)."""


def differences(
    outcomes: Outcomes, complete: Mapping[str, Sequence[Trial]], volume: Statistic, plan: Plan
) -> dict[str, dict[str, Any]]:
    """Mechanism -> our hypervolume minus its hypervolume, paired over the seeds that both have and over people, with the verdict of
    all differences together."""
    ours = complete.get(OURS, [])
    estimates: dict[str, CrossedEstimate] = {}
    for method, theirs in complete.items():
        shared = sorted({*seeds_of(ours)} & {*seeds_of(theirs)})
        if method != OURS:
            a, b = (replicates_with(outcomes, trials, shared, volume) for trials in (ours, theirs))
            estimates[method] = CrossedEstimate(None) if a is None or b is None else estimate(a - b)
    tested = {} if plan.untested else verdicts(estimates)
    result = {}
    for method, value in estimates.items():
        missing = "fewer than two seeds in common" if value.value is not None else "no seed in common, or only degenerate codes"
        p_holm, verdict = tested.get(method, (None, plan.untested or f"not tested: {missing}"))
        p = value.p if method in tested else None
        result[method] = interval_of(value) | {"p": p, "p_holm": p_holm, "verdict": verdict}
    return result


def replicates_with(outcomes: Outcomes, trials: Sequence[Trial], seeds: Sequence[int], statistic: Statistic) -> Replicates | None:
    """The replicates of a mechanism's trials with these seeds; None if there are none, or if all its codes are degenerate."""
    if not seeds:
        return None
    of_settings = outcomes_of_settings(outcomes, [t for t in trials if t.seed in seeds], seeds)
    return replicates(statistic, of_settings) if of_settings.size else None


def twin_utility(trials: Sequence[Trial], objective: Objective) -> float | None:
    """Mean utility of the undefended twins on the test split."""
    return mean(getattr(t, objective) for t in undefended_twins(trials).values())


def undefended_twins(trials: Sequence[Trial]) -> dict[int, Trial]:
    """Seed -> the undefended twin: the same network with the longest code."""
    undefended = [t for t in trials if t.method == UNDEFENDED]
    longest = max((t.setting["k"] for t in undefended), default=None)
    return {t.seed: t for t in undefended if t.setting["k"] == longest}


def recommended(trials: Sequence[Trial], objective: Objective = "accuracy") -> Recommendation | None:
    """Our setting with the smallest R2 among those that lose at most `TOLERATED_LOSS` of the undefended twin's utility; if there is
    none, our most useful setting. All numbers are means over seeds on the validation split. None without a twin."""
    usable = [p for p in points([t for t in trials if t.method == OURS], objective=objective) if not p.degenerate]
    ours = [p for p in usable if p.val_utility is not None and p.val_r2 is not None]
    twin = mean(getattr(t, f"val_{objective}") for t in undefended_twins(trials).values())
    if twin is None or not ours:
        return None
    useful = [p for p in ours if (p.val_utility or 0.0) >= twin - TOLERATED_LOSS]
    name = objective.replace("_", " ")
    if useful:
        rule = f"smallest validation R2 among settings whose validation {name} is at least {twin - TOLERATED_LOSS:.3f}"
        return Recommendation(point=min(useful, key=lambda p: p.val_r2 or 0.0), rule=rule)
    return Recommendation(point=max(ours, key=lambda p: p.val_utility or 0.0), rule=f"largest validation {name}")


def gap(trials: Sequence[Trial], outcomes: Outcomes) -> dict[str, Any] | None:
    """At the recommended setting: the loss of utility to the undefended twin, and the excess of R2 over the answers floor and over
    the label floor, paired over seeds and people."""
    recommendation = recommended(trials, outcomes.objective)
    if recommendation is None:
        return None
    defended = {t.seed: t for t in trials if t.name in recommendation.point.trials}
    twins = undefended_twins(trials)
    both = sorted(defended.keys() & twins.keys())

    def number(group: Mapping[int, Trial], seeds: Sequence[int], column: int, of: Mapping[str, np.ndarray]) -> Replicates:
        return replicates(lambda point: float(point[0, column]), stack([[of[group[seed].name]] for seed in seeds]))

    measured, all_seeds, twin_seeds = outcomes.strongest, sorted(defended), sorted(twins)
    own, has_own = outcomes.answers_floor, all(t.name in outcomes.answers_floor for t in defended.values())
    r2, utility = (number(defended, all_seeds, column, measured) for column in (0, 1))
    loss = number(twins, both, 1, measured) - number(defended, both, 1, measured) if both else None
    return {
        "setting": next(iter(recommendation.point.setting.values())),
        "rule": recommendation.rule,
        "utility": interval_of(estimate(utility)),
        "strongest_r2": interval_of(estimate(r2)),
        "undefended_utility": interval_of(estimate(number(twins, twin_seeds, 1, measured))),
        "undefended_r2": interval_of(estimate(number(twins, twin_seeds, 0, measured))),
        "utility_loss": interval_of(CrossedEstimate(None) if loss is None else estimate(loss)),
        "excess_r2": interval_of(estimate(r2 - number(defended, all_seeds, 0, own)) if has_own else CrossedEstimate(None)),
        "label_excess_r2": interval_of(estimate(r2 - number(defended, all_seeds, 0, outcomes.floor))),
    }


def strongest_attack_counts(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Mechanism -> attack -> number of cells in which it was the strongest."""
    result: dict[str, dict[str, int]] = {}
    for values in cells:
        counts = result.setdefault(values["cell"]["mechanism"], {})
        name = strongest(values)["attack"]
        counts[name] = counts.get(name, 0) + 1
    return result


NEURAL = ("mlp", "decoder", "resnet_decoder")


def neural_gain(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mechanism -> best R2 of the neural attacks minus best R2 of the others, without the stack of both: the mean over its cells,
    and in how many of them it is above 0. It has no interval, because cells of one seed, or of one setting, are not independent.
    """
    gains: dict[str, list[float]] = {}
    for values in cells:
        r2 = {name: a["r2"] for name, a in by_name(values).items() if name != STACK}
        neural, others = [[v for n, v in r2.items() if (n in NEURAL) == wanted] for wanted in (True, False)]
        if neural and others:
            gains.setdefault(values["cell"]["mechanism"], []).append(max(neural) - max(others))
    return {m: {"mean": mean(v), "num_above_0": sum(gain > 0 for gain in v), "num_cells": len(v)} for m, v in gains.items()}


def knob_correlations(trials: Sequence[Trial], objective: Objective = "accuracy") -> dict[str, dict[str, Any]]:
    """Mechanism -> Spearman's rank correlation of its knob with utility and with R2, over the means of its settings; None, with the
    reason, for fewer than `MIN_SETTINGS` settings."""
    return {
        method: correlations_of(points([t for t in trials if t.method == method], objective=objective), field_of(method))
        for method in dict.fromkeys(t.method for t in trials)
    }

"""Comparison of mechanisms. One cell is a mechanism at one setting with one seed, with the results of fresh attacks on it.

All cells of a comparison have the same data set, backbone, longest code and attacks. All mechanisms use the same seeds, so that
differences are paired by seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cpgan_ray.analysis.cells import by_name, field_of, strongest
from cpgan_ray.analysis.fronts import (
    Estimate,
    Recommendation,
    Reference,
    Trial,
    finite,
    hypervolume,
    mean,
    mean_with_ci,
    points,
    spearman,
)

OURS = "cpgan"
TOLERATED_LOSS = 0.01
"""The recommended setting may lose at most this accuracy."""
UNDEFENDED = "bottleneck"
"""The mechanism whose longest code is the undefended twin: the same network, trained only for the task."""


def volumes(trials: Sequence[Trial], reference: Reference) -> dict[str, dict[int, float]]:
    """Mechanism -> seed -> hypervolume of its trials with that seed. Only settings that were trained with all seeds of the
    mechanism count; a mechanism without such a setting is left out."""
    result: dict[str, dict[int, float]] = {}
    for method in dict.fromkeys(t.method for t in trials):
        of_method = [t for t in trials if t.method == method]
        seeds = {t.seed for t in of_method}
        complete = [t for t in of_method if {other.seed for other in of_method if other.setting == t.setting} == seeds]
        if complete:
            result[method] = {s: hypervolume(points([t for t in complete if t.seed == s]), reference) for s in sorted(seeds)}
    return result


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """Mean of a - b over the seeds that both have, with Student's 95 % interval."""
    shared = sorted(a.keys() & b.keys())
    return mean_with_ci([Estimate(a[seed] - b[seed]) for seed in shared]) if shared else Estimate(None)


def findings(cells: Sequence[Mapping[str, Any]], trials: Sequence[Trial], reference: Reference) -> dict[str, Any]:
    """The numbers behind the claims: hypervolumes with paired differences, utility loss and excess R2 of the recommended setting,
    the strongest attacks, and the correlation of each knob with the results."""
    by_method = volumes(trials, reference)
    ours = by_method.get(OURS, {})
    numbers: dict[str, Any] = {
        "hypervolume": {
            method: mean_with_ci([Estimate(v) for v in seeds.values()])._asdict() for method, seeds in by_method.items()
        },
        "ours_less": {method: paired(ours, seeds)._asdict() for method, seeds in by_method.items() if method != OURS},
        "gap": gap(trials),
        "strongest_attacks": strongest_attack_counts(cells),
        "neural_less_closed_form": neural_gain(cells),
        "spearman": knob_correlations(trials),
    }
    return finite(numbers)


def undefended_twins(trials: Sequence[Trial]) -> dict[int, Trial]:
    """Seed -> the undefended twin: the same network with the longest code."""
    undefended = [t for t in trials if t.method == UNDEFENDED]
    longest = max((t.setting["k"] for t in undefended), default=None)
    return {t.seed: t for t in undefended if t.setting["k"] == longest}


def recommended(trials: Sequence[Trial]) -> Recommendation | None:
    """Our setting with the smallest R2 among those that lose at most `TOLERATED_LOSS` of the undefended twin's accuracy; if there
    is none, our most accurate setting. All numbers are means over seeds on the validation split. None without a twin."""
    usable = [p for p in points([t for t in trials if t.method == OURS]) if not p.degenerate]
    ours = [p for p in usable if p.val_accuracy is not None and p.val_r2 is not None]
    twin_accuracy = mean(t.val_accuracy for t in undefended_twins(trials).values())
    if twin_accuracy is None or not ours:
        return None
    accurate = [p for p in ours if (p.val_accuracy or 0.0) >= twin_accuracy - TOLERATED_LOSS]
    if accurate:
        rule = f"smallest validation R2 among settings whose validation accuracy is at least {twin_accuracy - TOLERATED_LOSS:.3f}"
        return Recommendation(point=min(accurate, key=lambda p: p.val_r2 or 0.0), rule=rule)
    return Recommendation(point=max(ours, key=lambda p: p.val_accuracy or 0.0), rule="largest validation accuracy")


def gap(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """At the recommended setting: the loss of accuracy to the undefended twin, and the excess of R2 over the label floor, paired
    over seeds."""
    recommendation = recommended(trials)
    if recommendation is None:
        return None
    defended = {t.seed: t for t in trials if t.name in recommendation.point.trials}
    twins = undefended_twins(trials)

    def by_seed(trials: Mapping[int, Trial], name: str) -> dict[int, float]:
        return {seed: getattr(t, name) for seed, t in trials.items()}

    return {
        "setting": next(iter(recommendation.point.setting.values())),
        "rule": recommendation.rule,
        "accuracy": mean_with_ci([Estimate(t.accuracy) for t in defended.values()])._asdict(),
        "strongest_r2": mean_with_ci([Estimate(t.strongest_r2) for t in defended.values()])._asdict(),
        "undefended_accuracy": mean_with_ci([Estimate(t.accuracy) for t in twins.values()])._asdict(),
        "undefended_r2": mean_with_ci([Estimate(t.strongest_r2) for t in twins.values()])._asdict(),
        "utility_loss": paired(by_seed(twins, "accuracy"), by_seed(defended, "accuracy"))._asdict(),
        "excess_r2": paired(by_seed(defended, "strongest_r2"), by_seed(defended, "label_floor_r2"))._asdict(),
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


def neural_gain(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mechanism -> best R2 of the neural attacks minus best R2 of the others, over its cells. Claim C4: this is not always above
    0."""
    gains: dict[str, list[Estimate]] = {}
    for values in cells:
        r2 = {name: a["r2"] for name, a in by_name(values).items()}
        neural, others = [[v for n, v in r2.items() if (n in NEURAL) == wanted] for wanted in (True, False)]
        if neural and others:
            gains.setdefault(values["cell"]["mechanism"], []).append(Estimate(max(neural) - max(others)))
    return {method: mean_with_ci(values)._asdict() for method, values in gains.items()}


def knob_correlations(trials: Sequence[Trial]) -> dict[str, dict[str, float | None]]:
    """Mechanism -> Spearman's rank correlation of its knob with accuracy and with R2, over the means of its settings."""
    correlations = {}
    for method in dict.fromkeys(t.method for t in trials):
        of_method = points([t for t in trials if t.method == method])
        correlations[method] = {of: spearman(of_method, field_of(method), of) for of in ("accuracy", "strongest_r2")}
    return correlations

"""Mechanisms held against each other: one cell is a mechanism at one setting under one seed, and what fresh attacks make of it.

All cells of a comparison have the same data set, backbone, longest code and attacks; a seed is the same for all of them, so that
differences are taken in pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cpgan_ray.analysis.cells import field_of, strongest
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
"""Accuracy that the recommended setting may give up."""
UNDEFENDED = "bottleneck"
"""Whose setting of full length is the undefended twin: the same network, trained for the task alone."""


# What the cells amount to


def volumes(trials: Sequence[Trial], reference: Reference) -> dict[str, dict[int, float]]:
    """Mechanism -> seed -> hypervolume under that seed of the settings that it was played at under all of its seeds; none of a
    mechanism without such a setting."""
    found: dict[str, dict[int, float]] = {}
    for method in dict.fromkeys(t.method for t in trials):
        mine = [t for t in trials if t.method == method]
        seeds = {t.seed for t in mine}
        always = [t for t in mine if {other.seed for other in mine if other.setting == t.setting} == seeds]
        if always:
            found[method] = {s: hypervolume(points([t for t in always if t.seed == s]), reference) for s in sorted(seeds)}
    return found


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """Mean difference over the seeds that both have, with Student's 95 % interval."""
    shared = sorted(one.keys() & other.keys())
    return mean_with_ci([Estimate(one[seed] - other[seed]) for seed in shared]) if shared else Estimate(None)


def findings(cells: Sequence[Mapping[str, Any]], trials: Sequence[Trial], reference: Reference) -> dict[str, Any]:
    """Hypervolumes with paired differences, the utility gap and excess R2 of the recommended setting, who attacks best, whether the
    knob tunes: the numbers behind the claims."""
    by_method = volumes(trials, reference)
    ours = by_method.get(OURS, {})
    told: dict[str, Any] = {
        "hypervolume": {
            method: mean_with_ci([Estimate(v) for v in seeds.values()])._asdict() for method, seeds in by_method.items()
        },
        "ours_less": {method: paired(ours, seeds)._asdict() for method, seeds in by_method.items() if method != OURS},
        "gap": gap(trials),
        "strongest_attacks": winners(cells),
        "neural_less_closed_form": neural_gain(cells),
        "spearman": knob_correlations(trials),
    }
    return finite(told)


def twins_of(trials: Sequence[Trial]) -> dict[int, Trial]:
    """Seed -> the undefended twin: the same network with the longest code."""
    undefended = [t for t in trials if t.method == UNDEFENDED]
    longest = max((t.setting["k"] for t in undefended), default=None)
    return {t.seed: t for t in undefended if t.setting["k"] == longest}


def recommended(trials: Sequence[Trial]) -> Recommendation | None:
    """Of our settings that lose at most `TOLERATED_LOSS` to the undefended twin the one with the smallest R2; where none does, the
    most accurate one. All on the validation split, means over seeds; None without a twin."""
    playable = [p for p in points([t for t in trials if t.method == OURS]) if not p.degenerate]
    ours = [p for p in playable if p.val_accuracy is not None and p.val_r2 is not None]
    twin = mean(t.val_accuracy for t in twins_of(trials).values())
    if twin is None or not ours:
        return None
    close = [p for p in ours if (p.val_accuracy or 0.0) >= twin - TOLERATED_LOSS]
    if close:
        rule = f"smallest validation R2 among settings whose validation accuracy is at least {twin - TOLERATED_LOSS:.3f}"
        return Recommendation(point=min(close, key=lambda p: p.val_r2 or 0.0), rule=rule)
    return Recommendation(point=max(ours, key=lambda p: p.val_accuracy or 0.0), rule="largest validation accuracy")


def gap(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """At the recommended setting: accuracy below the undefended twin's, and R2 above the label floor; paired over seeds."""
    chosen = recommended(trials)
    if chosen is None:
        return None
    at = {t.seed: t for t in trials if t.name in chosen.point.trials}
    twins = twins_of(trials)

    def numbers(some: Mapping[int, Trial], name: str) -> dict[int, float]:
        return {seed: getattr(t, name) for seed, t in some.items()}

    return {
        "setting": next(iter(chosen.point.setting.values())),
        "rule": chosen.rule,
        "accuracy": mean_with_ci([Estimate(t.accuracy) for t in at.values()])._asdict(),
        "strongest_r2": mean_with_ci([Estimate(t.strongest_r2) for t in at.values()])._asdict(),
        "undefended_accuracy": mean_with_ci([Estimate(t.accuracy) for t in twins.values()])._asdict(),
        "undefended_r2": mean_with_ci([Estimate(t.strongest_r2) for t in twins.values()])._asdict(),
        "utility_loss": paired(numbers(twins, "accuracy"), numbers(at, "accuracy"))._asdict(),
        "excess_r2": paired(numbers(at, "strongest_r2"), numbers(at, "label_floor_r2"))._asdict(),
    }


def winners(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Mechanism -> attack -> in how many cells it was the strongest."""
    found: dict[str, dict[str, int]] = {}
    for values in cells:
        counts = found.setdefault(values["cell"]["mechanism"], {})
        name = strongest(values)["attack"]
        counts[name] = counts.get(name, 0) + 1
    return found


NEURAL = ("mlp", "decoder", "resnet_decoder")


def neural_gain(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mechanism -> best neural R2 less the best of the others, over its cells; claim C4 says that this is not always above 0."""
    found: dict[str, list[Estimate]] = {}
    for values in cells:
        r2 = {a["name"]: a["r2"] for a in values["attacks"]}
        sides = [[v for n, v in r2.items() if (n in NEURAL) == side] for side in (True, False)]
        if all(sides):
            found.setdefault(values["cell"]["mechanism"], []).append(Estimate(max(sides[0]) - max(sides[1])))
    return {method: mean_with_ci(gains)._asdict() for method, gains in found.items()}


def knob_correlations(trials: Sequence[Trial]) -> dict[str, dict[str, float | None]]:
    """Mechanism -> Spearman's rank correlation of its knob with accuracy and with R2, over the means of its settings."""
    found = {}
    for method in dict.fromkeys(t.method for t in trials):
        mine = points([t for t in trials if t.method == method])
        found[method] = {of: spearman(mine, field_of(method), of) for of in ("accuracy", "strongest_r2")}
    return found

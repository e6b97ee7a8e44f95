"""Trials, and points: the means over the seeds of one setting, with their intervals."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from scipy import special

from cpgan_ray.config import Objective

State = Literal["finished", "stopped", "failed", "running", "killed"]


ACCURACIES: tuple[Objective, ...] = get_args(Objective)
UTILITY = (
    *(name for accuracy in ACCURACIES for name in (accuracy, f"{accuracy}_low", f"{accuracy}_high")),
    *(f"{split}_{accuracy}" for split in ("val", "majority") for accuracy in ACCURACIES),
    "dead_labels",
)
"""The fields of a `Trial` that have the same name in the `utility` of a report, and in metrics after `utility/`."""


CLIENT = {"multiply_adds": "multiply_adds", "client_parameters": "parameters", "client_ms": "ms", "client_bytes": "bytes"}
"""The fields of a `Trial` on the client's cost, with their names in the `client` of a report, and in metrics after `client/`."""


WITH_ENDS = ("excess_r2", "linkage_auc", "late_balanced_accuracy", "bits")
"""Further fields of a `Trial` that have an interval."""


LINKAGE = ("linkage_auc", "linkage_auc_low", "linkage_auc_high", "linkage_tar")
"""The fields of a `Trial` on how well people are linked, with the same names in metrics after `privacy/strongest_`."""


CLOUD = {"cloud_multiply_adds": "multiply_adds"}
"""The same on the cloud's cost, in the `cost.utility_head` of a report, and in metrics after `cloud/`."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a search: a setting with a seed, and the results of fresh attacks on it."""

    name: str
    """Name of its folder and of its MLflow run."""
    setting: dict[str, Any]
    """Dotted config field -> value, for the fields that are searched."""
    seed: int
    state: State
    """`stopped`: stopped early by the scheduler. Only `finished` trials can be on a front."""
    control: bool = False
    """The undefended control (privacy weight 0): it is shown, but never on the front."""
    accuracy: float | None = None
    """Accuracy on the test split. All fields down to `attack` are measured on the test split."""
    accuracy_low: float | None = None
    """Lower end of its 95 % bootstrap interval over people."""
    accuracy_high: float | None = None
    balanced_accuracy: float | None = None
    """Mean recall over the classes of each label, averaged over the labels."""
    balanced_accuracy_low: float | None = None
    """Lower end of its 95 % bootstrap interval over people."""
    balanced_accuracy_high: float | None = None
    dead_labels: float | None = None
    """Number of labels (or classes) of the task that the head does not tell from a guess; see evaluation/utility.py."""
    strongest_r2: float | None = None
    """R2 of the strongest fresh attack."""
    strongest_r2_low: float | None = None
    """Lower end of its 95 % bootstrap interval over people."""
    strongest_r2_high: float | None = None
    attack: str | None = None
    """Name of the strongest attack."""
    val_accuracy: float | None = None
    """Accuracy on the validation split. Settings are chosen by it."""
    val_balanced_accuracy: float | None = None
    """Balanced accuracy on the validation split. Settings are chosen by it if it is the objective."""
    val_r2: float | None = None
    """R2 of the strongest attack on the validation split, on which it was tuned. Settings are chosen by it."""
    majority_accuracy: float | None = None
    """Accuracy on the test split of always guessing each label's most common training value."""
    majority_balanced_accuracy: float | None = None
    """Balanced accuracy of the same guess: the mean of 1 / number of classes over the labels."""
    label_floor_r2: float | None = None
    """R2 of pictures predicted from the task's true labels."""
    answers_floor_r2: float | None = None
    """R2 of the strongest attack on its own hard answers."""
    late_balanced_accuracy: float | None = None
    """Mean balanced accuracy of heads of late tasks on its codes; None if it has no late tasks."""
    late_balanced_accuracy_low: float | None = None
    """Lower end of its 95 % bootstrap interval over people."""
    late_balanced_accuracy_high: float | None = None
    excess_r2: float | None = None
    """The strongest R2 minus `answers_floor_r2`: what the code gives away without need."""
    excess_r2_low: float | None = None
    """Lower end of its 95 % bootstrap interval over people, paired picture by picture."""
    excess_r2_high: float | None = None
    linkage_auc: float | None = None
    """Largest AUC of linking people by codes, reconstructions or predicted embeddings; None if people are not known."""
    linkage_auc_low: float | None = None
    """Lower end of its 95 % bootstrap interval over people."""
    linkage_auc_high: float | None = None
    linkage_tar: float | None = None
    """True accepts at 1 % false ones of the same comparison."""
    multiply_adds: float | None = None
    """Multiply-adds that the client spends on a sample; this and the three fields below are None if they are not known."""
    client_parameters: float | None = None
    """Parameters of the client's network."""
    client_ms: float | None = None
    """Time of the client's network for one sample on one thread of the machine that measured it."""
    client_bytes: float | None = None
    """Bytes that the client sends for a sample, before entropy coding."""
    cloud_multiply_adds: float | None = None
    """Multiply-adds that the utility head spends on a code."""
    bits: float | None = None
    """Mean bits of a code on the wire, on the test split: coded, or as it is if it has no coded length."""
    bits_low: float | None = None
    """Lower end of the 95 % bootstrap interval over people of a coded length."""
    bits_high: float | None = None
    val_bits: float | None = None
    """The same on the validation split. Settings are chosen by it if bits are an objective."""
    seconds: float | None = None
    """Wall time, including attacks."""
    run_id: str | None = None
    """Id of its MLflow run."""
    output: str | None = None
    """Its folder."""
    cause: str | None = None
    """Why it failed."""
    method: str = ""
    """Experiment or mechanism, if several are compared."""
    data: str | None = None
    """Digest of the data set: numbers on different data sets cannot be compared."""
    degenerate: str | None = None
    """Why its code is degenerate (constant or useless), or None. A degenerate code is shown, but is on no front and passes no
    gate."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """All finished trials of one setting: a point in the plane of utility and R2. For the meaning of its intervals see
    `mean_point`."""

    objective: Objective
    """The measure of utility."""
    setting: dict[str, Any]
    trials: tuple[str, ...]
    """Names of the trials."""
    seeds: tuple[int, ...]
    """The seeds, without repetitions."""
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    balanced_accuracy: float | None
    balanced_accuracy_low: float | None
    balanced_accuracy_high: float | None
    dead_labels: float | None
    strongest_r2: float
    strongest_r2_low: float | None
    strongest_r2_high: float | None
    val_accuracy: float | None
    val_balanced_accuracy: float | None
    val_r2: float | None
    majority_accuracy: float | None
    majority_balanced_accuracy: float | None
    answers_floor_r2: float | None = None
    late_balanced_accuracy: float | None = None
    late_balanced_accuracy_low: float | None = None
    late_balanced_accuracy_high: float | None = None
    excess_r2: float | None = None
    excess_r2_low: float | None = None
    excess_r2_high: float | None = None
    linkage_auc: float | None = None
    linkage_auc_low: float | None = None
    linkage_auc_high: float | None = None
    linkage_tar: float | None = None
    multiply_adds: float | None = None
    client_parameters: float | None = None
    client_ms: float | None = None
    client_bytes: float | None = None
    cloud_multiply_adds: float | None = None
    bits: float | None = None
    bits_low: float | None = None
    bits_high: float | None = None
    val_bits: float | None = None
    method: str = ""
    degenerate: bool = False
    """Whether the code of any of its trials is degenerate."""

    @property
    def num_trials(self) -> int:
        return len(self.trials)

    @property
    def utility(self) -> float:
        """The objective on the test split."""
        value = getattr(self, self.objective)
        assert value is not None
        return value

    @property
    def utility_low(self) -> float | None:
        return getattr(self, f"{self.objective}_low")

    @property
    def utility_high(self) -> float | None:
        return getattr(self, f"{self.objective}_high")

    @property
    def val_utility(self) -> float | None:
        """The objective on the validation split."""
        return getattr(self, f"val_{self.objective}")

    @property
    def guess(self) -> float | None:
        """The objective of always guessing each label's most common training value."""
        return getattr(self, f"majority_{self.objective}")


class Estimate(NamedTuple):
    """A number with the ends of its interval, if they are known."""

    value: float | None
    low: float | None = None
    high: float | None = None


def scored(trial: Trial, objective: Objective = "accuracy") -> bool:
    """Whether a trial has finished with both numbers, utility and strongest R2."""
    numbers = (getattr(trial, objective), trial.strongest_r2)
    return trial.state == "finished" and all(number is not None and math.isfinite(number) for number in numbers)


def points(trials: Sequence[Trial], *, objective: Objective = "accuracy", control: bool = False) -> list[Point]:
    """One point for each method and setting of the finished trials, in order of first occurrence. control: only the controls,
    instead of all others."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        if scored(trial, objective) and trial.control == control:
            groups.setdefault(group_key(trial), []).append(trial)
    return [mean_point(group, objective) for group in groups.values()]


def group_key(item: Trial | Point) -> tuple[str, str]:
    """A key that is the same for all trials of a point, and for the point."""
    return item.method, setting_key(item.setting)


def setting_key(setting: Mapping[str, Any]) -> str:
    """A key that is the same for equal settings; the order of the fields, and 1 or 1.0, make no difference."""
    values = {name: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for name, v in setting.items()}
    return json.dumps(values, sort_keys=True)


def mean_point(trials: Sequence[Trial], objective: Objective = "accuracy") -> Point:
    """The point of the finished trials of one setting. Repetitions of a seed are averaged first, because they are no further
    evidence.

    The meaning of the intervals depends on the number of seeds. One seed: how the numbers of this privatizer vary with the people
    on whom it is scored; they say nothing about another training. Several seeds: how the mean varies with the people *and* with the
    seeds of the training (`mean_with_ci`).
    """
    seeds = sorted({trial.seed for trial in trials})
    by_seed = [[trial for trial in trials if trial.seed == seed] for seed in seeds]

    def over_seeds(name: str) -> Estimate:
        ends = (name, f"{name}_low", f"{name}_high")
        return mean_with_ci([Estimate(*(mean([getattr(trial, end) for trial in group]) for end in ends)) for group in by_seed])

    def average(name: str) -> float | None:
        return mean([mean([getattr(trial, name) for trial in group]) for group in by_seed])

    def with_ends(name: str) -> dict[str, float | None]:
        return dict(zip((name, f"{name}_low", f"{name}_high"), over_seeds(name), strict=True))

    accuracy, balanced, r2 = (over_seeds(name) for name in ("accuracy", "balanced_accuracy", "strongest_r2"))
    assert r2.value is not None
    return Point(
        objective=objective,
        setting=trials[0].setting,
        method=trials[0].method,
        trials=tuple(trial.name for trial in trials),
        seeds=tuple(seeds),
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        balanced_accuracy=balanced.value,
        balanced_accuracy_low=balanced.low,
        balanced_accuracy_high=balanced.high,
        dead_labels=average("dead_labels"),
        strongest_r2=r2.value,
        strongest_r2_low=r2.low,
        strongest_r2_high=r2.high,
        val_accuracy=average("val_accuracy"),
        val_balanced_accuracy=average("val_balanced_accuracy"),
        val_r2=average("val_r2"),
        majority_accuracy=average("majority_accuracy"),
        majority_balanced_accuracy=average("majority_balanced_accuracy"),
        **{name: average(name) for name in ("answers_floor_r2", "linkage_tar", *CLIENT, *CLOUD, "val_bits")},
        **{end: value for name in WITH_ENDS for end, value in with_ends(name).items()},
        degenerate=any(trial.degenerate is not None for trial in trials),
    )


def mean_with_ci(seeds: Sequence[Estimate]) -> Estimate:
    """Mean of n seeds with a 95 % interval that covers both new seeds and new people; for a single seed, its own estimate.

    seeds: for each seed its number, with the interval over people. All seeds are scored on the same people, so the people's part of
    the error does not become smaller with more seeds. The two parts are added in squares, end by end (MOVER: G. Y. Zou and A.
    Donner, Construction of confidence limits about effect measures, Statistics in Medicine 27, 2008):

        low = mean - sqrt((t(0.975, n - 1) s / sqrt(n))^2 + mean(number - low of its seed)^2), and high likewise,

    where s is the sample standard deviation over seeds. The people's part is that of one seed; the part of it that is independent
    between seeds is counted once more in s, which makes the interval slightly wide. Without the intervals of all seeds there is no
    interval. Its coverage for few people and few seeds is tested by simulation; see docs/evaluation.md.
    """
    if len(seeds) == 1:
        return seeds[0]
    if any(value is None for seed in seeds for value in seed):
        return Estimate(mean(seed.value for seed in seeds))
    value, low, high = np.array(seeds, dtype=np.float64).T
    half = special.stdtrit(len(value) - 1, 0.975) * value.std(ddof=1) / math.sqrt(len(value))
    center, below, above = value.mean(), (value - low).mean(), (high - value).mean()
    return Estimate(float(center), float(center - math.hypot(half, below)), float(center + math.hypot(half, above)))


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known and finite; None if there are none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(finite) if finite else None


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    return {method: [p for p in points if p.method == method] for method in dict.fromkeys(p.method for p in points)}


def fields(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """All fields of the settings, with the code's size and the privacy weight first."""
    names = dict.fromkeys(name for setting in settings for name in setting)
    return sorted(names, key=lambda name: {"k": 0, "privacy_weight": 1}.get(name, 2))

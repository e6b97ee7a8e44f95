"""Trials, and the points that those of one setting make: means over seeds with their intervals."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special

State = Literal["finished", "stopped", "failed", "running", "killed"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a search: a setting under a seed, and what fresh attacks made of it."""

    name: str
    """Of its folder and its MLflow run."""
    setting: dict[str, Any]
    """Dotted config field -> value, of the fields that are searched."""
    seed: int
    state: State
    """`stopped`: early, by the scheduler. Trials that are not `finished` have no place on a front."""
    control: bool = False
    """The undefended control (privacy weight 0): shown, never on the front."""
    accuracy: float | None = None
    """On the test split, as all down to `attack`."""
    accuracy_low: float | None = None
    """Lower end of its 95 % bootstrap interval over people."""
    accuracy_high: float | None = None
    strongest_r2: float | None = None
    """R2 of the strongest fresh attack."""
    strongest_r2_low: float | None = None
    """Lower end of its 95 % bootstrap interval over people."""
    strongest_r2_high: float | None = None
    attack: str | None = None
    """The strongest one's name."""
    val_accuracy: float | None = None
    """On the validation split: what settings are ranked by."""
    val_r2: float | None = None
    """Of the strongest attack on the validation split, on which it was tuned."""
    majority_accuracy: float | None = None
    """Accuracy of always guessing each label's commoner training value, on the test split."""
    label_floor_r2: float | None = None
    """R2 of pictures predicted from the task's true labels."""
    seconds: float | None = None
    """Wall time, attacks included."""
    run_id: str | None = None
    """Of its MLflow run."""
    output: str | None = None
    """Its folder."""
    cause: str | None = None
    """Why it failed."""
    method: str = ""
    """Experiment or mechanism, when several are compared."""
    data: str | None = None
    """Digest of the data set: numbers on different ones cannot be compared."""
    degenerate: str | None = None
    """Why its code is degenerate (constant, or useless), if it is: it is shown, is on no front and passes no gate."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """All finished trials of one setting: a place in the plane of accuracy and R2. What its intervals mean is said at `grouped`."""

    setting: dict[str, Any]
    trials: tuple[str, ...]
    """Their names."""
    seeds: tuple[int, ...]
    """Each once."""
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    strongest_r2: float
    strongest_r2_low: float | None
    strongest_r2_high: float | None
    val_accuracy: float | None
    val_r2: float | None
    majority_accuracy: float | None
    method: str = ""
    degenerate: bool = False
    """Whether the code of any of its trials is."""

    @property
    def num_trials(self) -> int:
        return len(self.trials)


class Estimate(NamedTuple):
    """A number with the ends of its interval, where they are known."""

    value: float | None
    low: float | None = None
    high: float | None = None


def scored(trial: Trial) -> bool:
    """Whether a trial has come to its end with both numbers."""
    numbers = (trial.accuracy, trial.strongest_r2)
    return trial.state == "finished" and all(number is not None and math.isfinite(number) for number in numbers)


def points(trials: Sequence[Trial], *, control: bool = False) -> list[Point]:
    """The finished trials by method and setting, in the order of their first; `control`: those of the controls instead."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        if scored(trial) and trial.control == control:
            groups.setdefault(place(trial), []).append(trial)
    return [grouped(group) for group in groups.values()]


def place(one: Trial | Point) -> tuple[str, str]:
    """What is the same for trials that are one point, and for that point."""
    return one.method, identity(one.setting)


def identity(setting: Mapping[str, Any]) -> str:
    """The same for equal settings, whatever the order of their fields and whether 1 is written 1.0."""
    values = {name: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for name, v in setting.items()}
    return json.dumps(values, sort_keys=True)


def grouped(trials: Sequence[Trial]) -> Point:
    """The point of finished trials of one setting. Repetitions of a seed are averaged first: they are no further evidence.

    The intervals mean two things. Of one seed: how the numbers of this one privatizer vary with the people it is scored on. Of
    several: how the mean varies with the seed of the training, the scored people being the same (`mean_with_ci`).
    """
    seeds = sorted({trial.seed for trial in trials})
    by_seed = [[trial for trial in trials if trial.seed == seed] for seed in seeds]

    def over_seeds(name: str) -> Estimate:
        ends = (name, f"{name}_low", f"{name}_high")
        return mean_with_ci([Estimate(*(mean([getattr(trial, end) for trial in same]) for end in ends)) for same in by_seed])

    def average(name: str) -> float | None:
        return mean([mean([getattr(trial, name) for trial in same]) for same in by_seed])

    accuracy, r2 = over_seeds("accuracy"), over_seeds("strongest_r2")
    assert accuracy.value is not None
    assert r2.value is not None
    return Point(
        setting=trials[0].setting,
        method=trials[0].method,
        trials=tuple(trial.name for trial in trials),
        seeds=tuple(seeds),
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        strongest_r2=r2.value,
        strongest_r2_low=r2.low,
        strongest_r2_high=r2.high,
        val_accuracy=average("val_accuracy"),
        val_r2=average("val_r2"),
        majority_accuracy=average("majority_accuracy"),
        degenerate=any(trial.degenerate is not None for trial in trials),
    )


def mean_with_ci(seeds: Sequence[Estimate]) -> Estimate:
    """Of n seeds: mean +- t(0.975, n - 1) s / sqrt(n), Student's interval, s the sample deviation. Of one: its own estimate."""
    if len(seeds) == 1:
        return seeds[0]
    values = np.array([seed.value for seed in seeds], dtype=np.float64)
    half = special.stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values))
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(there) if there else None


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    return {method: [p for p in points if p.method == method] for method in dict.fromkeys(p.method for p in points)}


def fields(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """All fields of some settings, the code's size and the privacy weight first."""
    names = dict.fromkeys(name for setting in settings for name in setting)
    return sorted(names, key=lambda name: {"k": 0, "privacy_weight": 1}.get(name, 2))

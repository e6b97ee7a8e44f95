"""What many finished trainings amount to: the front of accuracy against the strongest fresh attack's R2, and a recommendation."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import moocore
import numpy as np
from prettytable import PrettyTable, TableStyle
from scipy import special, stats

from cpgan_ray.errors import InputError

State = Literal["finished", "stopped", "failed", "running", "killed"]
MAXIMISE = [True, False]
"""Of accuracy and R2, in this order everywhere."""


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


class Reference(NamedTuple):
    """The worst that counts, from which hypervolumes are measured: the majority guess on the test split, everything recovered."""

    accuracy: float
    strongest_r2: float = 1.0


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

    @property
    def num_trials(self) -> int:
        return len(self.trials)


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The setting to use."""

    point: Point
    rule: str
    """What chose it, in words."""


Command = Callable[[Mapping[str, Any], int], str]
"""From a setting and a seed to the command that trains it."""


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
    several: how the mean varies with the seed of the training, the scored people being the same (`across`).
    """
    seeds = sorted({trial.seed for trial in trials})
    by_seed = [[trial for trial in trials if trial.seed == seed] for seed in seeds]

    def over_seeds(name: str) -> Estimate:
        ends = (name, f"{name}_low", f"{name}_high")
        return across([Estimate(*(mean([getattr(trial, end) for trial in same]) for end in ends)) for same in by_seed])

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
    )


class Estimate(NamedTuple):
    """A number with the ends of its interval, where they are known."""

    value: float | None
    low: float | None = None
    high: float | None = None


def across(seeds: Sequence[Estimate]) -> Estimate:
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


def plane(points: Sequence[Point]) -> np.ndarray:
    """Accuracy and R2, (N, 2)."""
    return np.array([(p.accuracy, p.strongest_r2) for p in points], dtype=np.float64).reshape(-1, 2)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none is at least as good in both numbers and better in one. By R2, the most private first.

    Points that are equal in both numbers do not beat each other: all of them stay.
    """
    if not points:
        return []
    kept = moocore.is_nondominated(plane(points), maximise=MAXIMISE, keep_weakly=True)
    return sorted((p for p, keep in zip(points, kept, strict=True) if keep), key=lambda p: (p.strongest_r2, identity(p.setting)))


def reference_point(trials: Sequence[Trial]) -> Reference | None:
    """The majority guess that the trials tell, the largest where they differ; None where none tells it."""
    told = [t.majority_accuracy for t in trials if t.majority_accuracy is not None and math.isfinite(t.majority_accuracy)]
    return Reference(max(told)) if told else None


def hypervolume(points: Sequence[Point], reference: Reference) -> float:
    """Area of the outcomes that some point is at least as good as and that are no worse than the reference; 0 without points.

    E. Zitzler and L. Thiele, Multiobjective optimization using evolutionary algorithms, PPSN 1998; computed by moocore.
    """
    return float(moocore.hypervolume(plane(points), ref=list(reference), maximise=MAXIMISE)) if points else 0.0


def hypervolume_history(trials: Sequence[Trial], reference: Reference) -> list[float]:
    """The hypervolume after each finished trial, in the order given.

    Each time, seeds of one setting are averaged as in `points`: a second seed that turns out worse lowers it.
    """
    history: list[float] = []
    groups: dict[tuple[str, str], list[Trial]] = {}
    found: dict[tuple[str, str], Point] = {}
    for trial in trials:
        if scored(trial) and not trial.control:
            group = groups.setdefault(place(trial), [])
            group.append(trial)
            found[place(trial)] = grouped(group)
            history.append(hypervolume(list(found.values()), reference))
    return history


def recommend(points: Sequence[Point], *, max_r2: float | None = None, min_accuracy: float | None = None) -> Recommendation | None:
    """The setting to use, and the rule that chose it; None where no setting qualifies (`nearest` says why).

    A bound is a gate on the number that is reported, that of the test split. What passes is *ranked on the validation split*, so
    that the choice's test number is not the luckiest of many. All points are candidates, not the front alone: being on it is luck
    on the test split too.

        max_r2           the largest validation accuracy among strongest R2 <= max_r2
        min_accuracy     the smallest validation R2 among accuracy >= min_accuracy
        both             the largest validation accuracy among those that pass both
        neither          the largest (validation accuracy - majority accuracy) * (1 - max(validation R2, 0)), none below 0;
                         of equals the smallest validation R2
    """
    by_r2 = min_accuracy is not None and max_r2 is None
    gates = [] if max_r2 is None else [f"strongest R2 <= {max_r2:g}"]
    gates += [] if min_accuracy is None else [f"accuracy >= {min_accuracy:g}"]
    free = not gates

    def rank(p: Point) -> tuple[float, float]:
        accuracy, r2 = known(p.val_accuracy, -math.inf), known(p.val_r2, math.inf)
        if free:
            return max(accuracy - known(p.majority_accuracy, 0), 0) * (1 - max(r2, 0)), -r2
        return (-r2, accuracy) if by_r2 else (accuracy, -r2)

    needed = ("val_accuracy", "val_r2") if free else ("val_r2",) if by_r2 else ("val_accuracy",)
    candidates = [p for p in qualified(points, max_r2, min_accuracy) if all(getattr(p, name) is not None for name in needed)]
    if not candidates:
        return None
    best = max(candidates, key=rank)
    if free:
        rule = f"largest (validation accuracy - {known(best.majority_accuracy, 0):.3f}) * (1 - validation R2)"
    else:
        rule = f"{'smallest validation R2' if by_r2 else 'largest validation accuracy'} among settings with {' and '.join(gates)}"
    return Recommendation(point=best, rule=rule)


def known(value: float | None, default: float) -> float:
    return default if value is None else value


def qualified(points: Sequence[Point], max_r2: float | None, min_accuracy: float | None) -> list[Point]:
    """Those that pass both gates."""
    return [
        p for p in points if (max_r2 is None or p.strongest_r2 <= max_r2) and (min_accuracy is None or p.accuracy >= min_accuracy)
    ]


def nearest(points: Sequence[Point], *, max_r2: float | None = None, min_accuracy: float | None = None) -> str:
    """Why nothing is recommended, and what comes nearest to it."""
    if not points:
        return "no trial has finished with an accuracy and an attack's R2"
    lowest = min(points, key=lambda p: p.strongest_r2)
    highest = max(points, key=lambda p: p.accuracy)
    if max_r2 is not None and lowest.strongest_r2 > max_r2:
        return f"no setting has strongest R2 <= {max_r2:g}; the lowest is {lowest.strongest_r2:.4f} at {label(lowest)}"
    if min_accuracy is not None and highest.accuracy < min_accuracy:
        return f"no setting has accuracy >= {min_accuracy:g}; the highest is {highest.accuracy:.4f} at {label(highest)}"
    if max_r2 is not None and min_accuracy is not None and not qualified(points, max_r2, min_accuracy):
        best = max(qualified(points, max_r2, None), key=lambda p: p.accuracy)
        return (
            f"no setting has both strongest R2 <= {max_r2:g} and accuracy >= {min_accuracy:g}; "
            f"the highest accuracy of the private ones is {best.accuracy:.4f} at {label(best)}"
        )
    return "no setting that qualifies has the numbers of the validation split that it would be ranked by"


def label(point: Point) -> str:
    """A point's setting in one line."""
    values = [f"{name}={short(value)}" for name, value in point.setting.items()]
    return " ".join(([point.method] if point.method else []) + values)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def comparable(trials: Sequence[Trial]) -> None:
    """Raises: InputError where finished trials were scored on different data sets or tasks: their numbers make no common front."""
    done = [trial for trial in trials if scored(trial)]
    for told, of in (("data", "data set digest"), ("majority_accuracy", "majority accuracy, so another task,")):
        first: dict[Any, Trial] = {}
        for trial in done:
            value = getattr(trial, told)
            if value is not None:
                first.setdefault(round(value, 6) if isinstance(value, float) else value, trial)
        if len(first) > 1:
            runs = "; ".join(f"{value} in {'/'.join(filter(None, (t.method, t.name)))}" for value, t in first.items())
            raise InputError(f"these runs have no common front, each has its own {of} {runs}: give runs on one test set and task")


def fields(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """All fields of some settings, the code's size and the privacy weight first."""
    names = dict.fromkeys(name for setting in settings for name in setting)
    return sorted(names, key=lambda name: {"k": 0, "privacy_weight": 1}.get(name, 2))


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    return {method: [p for p in points if p.method == method] for method in dict.fromkeys(p.method for p in points)}


def rank_correlations(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Spearman's rank correlation of each numeric field with both numbers, over all points.

    `within`: the mean over the groups of 3 points or more that share all other fields and the method, where there are such; over
    all points another field may make or hide a correlation. None where nothing varies.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in fields(p.setting for p in points):
        having = [p for p in points if number(p.setting.get(name)) is not None]
        if len({p.setting[name] for p in having}) < 2:
            continue
        groups: dict[tuple[str, str], list[Point]] = {}
        for p in having:
            others = {other: value for other, value in p.setting.items() if other != name}
            groups.setdefault((p.method, identity(others)), []).append(p)
        large = [group for group in groups.values() if len(group) >= 3]
        within = {of: mean(spearman(group, name, of) for group in large) for of in ("strongest_r2", "accuracy")}
        found[name] = {of: spearman(having, name, of) for of in ("strongest_r2", "accuracy")} | {
            "num_points": len(having),
            "within": {**within, "num_groups": len(large)} if len(groups) > 1 and large else None,
        }
    return found


def spearman(points: Sequence[Point], name: str, of: str) -> float | None:
    x, y = [p.setting[name] for p in points], [getattr(p, of) for p in points]
    if len(points) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_json(
    trials: Sequence[Trial],
    *,
    reference: Reference | None = None,
    max_r2: float | None = None,
    min_accuracy: float | None = None,
    command: Command | None = None,
) -> dict[str, Any]:
    """All that is known of the trials, ready for JSON: what is not known, and what is not finite, is None.

    `reference`: that of the trials where none is given. `command`: the recommended setting's is told.
    """
    reference = reference or reference_point(trials)
    found = points(trials)
    best = front(found)
    on_front = {place(p) for p in best}
    chosen = recommend(found, max_r2=max_r2, min_accuracy=min_accuracy)
    methods = by_method(found)

    def volume(some: Sequence[Point]) -> float | None:
        return None if reference is None else hypervolume(some, reference)

    def rows(control: bool) -> list[dict[str, Any]]:
        return [
            t.setting | asdict(t) | {"on_front": scored(t) and not control and place(t) in on_front}
            for t in trials
            if t.control == control
        ]

    values = {
        "trials": rows(False),
        "control": rows(True),
        "points": [row(p) | {"on_front": p in best} for p in found],
        "front": [row(p) for p in best],
        "hypervolume": volume(found),
        "hypervolume_history": [] if reference is None else hypervolume_history(trials, reference),
        "reference_point": None if reference is None else reference._asdict(),
        "label_floor_r2": mean(t.label_floor_r2 for t in trials),
        "majority_accuracy": mean(t.majority_accuracy for t in trials),
        "spearman": rank_correlations(found),
        "recommended": None,
        "reason": None,
    }
    if len(methods) > 1:
        values["methods"] = {
            method: {"front": [row(p) for p in front(some)], "hypervolume": volume(some)} for method, some in methods.items()
        }
    if chosen is None:
        values["reason"] = nearest(found, max_r2=max_r2, min_accuracy=min_accuracy)
    else:
        told = command(chosen.point.setting, chosen.point.seeds[0]) if command else None
        values["recommended"] = row(chosen.point) | {"rule": chosen.rule, "command": told}
    return finite(values)


def row(point: Point) -> dict[str, Any]:
    """A point with its setting's fields beside the numbers."""
    return point.setting | asdict(point) | {"num_trials": point.num_trials}


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(points: Sequence[Point]) -> str:
    """The points as an aligned Markdown table, by R2; * marks those on the front."""
    names = fields(p.setting for p in points)
    methods = len(by_method(points)) > 1
    best = front(points)
    drawn = PrettyTable([*(["method"] if methods else []), *names, "seeds", "accuracy", "strongest R2", "front"])
    drawn.set_style(TableStyle.MARKDOWN)
    drawn.align = "r"
    for p in sorted(points, key=lambda p: p.strongest_r2):
        drawn.add_row(
            [
                *([p.method] if methods else []),
                *(short(p.setting.get(name, "")) for name in names),
                len(p.seeds),
                with_interval(p.accuracy, p.accuracy_low, p.accuracy_high),
                with_interval(p.strongest_r2, p.strongest_r2_low, p.strongest_r2_high),
                "*" if p in best else "",
            ]
        )
    return drawn.get_string()


def with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def write(
    trials: Sequence[Trial],
    folder: Path,
    *,
    reference: Reference | None = None,
    max_r2: float | None = None,
    min_accuracy: float | None = None,
    command: Command | None = None,
) -> dict[str, Any]:
    """`frontier.json`, `frontier.csv` (a row a trial) and `frontier.png`, each whole or not at all. Returns the first's values."""
    from cpgan_ray.evaluation.staircase import as_png

    values = as_json(trials, reference=reference, max_r2=max_r2, min_accuracy=min_accuracy, command=command)
    chosen = recommend(points(trials), max_r2=max_r2, min_accuracy=min_accuracy)
    files = {
        "frontier.json": (json.dumps(values, indent=1, allow_nan=False) + "\n").encode(),
        "frontier.csv": as_csv(values).encode(),
        "frontier.png": as_png(trials, reference=reference or reference_point(trials), recommended=chosen and chosen.point),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        beside = folder / f"{name}.part"
        beside.write_bytes(content)
        beside.replace(folder / name)
    return values


def as_csv(values: Mapping[str, Any]) -> str:
    """A row a trial, controls last; a column for each field of a setting."""
    rows = [*values["trials"], *values["control"]]
    names = fields(row["setting"] for row in rows)
    own = [field.name for field in dataclasses.fields(Trial) if field.name != "setting"]
    columns = ["name", *names, *(name for name in own if name != "name" and name not in names), "on_front"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

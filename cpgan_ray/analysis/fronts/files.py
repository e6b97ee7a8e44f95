"""Files and tables of trials: JSON, CSV, a Markdown table, a figure."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prettytable import PrettyTable, TableStyle

from cpgan_ray.analysis.fronts.choice import Recommendation, explain_no_choice, recommend, short
from cpgan_ray.analysis.fronts.fronts import Reference, front, hypervolume, hypervolume_history, reference_point
from cpgan_ray.analysis.fronts.knobs import rank_correlations
from cpgan_ray.analysis.fronts.trials import Point, Trial, by_method, fields, group_key, mean, points, scored
from cpgan_ray.common.atomic_io import write_bytes

Command = Callable[[Mapping[str, Any], int], str]
"""Function from a setting and a seed to the command that trains it."""


def write(
    trials: Sequence[Trial],
    folder: Path,
    *,
    max_r2: float | None = None,
    min_accuracy: float | None = None,
    command: Command | None = None,
    chosen: Recommendation | None = None,
) -> dict[str, Any]:
    """Write `frontier.json`, `frontier.csv` (one row per trial) and `frontier.png`, each atomically. Returns the values of
    `frontier.json`.

    max_r2, min_accuracy: gates of `recommend`; command: used for the command of the recommended setting; chosen: a recommendation
    by another rule than that of `recommend`.
    """
    from cpgan_ray.analysis.fronts.plot import as_png

    settings, reference = points(trials), reference_point(trials)
    chosen = chosen or recommend(settings, max_r2=max_r2, min_accuracy=min_accuracy)
    recommended, reason = None, None
    if chosen is None:
        reason = explain_no_choice(settings, max_r2=max_r2, min_accuracy=min_accuracy)
    else:
        text = command(chosen.point.setting, chosen.point.seeds[0]) if command else None
        recommended = row(chosen.point) | {"rule": chosen.rule, "command": text}
    values = as_json(trials, reference=reference, recommended=recommended, reason=reason)
    files = {
        "frontier.json": (json.dumps(values, indent=1, allow_nan=False) + "\n").encode(),
        "frontier.csv": as_csv(values).encode(),
        "frontier.png": as_png(trials, reference=reference, recommended=chosen and chosen.point),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)
    return values


def as_json(
    trials: Sequence[Trial], *, reference: Reference | None, recommended: Mapping[str, Any] | None, reason: str | None
) -> dict[str, Any]:
    """All values of `frontier.json`. Unknown numbers, and those that are not finite, are None.

    recommended: the recommended setting; if it is None, `reason` says why.
    """
    settings = points(trials)
    best = front(settings)
    on_front = {group_key(p) for p in best}
    methods = by_method(settings)

    def volume(of: Sequence[Point]) -> float | None:
        return None if reference is None else hypervolume(of, reference)

    def rows(control: bool) -> list[dict[str, Any]]:
        return [
            t.setting | asdict(t) | {"on_front": scored(t) and not control and group_key(t) in on_front}
            for t in trials
            if t.control == control
        ]

    values = {
        "trials": rows(False),
        "control": rows(True),
        "points": [row(p) | {"on_front": p in best} for p in settings],
        "front": [row(p) for p in best],
        "hypervolume": volume(settings),
        "hypervolume_history": [] if reference is None else hypervolume_history(trials, reference),
        "reference_point": None if reference is None else reference._asdict(),
        "label_floor_r2": mean(t.label_floor_r2 for t in trials),
        "majority_accuracy": mean(t.majority_accuracy for t in trials),
        "spearman": rank_correlations(settings),
        "recommended": recommended,
        "reason": reason,
    }
    if len(methods) > 1:
        values["methods"] = {
            method: {"front": [row(p) for p in front(of_method)], "hypervolume": volume(of_method)}
            for method, of_method in methods.items()
        }
    return finite(values)


def row(point: Point) -> dict[str, Any]:
    """The fields of a point, with the fields of its setting at the same level."""
    return point.setting | asdict(point) | {"num_trials": point.num_trials}


def finite(value: Any) -> Any:
    """The same value, with None in place of numbers that JSON cannot represent."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(values: Mapping[str, Any]) -> str:
    """One row per trial, controls last; one column for each field of a setting."""
    rows = [*values["trials"], *values["control"]]
    names = fields(row["setting"] for row in rows)
    trial_fields = [field.name for field in dataclasses.fields(Trial) if field.name != "setting"]
    columns = ["name", *names, *(name for name in trial_fields if name != "name" and name not in names), "on_front"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(points: Sequence[Point]) -> str:
    """The points as an aligned Markdown table, sorted by R2; * marks points on the front."""
    names = fields(p.setting for p in points)
    methods = len(by_method(points)) > 1
    best = front(points)
    output = PrettyTable([*(["method"] if methods else []), *names, "seeds", "accuracy", "strongest R2", "front"])
    output.set_style(TableStyle.MARKDOWN)
    output.align = "r"
    for p in sorted(points, key=lambda p: p.strongest_r2):
        output.add_row(
            [
                *([p.method] if methods else []),
                *(short(p.setting.get(name, "")) for name in names),
                len(p.seeds),
                with_interval(p.accuracy, p.accuracy_low, p.accuracy_high),
                with_interval(p.strongest_r2, p.strongest_r2_low, p.strongest_r2_high),
                "degenerate" if p.degenerate else "*" if p in best else "",
            ]
        )
    return output.get_string()


def with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"

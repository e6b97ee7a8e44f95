"""What is written of some trials: JSON, CSV, a table, a figure."""

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

from cpgan_ray.analysis.fronts.choice import Recommendation, nearest, recommend, short
from cpgan_ray.analysis.fronts.fronts import Reference, front, hypervolume, hypervolume_history, reference_point
from cpgan_ray.analysis.fronts.knobs import rank_correlations
from cpgan_ray.analysis.fronts.trials import Point, Trial, by_method, fields, mean, place, points, scored
from cpgan_ray.common.atomic_io import write_bytes

Command = Callable[[Mapping[str, Any], int], str]
"""From a setting and a seed to the command that trains it."""


def write(
    trials: Sequence[Trial],
    folder: Path,
    *,
    reference: Reference | None = None,
    max_r2: float | None = None,
    min_accuracy: float | None = None,
    command: Command | None = None,
    chosen: Recommendation | None = None,
) -> dict[str, Any]:
    """`frontier.json`, `frontier.csv` (a row a trial) and `frontier.png`, each whole or not at all. Returns the first's values.

    `chosen`: by another rule than that of `recommend`.
    """
    from cpgan_ray.analysis.fronts.plot import as_png

    chosen = chosen or recommend(points(trials), max_r2=max_r2, min_accuracy=min_accuracy)
    values = as_json(trials, reference=reference, max_r2=max_r2, min_accuracy=min_accuracy, command=command, chosen=chosen)
    files = {
        "frontier.json": (json.dumps(values, indent=1, allow_nan=False) + "\n").encode(),
        "frontier.csv": as_csv(values).encode(),
        "frontier.png": as_png(trials, reference=reference or reference_point(trials), recommended=chosen and chosen.point),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)
    return values


def as_json(
    trials: Sequence[Trial],
    *,
    reference: Reference | None = None,
    max_r2: float | None = None,
    min_accuracy: float | None = None,
    command: Command | None = None,
    chosen: Recommendation | None = None,
) -> dict[str, Any]:
    """All that is known of the trials, ready for JSON: what is not known, and what is not finite, is None.

    `reference`: that of the trials where none is given. `command`: the recommended setting's is told.
    """
    reference = reference or reference_point(trials)
    found = points(trials)
    best = front(found)
    on_front = {place(p) for p in best}
    chosen = chosen or recommend(found, max_r2=max_r2, min_accuracy=min_accuracy)
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
                "degenerate" if p.degenerate else "*" if p in best else "",
            ]
        )
    return drawn.get_string()


def with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"

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

import numpy as np
from prettytable import PrettyTable, TableStyle

from cpgan_ray.analysis.fronts.answers import affordable_answers, answers_among, answers_row, client_budget, outcomes_of
from cpgan_ray.analysis.fronts.choice import NAMES, Recommendation, explain_no_choice, meets_bounds, recommend, short
from cpgan_ray.analysis.fronts.columns import measure_columns, with_interval
from cpgan_ray.analysis.fronts.fronts import (
    Reference,
    front,
    hull,
    hypervolume,
    hypervolume_history,
    outcomes,
    r2_levels,
    reference_point,
    utility_levels,
)
from cpgan_ray.analysis.fronts.knobs import rank_correlations
from cpgan_ray.analysis.fronts.trials import Point, Trial, by_method, fields, group_key, mean, points, scored
from cpgan_ray.common.atomic_io import write_bytes
from cpgan_ray.config import Objective

Command = Callable[[Mapping[str, Any], int], str]
"""Function from a setting and a seed to the command that trains it."""


def write(
    trials: Sequence[Trial],
    folder: Path,
    *,
    objective: Objective = "accuracy",
    max_r2: float | None = None,
    min_accuracy: float | None = None,
    max_multiply_adds: float | None = None,
    bits: bool = False,
    command: Command | None = None,
    chosen: Recommendation | None = None,
    control_utility: float | None = None,
) -> dict[str, Any]:
    """Write `frontier.json`, `frontier.csv` (one row per trial) and `frontier.png`, each atomically. Returns the values of
    `frontier.json`.

    max_r2, min_accuracy, max_multiply_adds: bounds of `recommend`; bits: whether bits on the wire are an objective;
    command: used for the command of the recommended setting;
    chosen: a recommendation by another rule than that of `recommend`; control_utility: of the undefended control, if it is not
    among the trials.
    """
    from cpgan_ray.analysis.fronts.plot import as_png

    settings = points(trials, objective=objective)
    bounds = {"max_r2": max_r2, "min_accuracy": min_accuracy, "max_multiply_adds": max_multiply_adds}
    chosen = chosen or recommend(settings, **bounds)
    recommended, reason = None, None
    if chosen is None:
        reason = explain_no_choice(settings, **bounds)
    else:
        text = command(chosen.point.setting, chosen.point.seeds[0]) if command else None
        met = meets_bounds(chosen.point, max_r2=max_r2, min_accuracy=min_accuracy)
        recommended = row(chosen.point) | {"rule": chosen.rule, "meets_bounds": met, "command": text}
    values = as_json(
        trials, objective=objective, recommended=recommended, reason=reason, control_utility=control_utility, bits=bits
    )
    files = {
        "frontier.json": (json.dumps(values, indent=1, allow_nan=False) + "\n").encode(),
        "frontier.csv": as_csv(values).encode(),
        "frontier.png": as_png(trials, objective=objective, recommended=chosen and chosen.point, bits=bits),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)
    return values


def control_mean(trials: Sequence[Trial], objective: Objective) -> float | None:
    """Mean utility of the undefended controls; None if there is none."""
    return mean(p.utility for p in points(trials, objective=objective, control=True))


def as_json(
    trials: Sequence[Trial],
    *,
    objective: Objective,
    recommended: Mapping[str, Any] | None,
    reason: str | None,
    control_utility: float | None = None,
    bits: bool = False,
) -> dict[str, Any]:
    """All values of `frontier.json`. Unknown numbers, and those that are not finite, are None.

    recommended: the recommended setting; if it is None, `reason` says why; control_utility: of the undefended control, if it is not
    among the trials (see `utility_levels`).
    """
    reference = reference_point(trials, objective, bits=bits)
    settings, controls = (points(trials, objective=objective, control=control) for control in (False, True))
    answers = answers_among(settings, controls)
    best = front(settings, reference)
    on_front = {group_key(p) for p in best}
    methods = by_method(settings)
    control_utility = control_utility if control_utility is not None else control_mean(trials, objective)
    levels = utility_levels(reference, control_utility) if reference else {}

    def measures(of: Sequence[Point]) -> dict[str, Any]:
        if reference is None:
            return {"front": [], "hull": [], "hypervolume": None, "r2_at": [], "answers_at_equal_cost": None}
        r2 = r2_levels(of, reference, levels)
        budget = client_budget(of)
        vertices, area = hull(outcomes_of(affordable_answers(answers, budget)), reference)
        return {
            "front": [row(p) for p in front(of, reference)],
            "hull": corners(hull(outcomes(of), reference)[0], objective),
            "hypervolume": hypervolume(of, reference),
            "r2_at": [{"share": share, objective: levels[share], "strongest_r2": value} for share, value in r2.items()],
            "answers_at_equal_cost": {"multiply_adds": budget, "hull": corners(vertices, objective), "hypervolume": area},
        }

    def rows(control: bool) -> list[dict[str, Any]]:
        return [
            t.setting | asdict(t) | {"on_front": scored(t, objective) and not control and group_key(t) in on_front}
            for t in trials
            if t.control == control
        ]

    values = {
        "objective": objective,
        "trials": rows(False),
        "control": rows(True),
        "points": [row(p) | {"on_front": p in best} for p in settings],
        **measures(settings),
        "hypervolume_history": [] if reference is None else hypervolume_history(trials, reference, objective),
        "reference_point": None if reference is None else reference_values(reference, objective),
        "label_floor_r2": mean(t.label_floor_r2 for t in trials),
        "answers": [row for row in map(answers_row, controls) if row is not None],
        "majority_accuracy": mean(t.majority_accuracy for t in trials),
        "spearman": rank_correlations(settings),
        "recommended": recommended,
        "reason": reason,
    }
    if len(methods) > 1:
        values["methods"] = {method: measures(of_method) for method, of_method in methods.items()}
    return finite(values)


def corners(vertices: np.ndarray, objective: Objective) -> list[dict[str, float]]:
    """The vertices of a hull (V, 2) by the names of the outcomes."""
    return [{"strongest_r2": float(r2), objective: float(utility)} for r2, utility in vertices]


def reference_values(reference: Reference, objective: Objective) -> dict[str, float]:
    """The reference by the names of the outcomes; bits only if they are an objective."""
    values = {objective: reference.utility, "strongest_r2": reference.strongest_r2}
    return values if reference.bits is None else values | {"bits": reference.bits}


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


def table(points: Sequence[Point], reference: Reference | None) -> str:
    """The points as an aligned Markdown table, sorted by R2; * marks points on the front."""
    names = fields(p.setting for p in points)
    methods = len(by_method(points)) > 1
    best = front(points, reference)
    utility = NAMES[points[0].objective] if points else NAMES["accuracy"]
    columns = measure_columns(points)
    output = PrettyTable([*(["method"] if methods else []), *names, "seeds", utility, "strongest R2", *columns, "front"])
    output.set_style(TableStyle.MARKDOWN)
    output.align = "r"
    for p in sorted(points, key=lambda p: p.strongest_r2):
        output.add_row(
            [
                *([p.method] if methods else []),
                *(short(p.setting.get(name, "")) for name in names),
                len(p.seeds),
                with_interval(p.utility, p.utility_low, p.utility_high),
                with_interval(p.strongest_r2, p.strongest_r2_low, p.strongest_r2_high),
                *(text(p) for text in columns.values()),
                "degenerate" if p.degenerate else "*" if p in best else "",
            ]
        )
    return output.get_string()


def measures_table(values: Mapping[str, Any]) -> str:
    """A row for each method of `frontier.json`: the hypervolume of its hull, and the hull's R2 at fixed utilities."""
    by_method: Mapping[str, Any] = values.get("methods") or {"all settings": values}
    levels = next((m["r2_at"] for m in by_method.values()), [])
    utility = NAMES[values["objective"]]
    output = PrettyTable(["hull of", "hypervolume", *(f"R2 at {utility} {level[values['objective']]:.3f}" for level in levels)])
    output.set_style(TableStyle.MARKDOWN)
    output.align = "r"
    for method, measures in by_method.items():
        volume = measures["hypervolume"]
        at = ["not reached" if level["strongest_r2"] is None else f"{level['strongest_r2']:.3f}" for level in measures["r2_at"]]
        output.add_row([method, "" if volume is None else f"{volume:.4f}", *at])
    return output.get_string()

"""The results of a comparison: a cell as a row, a line and metrics, and the tables."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prettytable import PrettyTable, TableStyle

from cpgan_ray.analysis.cells import CELL, Cell, strongest, trial
from cpgan_ray.analysis.fronts import Estimate, Trial, mean_with_ci, with_interval
from cpgan_ray.common.atomic_io import atomic_path
from cpgan_ray.common.json_files import read_json
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report.report import degenerate
from cpgan_ray.mechanisms import MECHANISMS

PUBLISHED, THEORY, TABLE = "published.png", "theory.png", "results.csv"
UNSATURATED = "\n\n\\* still gaining when its budget ended under at least one seed: a lower bound"
Values = Mapping[str, Any]
"""Of a cell's file."""


def all_played(folder: Path) -> list[Values]:
    """All cells of a comparison's folder, whichever resumption has played them: by mechanism, from the least private setting on, by
    seed."""

    def place(values: Values) -> tuple[int, float, int]:
        cell = Cell(**values["cell"])
        tried = MECHANISMS[cell.mechanism].settings
        return list(MECHANISMS).index(cell.mechanism), cell.setting if tried[0] < tried[-1] else -cell.setting, cell.seed

    return sorted((read_cell(path) for path in (folder / "cells").glob(f"*/{CELL}")), key=place)


def read_cell(path: Path) -> Values:
    """What a cell's file says. It may come with a folder from elsewhere.

    Raises: InputError if it is damaged.
    """
    try:
        values = read_json(path)
        if (name := Cell(**values["cell"]).mechanism) not in MECHANISMS:
            raise ValueError(f"mechanism {name!r:.60}")
        if "failed" not in values:
            logged(values)
            row(values)
            trial(values, path.parent)
        line(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise InputError(f"{path} is damaged ({type(e).__name__}: {e}): remove its folder, and the cell is played again") from e
    return values


def logged(values: Values) -> dict[str, float]:
    if "failed" in values:
        return {}
    best = strongest(values)
    found = {f"utility/{name}": value for name, value in values["utility"].items()}
    found |= {f"privacy/strongest_{name}": best[name] for name in ("r2",)}
    found |= {"privacy/strongest_r2_low": best["low"], "privacy/strongest_r2_high": best["high"]}
    found |= {f"privacy/{name}": values["privacy"][name] for name in ("val_r2", "label_floor_r2", "excess_r2")}
    return found | {f"attack/{a['name']}/r2": a["r2"] for a in values["attacks"]} | {"time/total_s": values["seconds"]}


def outcome_tags(values: Values) -> dict[str, str]:
    if "failed" in values:
        return {"failed": values["failed"]}
    tags = {"strongest.attack": strongest(values)["attack"]}
    why = degenerate(values)
    return tags | ({"code.degenerate": why[0]} if why else {})


def line(values: Values) -> str:
    """A cell in one line."""
    cell = Cell(**values["cell"])
    if "failed" in values:
        return f"{cell.name}: failed: {values['failed']}"
    best = strongest(values)
    accuracy = values["utility"]["accuracy"]
    return f"{cell.name}: accuracy {accuracy:.4f}, R2 {best['r2']:.4f} ({best['attack']}), {values['seconds']:.0f} s"


def write_table(values: Sequence[Values], folder: Path) -> None:
    """`results.csv`: a row for each training that came to its end, with every attack's R2 and mean squared error (0-255, or in the
    data's own unit)."""
    rows = [row(v) for v in finished(values)]
    names = list(dict.fromkeys(name for some in rows for name in some))
    with atomic_path(folder / TABLE) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def row(values: Values) -> dict[str, Any]:
    """A cell as a row of the table."""
    cell, best, utility = Cell(**values["cell"]), strongest(values), values["utility"]
    found: dict[str, Any] = {"mechanism": cell.mechanism, "knob": MECHANISMS[cell.mechanism].knob, "setting": cell.setting}
    found |= {"seed": cell.seed, "k": values["k"]}
    found |= {name: utility[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "val_accuracy")}
    found |= {"attack": best["attack"], "r2": best["r2"], "r2_low": best["low"], "r2_high": best["high"]}
    found |= {"label_floor_r2": values["privacy"]["label_floor_r2"], "val_r2": values["privacy"]["val_r2"]}
    for a in sorted(values["attacks"], key=lambda a: a["name"]):
        found |= {f"{a['name']}_r2": a["r2"], f"{a['name']}_mse": a.get("mse_255", a.get("mse_raw"))}
    return found | {"seconds": values["seconds"]}


def finished(values: Sequence[Values]) -> list[Values]:
    """Of some cells those whose training came to its end."""
    return [v for v in values if "failed" not in v]


def settings_table(values: Sequence[Values], trials: Sequence[Trial]) -> str:
    """A row for each setting, by mechanism: means over seeds with Student's 95 % intervals, or one seed's own."""
    drawn = PrettyTable(["mechanism", "setting", "k", "seeds", "accuracy", "strongest R2", "MSE", "attack"])
    drawn.set_style(TableStyle.MARKDOWN)
    drawn.align = "r"
    groups: dict[tuple[str, float], list[tuple[Values, Trial]]] = {}
    for v, t in zip(values, trials, strict=True):
        groups.setdefault((v["cell"]["mechanism"], v["cell"]["setting"]), []).append((v, t))
    for (mechanism, setting), group in groups.items():
        some = [t for _, t in group]
        numbers = [
            mean_with_ci([Estimate(getattr(t, n), getattr(t, f"{n}_low"), getattr(t, f"{n}_high")) for t in some])
            for n in ("accuracy", "strongest_r2")
        ]
        shown = [with_interval(e.value or 0.0, e.low, e.high) for e in numbers]
        errors = [mse(v) for v, _ in group]
        attacks = sorted({f"{t.attack or ''}{'' if saturated(v) else ' *'}" for v, t in group})
        knob = f"{MECHANISMS[mechanism].knob} {setting:g}"
        drawn.add_row(
            [mechanism, knob, group[0][0]["k"], len(some), *shown, f"{sum(errors) / len(errors):.4g}", ", ".join(attacks)]
        )
    return drawn.get_string() + UNSATURATED * ("*" in drawn.get_string())


def saturated(values: Values) -> bool:
    """Whether the cell's strongest attack had come to its end; a code that is a sample needs no attack."""
    name = strongest(values)["attack"]
    return all(a["saturated"] for a in values["attacks"] if a["name"] == name)


def mse(values: Values) -> float:
    """The strongest attack's mean squared error, on 0-255 or in the data's own unit."""
    best, first = strongest(values), values["attacks"][0]
    error = first.get("mse_255", first.get("mse_raw"))
    return error * (1 - best["r2"]) / (1 - first["r2"]) if first["r2"] < 1 else error


def volumes_table(told: Mapping[str, Any]) -> str:
    """A row for each mechanism: its hypervolume, and ours less it, paired over seeds."""
    drawn = PrettyTable(["mechanism", "hypervolume", "cpgan less it, paired"])
    drawn.set_style(TableStyle.MARKDOWN)
    drawn.align = "r"
    for method, volume in sorted(told["hypervolume"].items(), key=lambda item: -item[1]["value"]):
        less = told["ours_less"].get(method)
        told_less = "" if less is None or less["value"] is None else with_interval(less["value"], less["low"], less["high"])
        drawn.add_row([method, with_interval(volume["value"], volume["low"], volume["high"]), told_less])
    return drawn.get_string()

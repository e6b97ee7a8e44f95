"""Results of a comparison: the row, log line and metrics of a cell, and the tables."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prettytable import PrettyTable, TableStyle

from cpgan_ray.analysis.cells import CELL, Cell, by_name, strongest, trial
from cpgan_ray.analysis.comparison import OURS, UNDEFENDED
from cpgan_ray.analysis.fronts import NAMES, UTILITY, Trial, measure_columns, points, with_interval
from cpgan_ray.common.atomic_io import atomic_path
from cpgan_ray.common.json_files import read_json
from cpgan_ray.config import Objective
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.client import cost_metrics
from cpgan_ray.evaluation.identity.result import strongest_linkage
from cpgan_ray.evaluation.late_tasks import late_metrics
from cpgan_ray.evaluation.report.report import degeneracy_reasons
from cpgan_ray.mechanisms import MECHANISMS

PUBLISHED, THEORY, TABLE = "published.png", "theory.png", "results.csv"
UNSATURATED = "\n\n\\* still improving when its budget ended, for at least one seed: a lower bound"
Values = Mapping[str, Any]
"""Content of a cell's file."""


def read_cells(folder: Path) -> list[Values]:
    """All finished cells in a comparison's folder, also those of earlier sessions: sorted by mechanism, rounded ones first, then
    from the least private setting on, then by seed."""

    def sort_key(values: Values) -> tuple[int, bool, float, int]:
        cell = Cell(**values["cell"])
        settings = MECHANISMS[cell.mechanism].settings
        setting = cell.setting if settings[0] < settings[-1] else -cell.setting
        return list(MECHANISMS).index(cell.mechanism), not cell.rounded, setting, cell.seed

    return sorted((read_cell(path) for path in (folder / "cells").glob(f"*/{CELL}")), key=sort_key)


def read_cell(path: Path) -> Values:
    """Read a cell's file. It is checked, because the folder may come from another machine.

    Raises: InputError if it is damaged.
    """
    try:
        values = read_json(path)
        if (name := Cell(**values["cell"]).mechanism) not in MECHANISMS:
            raise ValueError(f"mechanism {name!r:.60}")
        if not all(isinstance(values["made_by"][name], str) for name in ("code", "config")):
            raise ValueError("made_by")
        if "failed" not in values:
            cell_metrics(values)
            row(values)
            trial(values, path.parent)
        line(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise InputError(f"{path} is damaged ({type(e).__name__}: {e}): remove its folder, and the cell is run again") from e
    return values


def cell_metrics(values: Values) -> dict[str, float]:
    """The metrics of a cell that are logged to MLflow; none if it failed."""
    if "failed" in values:
        return {}
    best = strongest(values)
    metrics = {f"utility/{name}": value for name, value in values["utility"].items()}
    metrics |= {"privacy/strongest_r2": best["r2"]}
    metrics |= {"privacy/strongest_r2_low": best["low"], "privacy/strongest_r2_high": best["high"]}
    metrics |= {f"privacy/{name}": values["privacy"][name] for name in ("val_r2", "label_floor_r2")}
    metrics |= with_ends("privacy/label_excess_r2", values["privacy"]["label_excess"], "r2")
    if values["privacy"]["excess"] is not None:
        metrics |= {"privacy/answers_floor_r2": values["privacy"]["answers_floor_r2"]}
        metrics |= with_ends("privacy/excess_r2", values["privacy"]["excess"], "r2")
    code, linked = values["code"], strongest_linkage(values["identity_linkage"])
    metrics |= {"code/bits_raw": code["raw"]}
    if code["bits"] is not None:
        metrics |= with_ends("code/bits", code, "bits") | {"code/val_bits": code["val_bits"]}
    metrics |= {f"privacy/strongest_{name}": value for name, value in linked.items() if value is not None}
    metrics |= late_metrics(values) | cost_metrics(values)
    return metrics | {f"attack/{name}/r2": a["r2"] for name, a in by_name(values).items()} | {"time/total_s": values["seconds"]}


def with_ends(name: str, values: Mapping[str, Any], key: str) -> dict[str, float]:
    """A number of a report and the ends of its interval as metrics."""
    return {name: values[key], f"{name}_low": values["low"], f"{name}_high": values["high"]}


def outcome_tags(values: Values) -> dict[str, str]:
    if "failed" in values:
        return {"failed": values["failed"]}
    tags = {"strongest.attack": strongest(values)["attack"]}
    reasons = degeneracy_reasons(values)
    return tags | ({"code.degenerate": reasons[0]} if reasons else {})


def line(values: Values) -> str:
    """The log line of a cell."""
    cell = Cell(**values["cell"])
    if "failed" in values:
        return f"{cell.name}: failed: {values['failed']}"
    best = strongest(values)
    accuracy = values["utility"]["accuracy"]
    return f"{cell.name}: accuracy {accuracy:.4f}, R2 {best['r2']:.4f} ({best['attack']}), {values['seconds']:.0f} s"


def write_table(values: Sequence[Values], folder: Path) -> None:
    """Write `results.csv`: a row for each finished training, with R2 and mean squared error of every attack (0-255, or in the
    data's own unit)."""
    rows = [row(v) for v in finished(values)]
    names = list(dict.fromkeys(name for columns in rows for name in columns))
    with atomic_path(folder / TABLE) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def row(values: Values) -> dict[str, Any]:
    """A cell as a row of the table."""
    cell, best, utility = Cell(**values["cell"]), strongest(values), values["utility"]
    columns: dict[str, Any] = {"mechanism": cell.mechanism, "knob": MECHANISMS[cell.mechanism].knob, "setting": cell.setting}
    columns |= {"rounded": cell.rounded, "seed": cell.seed, "k": values["k"]}
    columns |= {name: utility[name] for name in UTILITY}
    columns |= {"attack": best["attack"], "r2": best["r2"], "r2_low": best["low"], "r2_high": best["high"]}
    columns |= {name: values["privacy"][name] for name in ("answers_floor_r2", "label_floor_r2", "val_r2")}
    columns |= {name.replace("/", "_"): value for name, value in late_metrics(values).items()}
    excess, code = values["privacy"]["excess"], values["code"]
    ends = {"r2": "r2", "r2_low": "low", "r2_high": "high"}
    columns |= {f"excess_{name}": None if excess is None else excess[end] for name, end in ends.items()}
    columns |= {"bits": code["bits"], "bits_low": code["low"], "bits_high": code["high"], "bits_raw": code["raw"]}
    columns |= strongest_linkage(values["identity_linkage"])
    columns |= {f"client_{name}": value for name, value in values["client"].items()}
    columns |= {f"cloud_{name}": value for name, value in values["cost"].get("utility_head", {}).items()}
    for name, a in sorted(by_name(values).items()):
        columns |= {f"{name}_r2": a["r2"], f"{name}_mse": a.get("mse_255", a.get("mse_raw"))}
    columns |= {f"{part}_cpu_s": values["cpu_s"][part] for part in ("training", "attacks")}
    return columns | {"seconds": values["seconds"]}


def finished(values: Sequence[Values]) -> list[Values]:
    """The cells whose training finished."""
    return [v for v in values if "failed" not in v]


def settings_table(values: Sequence[Values], trials: Sequence[Trial], objective: Objective = "accuracy") -> str:
    """A row for each setting, by mechanism: means over seeds with 95 % intervals over seeds and people; for a single seed, over
    people."""
    groups: dict[tuple[str, float, bool], list[tuple[Values, Trial]]] = {}
    for v, t in zip(values, trials, strict=True):
        groups.setdefault((v["cell"]["mechanism"], v["cell"]["setting"], v["cell"]["rounded"]), []).append((v, t))
    of_groups = [points([t for _, t in group], objective=objective)[0] for group in groups.values()]
    columns = measure_columns(of_groups)
    titles = ["mechanism", "setting", "rounded", "k", "seeds", NAMES[objective], "strongest R2", "MSE", *columns, "attack"]
    output = PrettyTable(titles)
    output.set_style(TableStyle.MARKDOWN)
    output.align = "r"
    for ((mechanism, setting, rounded), group), point in zip(groups.items(), of_groups, strict=True):
        numbers = [
            with_interval(point.utility, point.utility_low, point.utility_high),
            with_interval(point.strongest_r2, point.strongest_r2_low, point.strongest_r2_high),
        ]
        errors = [mse(v) for v, _ in group]
        attacks = sorted({f"{t.attack or ''}{'' if saturated(v) else ' *'}" for v, t in group})
        knob = f"{MECHANISMS[mechanism].knob} {setting:g}"
        output.add_row(
            [
                mechanism,
                knob,
                "yes" if rounded else "no",
                group[0][0]["k"],
                len(point.seeds),
                *numbers,
                f"{sum(errors) / len(errors):.4g}",
                *(text(point) for text in columns.values()),
                ", ".join(attacks),
            ]
        )
    return output.get_string() + UNSATURATED * ("*" in output.get_string())


def saturated(values: Values) -> bool:
    """Whether the cell's strongest attack is saturated, and not weaker than one on the answers. True if the strongest "attack" is
    the code itself."""
    attack = by_name(values).get(strongest(values)["attack"])
    return attack is None or attack["saturated"]


def mse(values: Values) -> float:
    """Mean squared error of the strongest attack, on 0-255 or in the data's own unit."""
    best, first = strongest(values), values["attacks"][0]
    error = first.get("mse_255", first.get("mse_raw"))
    return error * (1 - best["r2"]) / (1 - first["r2"]) if first["r2"] < 1 else error


def fronts_table(findings: Mapping[str, Any]) -> str:
    """A row for each mechanism: the hypervolume of its hull, and the hull's R2 at fixed utilities, with 95 % intervals."""
    objective = findings["objective"]
    levels = next(iter(findings["r2_at"].values()), [])
    at = [f"R2 at {NAMES[objective]} {level[objective]:.3f}" for level in levels]
    output = PrettyTable(["mechanism", "hull hypervolume", *at])
    output.set_style(TableStyle.MARKDOWN)
    output.align = "r"
    for method, volume in sorted(findings["hypervolume"].items(), key=lambda item: -item[1]["value"]):
        output.add_row([method, *(interval_text(value) for value in (volume, *findings["r2_at"][method]))])
    note = f"\n\nNo R2 at fixed {NAMES[objective]}: they need the undefended twin, mechanism {UNDEFENDED}" if not levels else ""
    return output.get_string() + note


def interval_text(value: Mapping[str, Any]) -> str:
    return "not reached" if value["value"] is None else with_interval(value["value"], value["low"], value["high"])


def differences_table(findings: Mapping[str, Any]) -> str:
    """A row for each other mechanism: our hypervolume minus its hypervolume, paired over seeds and people, with Holm's adjusted
    p-value and the verdict on ours."""
    output = PrettyTable(["mechanism", f"{OURS} minus it", "p (Holm)", f"{OURS} is"])
    output.set_style(TableStyle.MARKDOWN)
    output.align = "r"
    for method, less in findings["ours_less"].items():
        difference = "" if less["value"] is None else interval_text(less)
        output.add_row([method, difference, "" if less["p_holm"] is None else f"{less['p_holm']:.3f}", less["verdict"]])
    planned, used = findings["planned_seeds"], findings["num_seeds"]
    return output.get_string() + (
        f"\n\nSeeds: {planned} planned, {used} used. The intervals are for one difference at a time; the verdicts are for all of "
        "them together, wrong somewhere with a probability of at most 0.05."
    )

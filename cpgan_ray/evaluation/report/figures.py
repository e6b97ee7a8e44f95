"""The report card's figures, as SVG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FRESH, FLOOR, GRID = "#b3261e", "#6b6b6b", "#dddddd"
TRAINING = ("#4c78a8", "#72b7b2", "#b279a2", "#eeca3b", "#54a24b", "#9d755d")


def plain(name: str) -> str:
    """A name from a user's file, which matplotlib would take for mathematics where it has dollar signs."""
    return name.replace("$", r"\$")


def svg(figure: Figure) -> str:
    """The figure as an <svg> element."""
    with mpl.rc_context({"svg.hashsalt": "cpgan_ray"}):  # the same ids for the same figure
        figure.savefig(buffer := io.StringIO(), format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    one = figure.add_subplot()
    one.grid(color=GRID, linewidth=0.6)
    one.set_axisbelow(True)
    one.spines[["top", "right"]].set_visible(False)
    return figure, one


def learning_curves(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], report: Mapping[str, Any]) -> str:
    """R2 of the training adversaries, round by round, under that of the strongest fresh attack: the gap is the lag."""
    figure, one = axes(7, 3.2)
    highest = report["privacy"]["strongest"]["high"]
    for colour, (name, (rounds, r2)) in zip(TRAINING * (1 + len(curves) // len(TRAINING)), curves.items(), strict=False):
        one.plot(rounds, r2, color=colour, linewidth=1, label=f"training: {plain(name)}")
        highest = max(highest, sorted(r2)[int(0.98 * len(r2))])
    best = report["privacy"]["strongest"]
    one.axhspan(best["low"], best["high"], color=FRESH, alpha=0.15, linewidth=0)
    one.axhline(best["r2"], color=FRESH, linewidth=1.6, label=f"fresh: {best['attack']} (95 % interval)")
    one.axhline(report["privacy"]["label_floor_r2"], color=FLOOR, linestyle="--", linewidth=1.2, label="label floor")
    one.set(xlabel="round", ylabel="R2", ylim=(min(-0.05, best["low"]), 1.08 * max(highest, 0.05)))
    one.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return svg(figure)


def attack_curves(report: Mapping[str, Any]) -> str:
    """R2 on the tuning rows after each epoch of the attacks that are networks: whether they had come to their end."""
    figure, one = axes(7, 3.2)
    rows = [row for row in report["attacks"] if row["curve"]]
    names = list(dict.fromkeys(row["name"] for row in rows))
    for row in rows:
        colour = TRAINING[names.index(row["name"]) % len(TRAINING)]
        epochs = range(1, len(row["curve"]) + 1)
        style = "o-" if row["variant"] == "leaked" else "o--"
        one.plot(epochs, row["curve"], style, color=colour, markersize=3, label=f"{plain(row['name'])} ({plain(row['variant'])})")
    one.axhline(report["privacy"]["label_floor_r2"], color=FLOOR, linestyle=":", linewidth=1.2, label="label floor")
    one.set(xlabel="epoch of the attack", ylabel="R2 on its tuning rows", ylim=(max(one.get_ylim()[0], -0.2), None))
    one.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return svg(figure)


def attack_sizes(report: Mapping[str, Any]) -> str:
    """R2 of the quick attacks against the number of codes they were fitted on."""
    figure, one = axes(5, 3)
    names = list(dict.fromkeys(row["name"] for row in report["sweep"]))
    variant = report["sweep"][0]["variant"]
    for colour, name in zip(TRAINING, names, strict=False):
        rows = [r for r in (*report["sweep"], *report["attacks"]) if r["name"] == name and r["variant"] == variant]
        rows.sort(key=lambda r: r["share"])
        one.plot([100 * r["share"] for r in rows], [r["r2"] for r in rows], "o-", color=colour, markersize=4, label=name)
    one.axhline(report["privacy"]["label_floor_r2"], color=FLOOR, linestyle="--", linewidth=1.2, label="label floor")
    one.set(xscale="log", xlabel=f"share of the pictures of variant '{variant}', %", ylabel="R2")
    ticks = sorted({100 * r["share"] for r in (*report["sweep"], *report["attacks"])})
    one.set_xticks(ticks, [f"{t:g}" for t in ticks])
    one.minorticks_off()
    one.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return svg(figure)


def attributes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Balanced accuracy with which each attribute is told from z."""
    ordered = sorted(rows, key=lambda r: r["balanced_accuracy"])
    figure, one = axes(6, 0.6 + 0.19 * len(ordered))
    colours = [TRAINING[0] if r["task"] else FRESH for r in ordered]
    one.barh(range(len(ordered)), [r["balanced_accuracy"] - 0.5 for r in ordered], left=0.5, color=colours, height=0.7)
    one.set_yticks(range(len(ordered)), [plain(r["name"]) for r in ordered], fontsize=7)
    one.set(xlim=(min(0.45, *(r["balanced_accuracy"] for r in ordered)), 1), xlabel="balanced accuracy (0.5: the majority guess)")
    one.margins(y=0.01)
    return svg(figure)

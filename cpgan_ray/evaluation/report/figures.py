"""Figures of the report card, as SVG."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing matplotlib takes 0.3 s, which a job spends only when it draws
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRESH, FLOOR, GRID = "#b3261e", "#6b6b6b", "#dddddd"
LATE = "#54a24b"
TRAINING = ("#4c78a8", "#72b7b2", "#b279a2", "#eeca3b", "#54a24b", "#9d755d")


def escape_dollars(name: str) -> str:
    """Escape a name from a user's file: matplotlib would read text between dollar signs as mathematics."""
    return name.replace("$", r"\$")


def svg(figure: "Figure") -> str:
    """The figure as an <svg> element."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "cpgan_ray"}):  # so that the same figure has the same ids
        figure.savefig(buffer := io.StringIO(), format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def new_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    ax = figure.add_subplot()
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def learning_curves(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], report: Mapping[str, Any]) -> str:
    """R2 of the training adversaries in each round, and R2 of the strongest fresh attack: the gap between them is the lag."""
    figure, ax = new_figure(7, 3.2)
    highest = report["privacy"]["strongest"]["high"]
    for colour, (name, (rounds, r2)) in zip(TRAINING * (1 + len(curves) // len(TRAINING)), curves.items(), strict=False):
        ax.plot(rounds, r2, color=colour, linewidth=1, label=f"training: {escape_dollars(name)}")
        highest = max(highest, sorted(r2)[int(0.98 * len(r2))])
    best = report["privacy"]["strongest"]
    ax.axhspan(best["low"], best["high"], color=FRESH, alpha=0.15, linewidth=0)
    ax.axhline(best["r2"], color=FRESH, linewidth=1.6, label=f"fresh: {best['attack']} (95 % interval)")
    ax.axhline(report["privacy"]["label_floor_r2"], color=FLOOR, linestyle="--", linewidth=1.2, label="label floor")
    ax.set(xlabel="round", ylabel="R2", ylim=(min(-0.05, best["low"]), 1.08 * max(highest, 0.05)))
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return svg(figure)


def attack_curves(report: Mapping[str, Any]) -> str:
    """R2 on the tuning rows after each epoch of the attacks that are networks. It shows whether they had converged."""
    figure, ax = new_figure(7, 3.2)
    rows = [row for row in report["attacks"] if row["curve"]]
    names = list(dict.fromkeys(row["name"] for row in rows))
    for row in rows:
        colour = TRAINING[names.index(row["name"]) % len(TRAINING)]
        epochs = range(1, len(row["curve"]) + 1)
        style = "o-" if row["variant"] == "leaked" else "o--"
        ax.plot(
            epochs,
            row["curve"],
            style,
            color=colour,
            markersize=3,
            label=f"{escape_dollars(row['name'])} ({escape_dollars(row['variant'])})",
        )
    ax.axhline(report["privacy"]["label_floor_r2"], color=FLOOR, linestyle=":", linewidth=1.2, label="label floor")
    ax.set(xlabel="epoch of the attack", ylabel="R2 on its tuning rows", ylim=(max(ax.get_ylim()[0], -0.2), None))
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return svg(figure)


def attack_sizes(report: Mapping[str, Any]) -> str:
    """R2 of the fast attacks against the share of the pictures that they were fitted on."""
    figure, ax = new_figure(5, 3)
    names = list(dict.fromkeys(row["name"] for row in report["sweep"]))
    variant = report["sweep"][0]["variant"]
    for colour, name in zip(TRAINING, names, strict=False):
        rows = [r for r in (*report["sweep"], *report["attacks"]) if r["name"] == name and r["variant"] == variant]
        rows.sort(key=lambda r: r["share"])
        ax.plot([100 * r["share"] for r in rows], [r["r2"] for r in rows], "o-", color=colour, markersize=4, label=name)
    ax.axhline(report["privacy"]["label_floor_r2"], color=FLOOR, linestyle="--", linewidth=1.2, label="label floor")
    ax.set(xscale="log", xlabel=f"share of the pictures of variant '{variant}', %", ylabel="R2")
    ticks = sorted({100 * r["share"] for r in (*report["sweep"], *report["attacks"])})
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return svg(figure)


def attributes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Balanced accuracy with which each attribute is inferred from z; each bar starts at the majority guess."""
    ordered = sorted(rows, key=lambda r: r["balanced_accuracy"])
    figure, ax = new_figure(6, 0.6 + 0.19 * len(ordered))
    colours = [TRAINING[0] if r["task"] else LATE if r.get("late") else FRESH for r in ordered]
    chance = [r["chance"] for r in ordered]
    gains = [r["balanced_accuracy"] - guess for r, guess in zip(ordered, chance, strict=True)]
    ax.barh(range(len(ordered)), gains, left=chance, color=colours, height=0.7)
    ax.set_yticks(range(len(ordered)), [escape_dollars(r["name"]) for r in ordered], fontsize=7)
    lowest = min(*chance, 0.5) - 0.05
    xlabel = (
        "balanced accuracy (0.5: the majority guess)" if {*chance} == {0.5} else "balanced accuracy, from the majority guess on"
    )
    ax.set(xlim=(min(lowest, *(r["balanced_accuracy"] for r in ordered)), 1), xlabel=xlabel)
    ax.margins(y=0.01)
    return svg(figure)

"""Figure of all attacks: R2 of each attack at each setting of each mechanism."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cpgan_ray.analysis.cells import by_name
from cpgan_ray.evaluation.report import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
MAX_HORIZONTAL_LABELS = 5
"""With more settings than this, their labels are rotated."""
WORST = -0.1
"""Smaller R2 are drawn at this value: an attack may be far worse than a guess on codes unlike those that it was fitted on."""


def attacker_lines(cells: Sequence[Mapping[str, Any]], knobs: Mapping[str, str]) -> bytes:
    """One panel per mechanism, as PNG: R2 of each attack (its stronger variant, mean over seeds) at the mechanism's settings,
    sorted by the strongest R2.

    knobs: mechanism -> the field that its settings vary, or "none" if it has only one setting.
    """
    methods = list(dict.fromkeys(values["cell"]["mechanism"] for values in cells))
    names = sorted({a["name"] for values in cells for a in values["attacks"]})
    rows = math.ceil(len(methods) / COLUMNS)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * min(COLUMNS, len(methods)) + 0.6, 2.6 * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, min(COLUMNS, len(methods)), sharey=True, squeeze=False).flatten()
    clipped = False
    for ax, method in zip(axes, methods, strict=False):
        clipped |= panel(ax, [values for values in cells if values["cell"]["mechanism"] == method], names)
        ax.set_title(method, fontsize=9)
        if knobs[method] == "none":
            ax.set_xticks([])
        else:
            ax.set_xlabel(knobs[method].replace("_", " "), fontsize=7)
    for ax in axes[len(methods) :]:
        ax.axis("off")
    figure.supylabel("R2 on the test split" + clipped * f" (triangles: below {WORST})", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


def panel(ax: "Axes", cells: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Draw the cells of one mechanism. Returns whether an R2 was below `WORST` and had to be clipped."""
    r2_of: dict[float, dict[str, list[float]]] = {}
    for values in cells:
        for a in by_name(values).values():
            r2_of.setdefault(values["cell"]["setting"], {}).setdefault(a["name"], []).append(a["r2"])
    means = {setting: {name: float(np.mean(r2)) for name, r2 in by_name.items()} for setting, by_name in r2_of.items()}
    order = sorted(means, key=lambda setting: max(means[setting].values()))
    clipped = False
    for colour, name in zip(figures.TRAINING, names, strict=False):
        r2 = np.array([means[setting].get(name, np.nan) for setting in order])
        heights = np.clip(r2, WORST, None)
        ax.plot(range(len(order)), heights, "o-", ms=3, lw=1, color=colour, label=name)
        (below,) = np.nonzero(r2 < WORST)
        ax.plot(below, heights[below], "v", ms=6, color=colour)
        clipped |= len(below) > 0
    ax.set_xticks(range(len(order)), [f"{setting:g}" for setting in order])
    ax.grid(color=figures.GRID, linewidth=0.6)
    ax.tick_params(labelsize=7)
    ax.tick_params(axis="x", labelrotation=90 if len(order) > MAX_HORIZONTAL_LABELS else 0)
    return clipped

"""The attackers side by side: R2 of each attack at each setting of each mechanism."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cpgan_ray.evaluation.report import figures

COLUMNS = 4
LEVEL = 5
"""Settings whose names have room beside each other; those of more stand upright."""
WORST = -0.1
"""An R2 below this is drawn here: on codes unlike those that it was fitted on, an attack may be worse than any guess."""


def attacker_lines(cells: Sequence[Mapping[str, Any]], knobs: Mapping[str, str]) -> bytes:
    """A panel a mechanism, as PNG: R2 of each attack, means over seeds, at its settings in the order of the strongest R2. `knobs`
    says what a mechanism's settings are of; "none": it has one alone."""
    methods = list(dict.fromkeys(values["cell"]["mechanism"] for values in cells))
    names = sorted({a["name"] for values in cells for a in values["attacks"]})
    rows = math.ceil(len(methods) / COLUMNS)
    figure = Figure(figsize=(3.1 * min(COLUMNS, len(methods)) + 0.6, 2.6 * rows), dpi=150, layout="constrained")
    boxes = figure.subplots(rows, min(COLUMNS, len(methods)), sharey=True, squeeze=False).flatten()
    off = False
    for one, method in zip(boxes, methods, strict=False):
        off |= panel(one, [values for values in cells if values["cell"]["mechanism"] == method], names)
        one.set_title(method, fontsize=9)
        if knobs[method] == "none":
            one.set_xticks([])
        else:
            one.set_xlabel(knobs[method].replace("_", " "), fontsize=7)
    for one in boxes[len(methods) :]:
        one.axis("off")
    figure.supylabel("R2 on the test split" + off * f" (triangles: below {WORST})", fontsize=9)
    handles, labels = boxes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


def panel(one: Axes, cells: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Draw one mechanism's cells; whether an attack was off the chart."""
    found: dict[float, dict[str, list[float]]] = {}
    for values in cells:
        for a in values["attacks"]:
            found.setdefault(values["cell"]["setting"], {}).setdefault(a["name"], []).append(a["r2"])
    means = {setting: {name: float(np.mean(r2)) for name, r2 in by_name.items()} for setting, by_name in found.items()}
    order = sorted(means, key=lambda setting: max(means[setting].values()))
    off = False
    for colour, name in zip(figures.TRAINING, names, strict=False):
        r2 = np.array([means[setting].get(name, np.nan) for setting in order])
        shown = np.clip(r2, WORST, None)
        one.plot(range(len(order)), shown, "o-", ms=3, lw=1, color=colour, label=name)
        (below,) = np.nonzero(r2 < WORST)
        one.plot(below, shown[below], "v", ms=6, color=colour)
        off |= len(below) > 0
    one.set_xticks(range(len(order)), [f"{setting:g}" for setting in order])
    one.grid(color=figures.GRID, linewidth=0.6)
    one.tick_params(labelsize=7)
    one.tick_params(axis="x", labelrotation=90 if len(order) > LEVEL else 0)
    return off

"""The attackers side by side: R2 of each attack at each setting of each mechanism."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from cpgan_ray.evaluation import figures

COLUMNS = 4


def attacker_lines(cells: Sequence[Mapping[str, Any]]) -> bytes:
    """A panel a mechanism, as PNG: R2 of each attack, means over seeds, at its settings in the order of the strongest R2."""
    methods = list(dict.fromkeys(values["cell"]["mechanism"] for values in cells))
    names = list(dict.fromkeys(a["name"] for values in cells for a in values["attacks"]))
    rows = math.ceil(len(methods) / COLUMNS)
    figure = Figure(figsize=(3.1 * min(COLUMNS, len(methods)) + 0.6, 2.6 * rows), dpi=150, layout="constrained")
    boxes = figure.subplots(rows, min(COLUMNS, len(methods)), sharey=True, squeeze=False).flatten()
    for one, method in zip(boxes, methods, strict=False):
        found: dict[float, dict[str, list[float]]] = {}
        for values in cells:
            if values["cell"]["mechanism"] == method:
                for a in values["attacks"]:
                    found.setdefault(values["cell"]["setting"], {}).setdefault(a["name"], []).append(a["r2"])
        means = {s: {n: sum(v) / len(v) for n, v in by_name.items()} for s, by_name in found.items()}
        order = sorted(means, key=lambda s: max(means[s].values()))
        for colour, name in zip(figures.TRAINING, names, strict=False):
            one.plot([f"{s:g}" for s in order], [means[s].get(name) for s in order], "o-", ms=3, lw=1, color=colour, label=name)
        one.set_title(method, fontsize=9)
        one.grid(color=figures.GRID, linewidth=0.6)
        one.tick_params(labelsize=7)
    for one in boxes[len(methods) :]:
        one.axis("off")
    figure.supylabel("R2 on the test split", fontsize=9)
    handles, labels = boxes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()

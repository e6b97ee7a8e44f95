"""Draw the fronts on the pages of results as hulls, from the means in the tables of these pages.

    python docs/figures/make_fronts.py

Writes `docs/figures/{mnist,har,genki4k,celeba}-front.png`. The trainings are not part of this repository; the tables are.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cpgan_ray.analysis.fronts import Reference, hull
from cpgan_ray.evaluation.report.figures import FLOOR, GRID

FIGURES = Path(__file__).parent
RESULTS = FIGURES.parent / "results"
GUESSES = {"mnist": 0.1135, "har": 0.182, "genki4k": 0.5, "celeba": 0.8057}
"""Page -> accuracy of the majority guess on the test split."""
FLOORS = {"mnist": 0.215, "har": 0.317, "genki4k": 0.005, "celeba": 0.075}
"""Page -> R2 of the label floor."""
COLOURS = (
    *("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d", "#72b7b2"),
    *("#e45756", "#b39500", "#1f4e5f", "#6b6b6b", "#ff9da6", "#222222"),
)
SEARCH = "weight"
"""First column of CelebA's table of a search: a row for each privacy weight, two columns for each k."""
CONTROL = (0.407, 0.883)
"""R2 and accuracy of the search's undefended control, which the page names in its text."""

Means = dict[str, np.ndarray]
"""Name -> R2 and accuracy of its settings, (P, 2) float64."""


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def first_number(text: str) -> float:
    """The number at the beginning of a cell, which may be bold."""
    match = re.match(r"\**(-?\d+\.\d+)", text)
    assert match, text
    return float(match[1])


def tables(page: str) -> list[list[list[str]]]:
    """The rows of each table of a page, the heading first."""
    blocks = re.findall(r"(?:^\|.*\n)+", (RESULTS / f"{page}.md").read_text(), re.MULTILINE)
    return [[cells(line) for i, line in enumerate(block.splitlines()) if i != 1] for block in blocks]


def means(page: str) -> Means:
    """The means in the first table of a page: a row for each setting of a mechanism."""
    settings: dict[str, list[tuple[float, float]]] = {}
    name = ""
    for mechanism, _, _, accuracy, r2 in tables(page)[0][1:]:
        name = mechanism.split("`")[1] if mechanism else name
        settings.setdefault(name, []).append((first_number(r2), first_number(accuracy)))
    return {name: np.array(values) for name, values in settings.items()}


def means_of_search(page: str) -> Means:
    """The means in the table of a search, by k, with the control."""
    heading, *rows = next(table for table in tables(page) if table[0][0] == SEARCH)
    lengths = [name for name in heading[1:] if name]
    points = {
        name: np.array([(first_number(row[2 + 2 * i]), first_number(row[1 + 2 * i])) for row in rows])
        for i, name in enumerate(lengths)
    }
    return points | {"undefended": np.array([CONTROL])}


def draw(points: Mapping[str, np.ndarray], *, guess: float, floor: float) -> Figure:
    """All settings, and the hull of each name's settings with the point that sends nothing."""
    figure = Figure(figsize=(7.2, 4.8), dpi=150, layout="constrained")
    ax = figure.subplots()
    reference = Reference(guess)
    for colour, (name, values) in zip(COLOURS, points.items(), strict=False):
        vertices, volume = hull(values, reference)
        ax.plot(*vertices.T, color=colour, linewidth=1.4, label=f"{name} (hull {volume:.3f})")
        ax.plot(*values.T, "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6)
    ax.plot(0, guess, "s", color="black", markersize=5, label="nothing is sent", clip_on=False, zorder=3)
    ax.axvline(floor, color=FLOOR, linewidth=1, linestyle="--", label="label floor")
    ax.set_xlabel("R2 of the strongest fresh attack (left: more private)")
    ax.set_ylabel("accuracy")
    ax.grid(color=GRID, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlim(left=0)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def main() -> None:
    for page, guess in GUESSES.items():
        points = means_of_search(page) if page == "celeba" else means(page)
        draw(points, guess=guess, floor=FLOORS[page]).savefig(FIGURES / f"{page}-front.png")


if __name__ == "__main__":
    main()

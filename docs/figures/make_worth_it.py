"""Draw what codes and hard answers are worth against what they show, from the tables on the page of CelebA's results.

    python docs/figures/make_worth_it.py

Writes `docs/figures/when-is-a-code-worth-it.png`. The trainings are not part of this repository; the tables are.
"""

import re
from collections.abc import Mapping

import numpy as np
from make_fronts import COLOURS, FIGURES, GUESSES, first_number, tables
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cpgan_ray.analysis.fronts import Reference, hull
from cpgan_ray.evaluation.report.figures import GRID

CHANCE = 0.5
"""Balanced accuracy of a constant answer."""
MAX_R2 = 0.16
"""The undefended codes of the late tasks are far to the right of it."""
CELEBA_GUESS = GUESSES["celeba"]

Points = dict[str, np.ndarray]
"""Name -> R2 and utility, (P, 2) float64."""


def task_points() -> Points:
    """The trained codes and the answers in the tables of the section on distillation, and the game on answers."""
    (of_codes,) = (table for table in tables("celeba") if table[0][:3] == ["run", "privacy weight", "accuracy"])
    (of_answers,) = (table for table in tables("celeba") if table[0][0] == "answers sent")
    codes = [(first_number(row[3]), first_number(row[2])) for row in of_codes[1:]]
    accuracy, r2 = (list(map(first_number, row[1:])) for row in of_answers[1:])
    (of_game,) = (table for table in tables("celeba") if table[0][:2] == ["privacy weight", "accuracy"])
    column = of_game[0].index("R2 (kernel)")
    game = [(first_number(row[column]), first_number(row[1])) for row in of_game[1:] if row[column]]
    return {"codes": np.array(codes), "answers": np.column_stack([r2, accuracy]), "game on answers": np.array(game)}


def late_points() -> dict[str, Points]:
    """Choice of the late labels -> codes and answers, in the table of the section on late tasks."""
    (table,) = (table for table in tables("celeba") if table[0][:2] == ["held back", "sent"])
    column = {name: i for i, name in enumerate(table[0])}
    choices: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in table[1:]:
        kind = "codes" if row[column["sent"]].startswith("code") else "answers"
        point = first_number(row[column["R2"]]), first_number(row[column["balanced accuracy of the ten"]])
        choices.setdefault(row[0], {}).setdefault(kind, []).append(point)
    return {choice: {kind: np.array(points) for kind, points in kinds.items()} for choice, kinds in choices.items()}


def draw(ax: Axes, points: Mapping[str, np.ndarray], *, guess: float, title: str) -> None:
    """All settings, and the hull of each name's settings with the point that sends nothing."""
    for colour, (name, values) in zip(COLOURS, points.items(), strict=False):
        ax.plot(*hull(values, Reference(guess))[0].T, color=colour, linewidth=1.4, label=name)
        ax.plot(*values.T, "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6)
    ax.plot(0, guess, "s", color="black", markersize=5, label="nothing is sent", clip_on=False, zorder=3)
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("R2 of the strongest attack", fontsize=9)
    ax.grid(color=GRID, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlim(0, MAX_R2)


def main() -> None:
    figure = Figure(figsize=(11, 3.8), dpi=130, layout="constrained")
    late = late_points()
    axes = figure.subplots(1, 1 + len(late))
    draw(axes[0], task_points(), guess=CELEBA_GUESS, title="the task: 40 labels")
    axes[0].set_ylabel("accuracy")
    for ax, (choice, points) in zip(axes[1:], late.items(), strict=True):
        draw(ax, points, guess=CHANCE, title=f"ten late labels, choice {re.sub('[^A-Z]', '', choice)}")
        ax.set_ylabel("balanced accuracy")
    axes[0].legend(loc="lower right", frameon=False, fontsize=9)
    figure.savefig(FIGURES / "when-is-a-code-worth-it.png")


if __name__ == "__main__":
    main()

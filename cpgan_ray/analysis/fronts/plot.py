"""The figure of a front: every setting with its intervals, the front, and the growth of its hypervolume."""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cpgan_ray.analysis.fronts.answers import (
    ANSWERS,
    Answers,
    affordable_answers,
    answers_among,
    client_budget,
    cost_of_answering,
    outcomes_of,
)
from cpgan_ray.analysis.fronts.choice import NAMES
from cpgan_ray.analysis.fronts.fronts import Reference, front, hull, hypervolume_history, outcomes, reference_point
from cpgan_ray.analysis.fronts.knobs import number
from cpgan_ray.analysis.fronts.trials import Point, Trial, by_method, group_key, mean, points, scored
from cpgan_ray.config import Objective
from cpgan_ray.evaluation.report import figures

METHODS = ("#4c78a8", "#e0822f", "#54a24b", "#b279a2", "#9d755d", "#72b7b2")
METHODS += ("#d64550", "#eeca3b", "#1f4e5f", "#ff9da6", "#79706e", "#8cd17d")
SHADES = ("#f2b134", "#e0573e", "#8e2a6b", "#2b1a5e")
"""Colours of privacy weights, from the smallest to the largest."""
OF_ANSWERS = "#2b1a5e"
"""Colour of what a client attains by sending answers."""
FAR = 1e3
"""A coordinate outside every figure."""
HISTORY_HEIGHT = 2.2
"""Height of the hypervolume's panel, in inches."""


def as_png(
    trials: Sequence[Trial], *, objective: Objective = "accuracy", recommended: Point | None = None, bits: bool = False
) -> bytes:
    """Utility against the strongest fresh R2 of every setting, with the hull from (guess, R2 = 0) on; and the growth of the
    hypervolume."""
    reference = reference_point(trials, objective, bits=bits)
    settings, controls = (points(trials, objective=objective, control=control) for control in (False, True))
    legend_height = max(3.0, 1.2 + 0.45 * len(by_method(settings)))  # inches; the legend has two lines per method
    legend_height += 0.45 * bool(answers_among(settings, controls))
    figure = Figure(figsize=(9, HISTORY_HEIGHT + legend_height), dpi=200, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(2.4, 1), height_ratios=(HISTORY_HEIGHT, legend_height))
    main, history, legend = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    for ax in (main, history):
        ax.grid(color=figures.GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    draw_plane(main, trials, objective=objective, reference=reference, recommended=recommended)
    draw_history(history, trials, objective=objective, reference=reference)
    legend.axis("off")
    handles, names = main.get_legend_handles_labels()
    legend.legend(handles, names, loc="upper left", bbox_to_anchor=(-0.12, 1.02), frameon=False, fontsize=8.5, labelspacing=0.6)
    figure.supxlabel(caption(trials, objective=objective), fontsize=8, color=figures.FLOOR, x=0.01, ha="left")
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


def draw_plane(
    ax: Axes, trials: Sequence[Trial], *, objective: Objective, reference: Reference | None, recommended: Point | None
) -> None:
    """Draw the main panel, and create the entries of the legend."""
    settings, controls = (points(trials, objective=objective, control=control) for control in (False, True))
    floor = mean(t.label_floor_r2 for t in trials)
    methods = by_method(settings)
    many = len(methods) > 1
    ks = sorted({k for p in settings if (k := number(p.setting.get("k"))) is not None})
    colours = method_colours(trials)
    coloured = not many or (reference is not None and reference.bits is not None)
    shades = dict(zip(map(group_key, settings), colours_of(ax, settings, reference), strict=True)) if coloured else {}
    for method, of_method in methods.items():
        best, colour = front(of_method, reference), colours[method]
        if reference is not None:  # the line begins at (guess, R2 = 0) and leaves the most useful point to the right
            vertices, volume = hull(outcomes(of_method), reference)
            what = "hypervolume" if reference.bits is None else "area, bits ignored,"
            name = f"hull of {figures.escape_dollars(shorten(method))}\n" if many else "hull\n"
            x, y = [*vertices[:, 0], FAR], [*vertices[:, 1], vertices[-1, 1]]
            label = f"{name}({what} {volume:.4f}{client_text(of_method)})"
            style = ":" if method.startswith(ANSWERS) else "-"
            ax.plot(x, y, style, color=colour if many else "black", linewidth=1.4, label=label, zorder=2)
        for p in of_method:
            size, edge = area(p, ks), colour if coloured and many else "white"
            shade = shades[group_key(p)] if coloured else colour
            zorder = (5 if p in best else 4) - size / 1000  # small markers on top
            draw_point(ax, p, colour=shade, edge=edge, marker="o", size=size, zorder=zorder)
    for p in controls:
        draw_point(ax, p, colour=colours[p.method] if many else figures.FRESH, marker="D", size=40, zorder=3)
    answered = [p for p in controls if p.answers_floor_r2 is not None]
    for p in answered:
        ax.scatter([p.answers_floor_r2 or 0.0], [p.utility], s=110, marker="*", color=OF_ANSWERS, edgecolors="white", zorder=6)
    add_legend_entry = partial(ax.scatter, [], [], edgecolors="white")
    if answered:
        costs = [cost for p in answered if (cost := cost_of_answering(p)) is not None]
        add_legend_entry(
            marker="*", s=110, color=OF_ANSWERS, label=f"Alice answers herself\n(undefended control{cost_text(costs)})"
        )
    if reference is not None:
        draw_answers(ax, methods, answers_among(settings, controls), reference=reference)
    if controls:
        add_legend_entry(marker="D", s=40, color="#9a9a9a" if many else figures.FRESH, label="undefended control")
    if recommended is not None:
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": figures.FRESH, "linewidths": 1.6}
        x, y = [recommended.strongest_r2], [recommended.utility]
        ax.scatter(x, y, s=area(recommended, ks) + 130, zorder=6, label="recommended", **ring)
    if floor is not None:
        ax.axvline(floor, color=figures.FLOOR, linestyle="--", linewidth=1.2, label="label floor", zorder=1)
    if reference is not None:
        ax.axhline(reference.utility, color=figures.FLOOR, linestyle=":", linewidth=1.4, label="majority guess", zorder=1)
    for k in ks if len(ks) <= 5 else evenly_spaced_subset(ks, min_distance=0.3):
        add_legend_entry(s=marker_area(k, ks), color="#9a9a9a", label=f"k = {k:g}")
    ax.set(xlabel="R2 of the strongest fresh attack (left: more private)", ylabel=NAMES[objective])
    set_limits(
        ax,
        [*settings, *controls],
        floor=floor,
        answers=[p.answers_floor_r2 for p in answered],
        guess=reference and reference.utility,
    )


def draw_answers(ax: Axes, methods: Mapping[str, Sequence[Point]], answers: Sequence[Answers], *, reference: Reference) -> None:
    """Draw what the clients of the methods attain by sending answers at equal cost: a line for each set of answers that they can
    afford; if none can afford any, only an entry of the legend."""
    budgets = [budget for of_method in methods.values() if (budget := client_budget(of_method)) is not None]
    drawn = [a for a in dict.fromkeys(tuple(affordable_answers(answers, budget)) for budget in sorted(budgets)) if a]
    for affordable in drawn:
        vertices, volume = hull(outcomes_of(affordable), reference)
        x, y = [*vertices[:, 0], FAR], [*vertices[:, 1], vertices[-1, 1]]
        cost = cost_text([a.multiply_adds for a in affordable if a.multiply_adds is not None])
        label = f"answers at equal client cost\n(area {volume:.4f}{cost})"
        ax.plot(x, y, "--", color=OF_ANSWERS, linewidth=1.4, label=label, zorder=2)
    costs = [a.multiply_adds for a in answers if a.multiply_adds is not None]
    if costs and not drawn:
        cheapest = EngFormatter(places=1)(min(costs))
        ax.plot([], [], "--", color=OF_ANSWERS, label=f"no client can afford to answer\n({cheapest} multiply-adds)")


def draw_point(ax: Axes, p: Point, *, colour: Any, marker: str, size: float, zorder: float, edge: Any = "white") -> None:
    """Draw a point, with its intervals if they are known."""
    ax.scatter(
        [p.strongest_r2],
        [p.utility],
        s=size,
        color=[colour],
        marker=marker,
        edgecolors=[edge],
        linewidths=0.8 if edge == "white" else 1.8,
        zorder=zorder,
    )
    bars = {"color": colour, "alpha": 0.55, "linewidth": 1.1, "zorder": 2.5}
    if p.strongest_r2_low is not None and p.strongest_r2_high is not None:
        ax.plot([p.strongest_r2_low, p.strongest_r2_high], [p.utility] * 2, **bars)
    if p.utility_low is not None and p.utility_high is not None:
        ax.plot([p.strongest_r2] * 2, [p.utility_low, p.utility_high], **bars)


def area(p: Point, ks: Sequence[float]) -> float:
    """Area of a point's marker, in points squared."""
    k = number(p.setting.get("k"))
    return 48 if k is None else marker_area(k, ks)


def marker_area(k: float, ks: Sequence[float]) -> float:
    """Area of a marker by the logarithm of k; constant if `ks` has only one value."""
    return 24 + 76 * math.log(k / ks[0]) / math.log(ks[-1] / ks[0]) if len(ks) > 1 else 48


def evenly_spaced_subset(values: Sequence[float], *, min_distance: float) -> list[float]:
    """The first and the last of ascending positive values, and values between them, such that neighbours are at least
    `min_distance` apart on a logarithmic axis of length 1."""
    low, high = math.log(values[0]), math.log(values[-1])
    subset, previous = [values[0]], 0.0
    for value in values[1:-1]:
        position = (math.log(value) - low) / (high - low)
        if position - previous >= min_distance and 1 - position >= min_distance:
            subset, previous = [*subset, value], position
    return [*subset, values[-1]]


def method_colours(trials: Sequence[Trial]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(t.method for t in trials), cycle(METHODS), strict=False))


def colours_of(ax: Axes, points: Sequence[Point], reference: Reference | None) -> list[Any]:
    """Colours by the bits on the wire if they are an objective, else by the privacy weight."""
    if reference is None or reference.bits is None:
        return scale_colours(ax, [number(p.setting.get("privacy_weight")) for p in points], label="privacy weight")
    return scale_colours(ax, [p.bits for p in points], label="bits on the wire")


def scale_colours(ax: Axes, weights: Sequence[float | None], *, label: str) -> list[Any]:
    """Colours by a number of each point on a logarithmic scale, with a colour bar; a single colour if there are fewer than two
    positive numbers."""
    positive = sorted({w for w in weights if w is not None and w > 0})
    if len(positive) < 2:
        return [METHODS[0]] * len(weights)
    shades = ScalarMappable(LogNorm(positive[0], positive[-1]), LinearSegmentedColormap.from_list("weights", SHADES))
    bar = ax.figure.colorbar(shades, ax=ax, location="top", aspect=50, pad=0.02)
    ticks = evenly_spaced_subset(positive, min_distance=0.11)
    bar.set_ticks(ticks, labels=[f"{w:.3g}" for w in ticks])
    bar.minorticks_off()
    bar.set_label(label)
    return [figures.FLOOR if w is None or w <= 0 else shades.to_rgba(np.array(w)) for w in weights]


def client_text(points: Sequence[Point]) -> str:
    """The largest client's cost of some points, for the legend; empty if none is known."""
    return cost_text([p.multiply_adds for p in points if p.multiply_adds is not None])


def cost_text(multiply_adds: Sequence[float]) -> str:
    return f", {EngFormatter(places=1)(max(multiply_adds))} multiply-adds" if multiply_adds else ""


def set_limits(
    ax: Axes, points: Sequence[Point], *, floor: float | None, guess: float | None, answers: Sequence[float | None] = ()
) -> None:
    """Set axis limits that contain all points and lines, and the origin of the hull; a much longer interval is shown only in
    part."""
    lines = [value for value in (floor, *answers, None if guess is None else 0.0) if value is not None]
    for values, lows, highs, inner_lines, set_limit in (
        (
            [p.strongest_r2 for p in points],
            [p.strongest_r2_low for p in points],
            [p.strongest_r2_high for p in points],
            lines,
            ax.set_xlim,
        ),
        (
            [p.utility for p in points],
            [p.utility_low for p in points],
            [p.utility_high for p in points],
            [] if guess is None else [guess],
            ax.set_ylim,
        ),
    ):
        inside = [*values, *inner_lines] or [0.0, 1.0]
        low, high = min(inside), max(inside)
        span = (high - low) or 0.1
        low = max(low - 0.3 * span, min([low, *(v for v in lows if v is not None)])) - 0.05 * span
        high = min(high + 0.3 * span, max([high, *(v for v in highs if v is not None)])) + 0.05 * span
        set_limit(low, high)


def draw_history(ax: Axes, trials: Sequence[Trial], *, objective: Objective, reference: Reference | None) -> None:
    """Draw the hypervolume after each finished trial, one line per method."""
    methods = dict.fromkeys(t.method for t in trials if scored(t, objective) and not t.control)
    colours = method_colours(trials)
    longest = 0
    for method in methods:
        of_method = [t for t in trials if t.method == method]
        history = [] if reference is None else hypervolume_history(of_method, reference, objective)
        longest = max(longest, len(history))
        ax.plot(
            range(1, len(history) + 1),
            history,
            ".-",
            markersize=4,
            linewidth=1.2,
            color=colours[method] if len(methods) > 1 else "black",
        )
    ax.set(xlabel="finished trials", ylabel="hypervolume")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlim(left=0, right=longest + 1)


def shorten(name: str) -> str:
    """Shorten a name to the width of the legend."""
    return name if len(name) <= 28 else f"{name[:27]}…"


def caption(trials: Sequence[Trial], *, objective: Objective) -> str:
    """The caption: how many trials are shown, and what the intervals mean."""
    searched = [t for t in trials if not t.control]
    counts = Counter(
        "finished" if scored(t, objective) else "without numbers" if t.state == "finished" else t.state for t in searched
    )
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    noun = "trial" if len(searched) == 1 else "trials"
    return (
        f"{len(searched)} {noun} ({states}); only finished trials are shown. All numbers are measured on the test split.\n"
        "Bars: 95 % intervals, over the people of the test split and, if there are several seeds, over the trainings.\n"
        "Hull: attained by sending a code with some probability, and nothing otherwise."
    )

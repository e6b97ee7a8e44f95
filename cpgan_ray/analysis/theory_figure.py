"""Figure of the Gaussian mixture: the exact frontier computed by `cpgan_ray.theory`, and the results of trainings."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from cpgan_ray import theory
from cpgan_ray.analysis.comparison import OURS
from cpgan_ray.analysis.fronts import Estimate, mean_with_ci
from cpgan_ray.data.datasets.gaussian import mixture
from cpgan_ray.evaluation.report import figures

NUM_POINTS = 40
"""Number of points of a frontier, which are joined by a line."""


class Measured(NamedTuple):
    """A mechanism at one setting, over its seeds."""

    mechanism: str
    accuracy: np.ndarray  # float64 (3,), on the test split: the value and the ends of its interval
    mse: np.ndarray  # float64 (3,), the same of the strongest fresh attack on the test split, per dimension
    theory: tuple[float, float]
    """By theory, for the directions of the code: MSE of the best linear attack and accuracy of the best classifier, means over
    seeds."""


def frontier_figure(cells: Sequence[Mapping[str, Any]], *, seed: int, published: Sequence[tuple[float, float]] = ()) -> bytes:
    """Accuracy against the mean squared error per dimension, as PNG: the frontier for the best attack of any kind and for the best
    linear attack, computed from the moments of the mixture with this seed, and the cells.

    published: rows (accuracy, MSE) of the reference implementation's theory. It uses the covariances of the test points in place of
    those of the mixture, so the linear frontier for the test points' covariances is drawn too.
    """
    data = mixture(seed)
    moments = theory.population_moments(data.mean, within=data.covariance)
    settings = measured(cells)
    figure, ax = figures.new_figure(7.5, 5)
    set_limits(ax, settings, moments)
    draw_frontier(ax, moments, "exact", color="black", linewidth=1.5, label="frontier: best attack of any kind")
    draw_frontier(ax, moments, "linear", color="black", linewidth=1.2, linestyle="--", label="frontier: best linear attack")
    if published:
        sample = theory.sample_moments(data.x[data.test], y=data.y[data.test], mean=data.mean)
        label = "the same with the test points' covariances"
        draw_frontier(ax, sample, "linear", color=figures.FLOOR, linewidth=0.8, linestyle=":", label=label)
    names = list(dict.fromkeys(p.mechanism for p in settings))
    for i, name in enumerate(names):
        colour, marker = figures.TRAINING[i % len(figures.TRAINING)], "osD"[i // len(figures.TRAINING) % 3]
        draw_settings(ax, [p for p in settings if p.mechanism == name], colour, marker=marker)
    if published:
        x, y = np.array([mse for _, mse in published]), np.array([accuracy for accuracy, _ in published])
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        outside = int(((x < left) | (x > right) | (y < low) | (y > high)).sum())
        label = f"reference implementation's theory{f' ({outside} of {len(x)} rows outside)' if outside else ''}"
        ax.plot(x, y, "x", color=figures.FRESH, markersize=5, label=label, zorder=3)
    ax.set(xlabel="mean squared error of the attack, per dimension (right: more private)", ylabel="accuracy")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)  # outside, because points may be anywhere
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=160, bbox_inches="tight")
    return buffer.getvalue()


def measured(cells: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """The settings of some cells: means over seeds, with the intervals of `mean_with_ci`."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for values in cells:
        groups.setdefault((values["cell"]["mechanism"], values["cell"]["setting"]), []).append(values)
    return [
        Measured(
            mechanism,
            np.array(
                mean_with_ci([Estimate(*(v["utility"][n] for n in ("accuracy", "accuracy_low", "accuracy_high"))) for v in group])
            ),
            np.array(mean_with_ci([smallest_error(v["attacks"]) for v in group])),
            (float(np.mean([v["theory"]["mse"] for v in group])), float(np.mean([v["theory"]["accuracy"] for v in group]))),
        )
        for (mechanism, _), group in groups.items()
    ]


def smallest_error(attacks: Sequence[Mapping[str, Any]]) -> Estimate:
    """Smallest MSE of the fresh attacks, per dimension, with an interval from that attack's R2 = 1 - MSE / MSE(mean predictor)."""
    best = min(attacks, key=lambda a: a["mse_raw"])
    mean_mse = best["mse_raw"] / (1 - best["r2"]) if best["r2"] < 1 else 0.0
    return Estimate(best["mse_raw"], mean_mse * (1 - best["high"]), mean_mse * (1 - best["low"]))


def draw_frontier(ax: Axes, moments: theory.Moments, attacker: theory.Attacker, **style: Any) -> None:
    """Draw a frontier from the bottom of the figure up to the best possible accuracy, and then horizontally to MSE 0: codes there
    leak more without a gain in accuracy."""
    best = theory.least_leaking_point(1.0, moments=moments, attacker=attacker)
    lowest = max(ax.get_ylim()[0], moments.prior, 1 - moments.prior)
    accuracy = best.accuracy - (best.accuracy - lowest) * np.linspace(1, 0, NUM_POINTS) ** 2  # dense at the top, where it is steep
    mse = theory.frontier_mse(accuracy, moments=moments, attacker=attacker)
    ax.plot([*mse, 0.0], [*accuracy, best.accuracy], zorder=2, **style)


def draw_settings(ax: Axes, settings: Sequence[Measured], colour: str, *, marker: str) -> None:
    """Draw the settings of one mechanism. For ours, whose code is linear in this preset, also draw the theory's results for the
    directions of the code."""
    name = settings[0].mechanism
    for p in settings:
        ax.plot(p.mse[1:], p.accuracy[[0, 0]], color=colour, linewidth=1.2, zorder=4)
        ax.plot(p.mse[[0, 0]], p.accuracy[1:], color=colour, linewidth=1.2, zorder=4)
    label = f"{name}: measured, strongest fresh attack"
    x, y = [p.mse[0] for p in settings], [p.accuracy[0] for p in settings]
    ax.plot(x, y, marker, color=colour, markersize=5, label=label, zorder=5)
    if name == OURS:
        hollow: dict[str, Any] = {"markerfacecolor": "white", "markersize": 5.5, "markeredgewidth": 1.2, "zorder": 6}
        x, y = zip(*(p.theory for p in settings), strict=True)
        ax.plot(x, y, marker, color=colour, label=f"{name}: Bayes accuracy, best linear attack", **hollow)


def set_limits(ax: Axes, settings: Sequence[Measured], moments: theory.Moments) -> None:
    """Set axis limits so that all settings and the frontier near them are visible."""
    best = theory.least_leaking_point(1.0, moments=moments)
    x = [best.mse, moments.mean_mse, *(p.mse[0] for p in settings)]
    y = [best.accuracy, *(p.accuracy[0] for p in settings)]
    for values, set_limit in ((x, ax.set_xlim), (y, ax.set_ylim)):
        margin = 0.06 * (max(values) - min(values))
        set_limit(min(values) - margin, max(values) + margin)

"""The figure of the Gaussian mixture: the exact frontier of theory.py, and where trainings stand to it."""

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

SHOWN = 40
"""Points of a frontier that are joined by a line."""


class Measured(NamedTuple):
    """A mechanism at one setting, over its seeds."""

    mechanism: str
    accuracy: np.ndarray  # float64 (3,), on the test split: the value and the ends of its interval
    mse: np.ndarray  # float64 (3,), of the strongest fresh attack there, per dimension
    own: tuple[float, float]
    """Of the code's own directions, means over seeds: the best linear attack's MSE, and the best classifier's accuracy."""


def frontier_figure(cells: Sequence[Mapping[str, Any]], *, seed: int, published: Sequence[tuple[float, float]] = ()) -> bytes:
    """Accuracy against the mean squared error per dimension, as PNG: the frontiers against the best attack of any kind and the best
    linear one, by the moments of the mixture of this seed, and the cells.

    published: rows (accuracy, MSE) of the original's theory. It takes the test points' covariances for the mixture's, so the linear
    frontier of these is drawn beside them.
    """
    drawn = mixture(seed)
    moments = theory.population_moments(drawn.mean, within=drawn.covariance)
    places = measured(cells)
    figure, one = figures.axes(7.5, 5)
    limits(one, places, moments)
    draw_frontier(one, moments, "exact", color="black", linewidth=1.5, label="frontier: best attack of any kind")
    draw_frontier(one, moments, "linear", color="black", linewidth=1.2, linestyle="--", label="frontier: best linear attack")
    if published:
        sample = theory.sample_moments(drawn.x[drawn.test], y=drawn.y[drawn.test], mean=drawn.mean)
        told = "the same with the test points' covariances"
        draw_frontier(one, sample, "linear", color=figures.FLOOR, linewidth=0.8, linestyle=":", label=told)
    names = list(dict.fromkeys(p.mechanism for p in places))
    for i, name in enumerate(names):
        colour, marker = figures.TRAINING[i % len(figures.TRAINING)], "osD"[i // len(figures.TRAINING) % 3]
        draw_places(one, [p for p in places if p.mechanism == name], colour, marker=marker)
    if published:
        x, y = np.array([mse for _, mse in published]), np.array([accuracy for accuracy, _ in published])
        (left, right), (low, high) = one.get_xlim(), one.get_ylim()
        off = int(((x < left) | (x > right) | (y < low) | (y > high)).sum())
        told = f"the original's theory{f' ({off} of {len(x)} rows outside)' if off else ''}"
        one.plot(x, y, "x", color=figures.FRESH, markersize=5, label=told, zorder=3)
    one.set(xlabel="mean squared error of the attack, per dimension (right: more private)", ylabel="accuracy")
    one.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)  # beside: points may be anywhere
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=160, bbox_inches="tight")
    return buffer.getvalue()


def measured(cells: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """The settings of some cells: means over seeds with Student's intervals, or one seed's own."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for values in cells:
        groups.setdefault((values["cell"]["mechanism"], values["cell"]["setting"]), []).append(values)
    return [
        Measured(
            mechanism,
            np.array(
                mean_with_ci([Estimate(*(v["utility"][n] for n in ("accuracy", "accuracy_low", "accuracy_high"))) for v in some])
            ),
            np.array(mean_with_ci([smallest_error(v["attacks"]) for v in some])),
            (float(np.mean([v["theory"]["mse"] for v in some])), float(np.mean([v["theory"]["accuracy"] for v in some]))),
        )
        for (mechanism, _), some in groups.items()
    ]


def smallest_error(attacks: Sequence[Mapping[str, Any]]) -> Estimate:
    """Of the fresh attacks, per dimension, with the interval of that attack's R2 = 1 - MSE / MSE(mean predictor)."""
    best = min(attacks, key=lambda a: a["mse_raw"])
    guess = best["mse_raw"] / (1 - best["r2"]) if best["r2"] < 1 else 0.0
    return Estimate(best["mse_raw"], guess * (1 - best["high"]), guess * (1 - best["low"]))


def draw_frontier(one: Axes, moments: theory.Moments, attacker: theory.Attacker, **style: Any) -> None:
    """From the foot of the figure up to the best accuracy that there is, and on along it, where a code tells more for nothing."""
    best = theory.least_leaking_point(1.0, moments=moments, attacker=attacker)
    foot = max(one.get_ylim()[0], moments.prior, 1 - moments.prior)
    accuracy = best.accuracy - (best.accuracy - foot) * np.linspace(1, 0, SHOWN) ** 2  # dense at the top, where it is steep
    mse = theory.frontier_mse(accuracy, moments=moments, attacker=attacker)
    one.plot([*mse, 0.0], [*accuracy, best.accuracy], zorder=2, **style)


def draw_places(one: Axes, places: Sequence[Measured], colour: str, *, marker: str) -> None:
    """One mechanism's settings; of ours, whose code is linear in this preset, also what theory says of its directions."""
    name = places[0].mechanism
    for p in places:
        one.plot(p.mse[1:], p.accuracy[[0, 0]], color=colour, linewidth=1.2, zorder=4)
        one.plot(p.mse[[0, 0]], p.accuracy[1:], color=colour, linewidth=1.2, zorder=4)
    told = f"{name}: measured, strongest fresh attack"
    at = [p.mse[0] for p in places], [p.accuracy[0] for p in places]
    one.plot(*at, marker, color=colour, markersize=5, label=told, zorder=5)
    if name == OURS:
        hollow: dict[str, Any] = {"markerfacecolor": "white", "markersize": 5.5, "markeredgewidth": 1.2, "zorder": 6}
        x, y = zip(*(p.own for p in places), strict=True)
        one.plot(x, y, marker, color=colour, label=f"{name}: Bayes accuracy, best linear attack", **hollow)


def limits(one: Axes, places: Sequence[Measured], moments: theory.Moments) -> None:
    """All settings, and the frontier where they are."""
    best = theory.least_leaking_point(1.0, moments=moments)
    x = [best.mse, moments.mean_mse, *(p.mse[0] for p in places)]
    y = [best.accuracy, *(p.accuracy[0] for p in places)]
    for values, limit in ((x, one.set_xlim), (y, one.set_ylim)):
        room = 0.06 * (max(values) - min(values))
        limit(min(values) - room, max(values) + room)

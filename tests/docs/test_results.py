"""Tests that the hull hypervolumes on the pages of results follow from the means on the same pages."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.analysis.fronts import Reference, hull

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "figures" / "make_fronts.py"))
GUESSES, means, means_of_search, tables, first_number = (
    SCRIPT[name] for name in ("GUESSES", "means", "means_of_search", "tables", "first_number")
)
ROUNDING = 0.0015
"""The means have three decimals, so a hypervolume may be off by as much as this."""


@pytest.mark.parametrize("page", [page for page in GUESSES if page != "celeba"])
def test_hull_hypervolumes_of_a_page_follow_from_its_means(page):
    reference = Reference(GUESSES[page])
    volumes = {name: hull(values, reference)[1] for name, values in means(page).items()}
    published = {row[0].strip("`† "): row for row in tables(page)[1][1:]}
    assert published.keys() == volumes.keys()
    for name, row in published.items():
        assert first_number(row[3]) == pytest.approx(volumes[name], abs=ROUNDING)
        if name != "cpgan":
            assert first_number(row[4]) == pytest.approx(volumes["cpgan"] - volumes[name], abs=ROUNDING)


def test_hull_of_mnist_without_weight_10_equals_short_codes():
    settings, reference = means("mnist"), Reference(GUESSES["mnist"])
    difference = hull(settings["cpgan"][:2], reference)[1] - hull(settings["bottleneck"], reference)[1]
    assert difference == pytest.approx(0.003, abs=ROUNDING)
    text = " ".join((DOCS / "results" / "mnist.md").read_text().split())
    assert "0.003 more than that of `bottleneck`" in text


def test_hull_of_the_search_on_celeba_follows_from_its_table():
    points = means_of_search("celeba")
    assert {name: len(values) for name, values in points.items()} == {"k = 16": 4, "k = 64": 4, "k = 256": 4, "undefended": 1}
    defended = np.concatenate([values for name, values in points.items() if name != "undefended"])
    volume = hull(defended, Reference(GUESSES["celeba"]))[1]
    assert volume == pytest.approx(0.0704, abs=ROUNDING)
    assert "same settings is 0.0704" in " ".join((DOCS / "results" / "celeba.md").read_text().split())


@pytest.mark.parametrize("page", GUESSES)
def test_figure_has_every_setting_of_its_page(page):
    points = means_of_search(page) if page == "celeba" else means(page)
    (ax,) = SCRIPT["draw"](points, guess=GUESSES[page], floor=SCRIPT["FLOORS"][page]).axes
    drawn = np.concatenate([line.get_xydata() for line in ax.get_lines() if line.get_marker() == "o"])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, np.concatenate([*points.values()])))

"""Tests that the hull hypervolumes on the pages of results follow from the means on the same pages."""

import re
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.analysis.fronts import Reference, hull

RESULTS = Path(__file__).parents[2] / "docs" / "results"
GUESSES = {"mnist": 0.1135, "har": 0.182, "genki4k": 0.5}
"""Accuracy of the majority guess on the test split."""
ROUNDING = 0.0015
"""The means have three decimals, so a hypervolume may be off by as much as this."""


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def first_number(text: str) -> float:
    match = re.match(r"-?\d+\.\d+", text)
    assert match, text
    return float(match[0])


def tables(page: str) -> list[list[list[str]]]:
    """The rows of each table of a page, without its heading."""
    blocks = re.findall(r"(?:^\|.*\n)+", (RESULTS / f"{page}.md").read_text(), re.MULTILINE)
    return [[cells(line) for line in block.splitlines()[2:]] for block in blocks]


def means(page: str) -> dict[str, np.ndarray]:
    """Mechanism -> R2 and accuracy of its settings, (P, 2), from the first table of a page."""
    settings: dict[str, list[tuple[float, float]]] = {}
    name = ""
    for mechanism, _, _, accuracy, r2 in tables(page)[0]:
        name = mechanism.split("`")[1] if mechanism else name
        settings.setdefault(name, []).append((first_number(r2), first_number(accuracy)))
    return {name: np.array(values) for name, values in settings.items()}


@pytest.mark.parametrize("page", GUESSES)
def test_hull_hypervolumes_of_a_page_follow_from_its_means(page):
    reference = Reference(GUESSES[page])
    volumes = {name: hull(values, reference)[1] for name, values in means(page).items()}
    published = {row[0].strip("`† "): row for row in tables(page)[1]}
    assert published.keys() == volumes.keys()
    for name, row in published.items():
        assert first_number(row[3]) == pytest.approx(volumes[name], abs=ROUNDING)
        if name != "cpgan":
            assert first_number(row[4]) == pytest.approx(volumes["cpgan"] - volumes[name], abs=ROUNDING)


def test_hull_of_mnist_without_weight_10_equals_short_codes():
    settings, reference = means("mnist"), Reference(GUESSES["mnist"])
    difference = hull(settings["cpgan"][:2], reference)[1] - hull(settings["bottleneck"], reference)[1]
    assert difference == pytest.approx(0.003, abs=ROUNDING)
    text = " ".join((RESULTS / "mnist.md").read_text().split())
    assert "0.003 more than that of `bottleneck`" in text

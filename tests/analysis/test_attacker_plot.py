"""Tests of the figure of all attacks."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cpgan_ray.analysis.attacker_plot import WORST, attacker_lines, panel

R2 = {1.0: [(0.3, 0.2), (-35.0, 0.4)], 0.1: [(0.5, 0.45), (0.6, 0.5)]}
"""Setting -> for each seed, the R2 of ridge and of nearest."""


def cells(mechanism: str = "cpgan") -> list[dict]:
    return [
        {
            "cell": {"mechanism": mechanism, "setting": setting},
            "attacks": [{"name": name, "r2": r2} for name, r2 in zip(("ridge", "nearest"), values, strict=True)],
        }
        for setting, seeds in R2.items()
        for values in seeds
    ]


def test_panel_sorts_settings_by_strongest_mean_r2():
    ax = Figure().add_subplot()
    panel(ax, cells(), ["nearest", "ridge"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "0.1"]
    assert np.asarray(ax.lines[0].get_ydata()).tolist() == pytest.approx([0.3, 0.475]), "of nearest"


def test_panel_clips_r2_far_below_zero():
    ax = Figure().add_subplot()
    assert panel(ax, cells(), ["nearest", "ridge"])
    assert ax.get_ylim()[0] > WORST - 0.1
    (ridge,) = [line for line in ax.lines if line.get_marker() == "v" and len(np.asarray(line.get_xdata()))]
    assert (np.asarray(ridge.get_xdata()).tolist(), np.asarray(ridge.get_ydata()).tolist()) == ([0], [WORST])


def test_attacker_lines_draws_one_panel_per_mechanism():
    names = [f"mechanism {i}" for i in range(6)]
    png = attacker_lines([cell for name in names for cell in cells(name)], dict.fromkeys(names, "share of k"))
    with Image.open(io.BytesIO(png)) as figure:
        assert figure.width > 1.5 * figure.height, "two rows of four"

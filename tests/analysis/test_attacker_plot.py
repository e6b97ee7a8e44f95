"""The figure of attackers: what is on it can be read, whatever an attack found."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cpgan_ray.analysis.attacker_plot import WORST, attacker_lines, panel

FOUND = {1.0: [(0.3, 0.2), (-35.0, 0.4)], 0.1: [(0.5, 0.45), (0.6, 0.5)]}
"""Setting -> of each seed what ridge and nearest found."""


def cells(mechanism: str = "cpgan") -> list[dict]:
    return [
        {
            "cell": {"mechanism": mechanism, "setting": setting},
            "attacks": [{"name": name, "r2": r2} for name, r2 in zip(("ridge", "nearest"), both, strict=True)],
        }
        for setting, seeds in FOUND.items()
        for both in seeds
    ]


def test_settings_are_in_the_order_of_the_strongest_and_means_over_seeds():
    one = Figure().add_subplot()
    panel(one, cells(), ["nearest", "ridge"])
    assert [label.get_text() for label in one.get_xticklabels()] == ["1", "0.1"]
    assert np.asarray(one.lines[0].get_ydata()).tolist() == pytest.approx([0.3, 0.475]), "of nearest"


def test_an_attack_that_is_far_off_does_not_press_the_others_together():
    one = Figure().add_subplot()
    assert panel(one, cells(), ["nearest", "ridge"])
    assert one.get_ylim()[0] > WORST - 0.1
    (ridge,) = [drawn for drawn in one.lines if drawn.get_marker() == "v" and len(np.asarray(drawn.get_xdata()))]
    assert (np.asarray(ridge.get_xdata()).tolist(), np.asarray(ridge.get_ydata()).tolist()) == ([0], [WORST])


def test_every_mechanism_has_a_panel_of_its_own():
    names = [f"mechanism {i}" for i in range(6)]
    drawn = attacker_lines([cell for name in names for cell in cells(name)], dict.fromkeys(names, "share of k"))
    with Image.open(io.BytesIO(drawn)) as figure:
        assert figure.width > 1.5 * figure.height, "two rows of four"

"""The overview picture is drawn from an undefended and a defended run on procedural faces, and other pairs are refused."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.config.presets import preset
from cpgan_ray.errors import InputError

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "figures" / "make_overview.py"))
FACES = preset("faces")
UNDEFENDED = replace(FACES, privacy_weight=0.0)


def test_ensure_comparable_accepts_an_undefended_and_a_defended_run():
    SCRIPT["ensure_comparable"](UNDEFENDED, FACES)


@pytest.mark.parametrize(
    ("undefended", "defended", "message"),
    [
        (FACES, UNDEFENDED, "privacy weights are 0.2 and 0"),
        (UNDEFENDED, UNDEFENDED, "privacy weights are 0 and 0"),
        (UNDEFENDED, replace(FACES, data=replace(FACES.data, image_size=32)), "different data"),
        (replace(preset("celeba"), privacy_weight=0.0), preset("celeba"), "data.dataset is 'celeba'"),
    ],
)
def test_ensure_comparable_refuses_other_pairs(undefended, defended, message):
    with pytest.raises(InputError, match=message):
        SCRIPT["ensure_comparable"](undefended, defended)


def test_draw_writes_answers_and_how_many_are_right():
    names = ["Eyeglasses", "Male", "Young"]
    truth = np.array([[True, False, True], [False, True, True]])
    pictures = np.zeros((2, 8, 8, 3))
    rows = [SCRIPT["Row"](r2, "mlp", pictures, answers, 0.9) for r2, answers in ((0.4, truth), (0.05, ~truth))]
    figure = SCRIPT["draw"](pictures, truth, names, *rows)
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts == [
        "eyeglasses",
        "3 of 3 right",
        "male",
        "3 of 3 right",
        "male ✗",
        "0 of 3 right",
        "eyeglasses ✗",
        "0 of 3 right",
    ]
    assert any("R2 0.050" in text.get_text() for text in figure.texts)

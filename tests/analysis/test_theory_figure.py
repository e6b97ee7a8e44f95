"""Tests of the figure of the Gaussian mixture."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from cpgan_ray import theory
from cpgan_ray.analysis.published import published_theory
from cpgan_ray.analysis.theory_figure import draw_frontier, frontier_figure, measured, set_limits, smallest_error
from cpgan_ray.data.datasets.gaussian import mixture
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report import figures

DATA = mixture(9)
MOMENTS = theory.population_moments(DATA.mean, within=DATA.covariance)


def cell(seed: int, accuracy: float, mse: float, mechanism: str = "cpgan") -> dict:
    attacks = [{"mse_raw": mse, "r2": 1 - mse / 16, "low": 0.95 - mse / 16, "high": 1.1 - mse / 16}, {"mse_raw": 15, "r2": 0.1}]
    utility = {"accuracy": accuracy, "accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.02}
    of_code = {"accuracy": accuracy + 0.001, "mse": mse + 2}
    return {
        "cell": {"mechanism": mechanism, "setting": 1.0, "seed": seed},
        "utility": utility,
        "attacks": attacks,
        "theory": of_code,
    }


def test_smallest_error_uses_interval_of_best_attack():
    assert smallest_error(cell(0, 0.9, 12.0)["attacks"]) == pytest.approx((12.0, 10.4, 12.8))


def test_measured_crosses_students_interval_with_that_over_people():
    ours, pca = measured([cell(0, 0.9, 12.0), cell(0, 0.8, 13.0, "pca"), cell(1, 0.92, 12.2)])
    assert (ours.mechanism, pca.mechanism) == ("cpgan", "pca")
    half = 12.706205 * 0.01 / 1  # t(0.975, 1) times the deviation 0.01 sqrt(2), over sqrt(2)
    assert ours.accuracy == pytest.approx((0.91, 0.91 - np.hypot(half, 0.01), 0.91 + np.hypot(half, 0.02)))
    errors = (12.1, 12.1 - np.hypot(10 * half, 1.6), 12.1 + np.hypot(10 * half, 0.8))  # of a cell: 16 times its interval of R2
    assert ours.mse == pytest.approx(errors)
    assert ours.theory == pytest.approx((14.1, 0.911))
    assert pca.accuracy == pytest.approx((0.8, 0.79, 0.82)), "one seed's own interval"


@pytest.mark.parametrize("attacker", ["linear", "exact"])
def test_draw_frontier_matches_theory_up_to_best_accuracy(attacker):
    _, ax = figures.new_figure(4, 4)
    ax.set_ylim(0.8, 1)
    draw_frontier(ax, MOMENTS, attacker)
    mse, accuracy = ax.lines[0].get_data()
    best = theory.least_leaking_point(1.0, moments=MOMENTS).accuracy
    assert accuracy[0] == pytest.approx(0.8)
    assert accuracy[-2:] == pytest.approx([best, best])
    assert mse[-1] == 0, "at the best accuracy the frontier ends at a code that leaks everything"
    rows = slice(5, 40, 15)
    points = [theory.least_leaking_point(a, moments=MOMENTS, attacker=attacker) for a in accuracy[rows]]
    assert mse[rows] == pytest.approx([p.mse for p in points])
    errors = {
        "linear": [theory.lmmse(p.direction, total=MOMENTS.total) for p in points],
        "exact": [theory.mmse(p.direction, mean=MOMENTS.mean, within=MOMENTS.within) for p in points],
    }
    assert mse[rows] == pytest.approx(errors[attacker])


def test_set_limits_includes_every_setting():
    _, ax = figures.new_figure(4, 4)
    set_limits(ax, measured([cell(0, 0.7, 2.0, "noise"), cell(0, 0.99, 12.0)]), MOMENTS)
    assert ax.get_xlim()[0] < 2 < MOMENTS.mean_mse < ax.get_xlim()[1]
    assert ax.get_ylim()[0] < 0.7 < 0.99 < ax.get_ylim()[1]


def test_frontier_figure_draws_published_theory_if_given():
    def pixels(colour: str, picture: bytes) -> int:
        rgb = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        return int((np.abs(rgb - 255 * np.array(to_rgb(colour))).max(axis=2) < 3).sum())

    cells = [cell(0, 0.95, 11.0), cell(0, 0.9, 12.0, "pca")]
    without, with_published = frontier_figure(cells, seed=9), frontier_figure(cells, seed=9, published=[(0.96, 11.5), (0.5, 3.0)])
    for colour in figures.TRAINING[:2]:
        assert pixels(colour, without) > 20, "a colour for each mechanism"
    assert pixels(figures.FRESH, without) == 0
    assert pixels(figures.FRESH, with_published) > 20


def test_published_theory_reads_rows_and_rejects_bad_columns(tmp_path):
    path = tmp_path / "Final_theory.csv"
    assert published_theory(tmp_path) == []
    path.write_text("Lambda,acc,acc_theory,mse,mse_theory\n1,0.84,0.85,14.3,14.2\n")
    assert published_theory(tmp_path) == [(0.85, 14.2)]
    path.write_text("Lambda,acc\n1,0.84\n")
    with pytest.raises(InputError, match=r"Final_theory\.csv: no column 'acc_theory'"):
        published_theory(tmp_path)

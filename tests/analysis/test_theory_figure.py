"""The mixture's figure: what is drawn, where, and in which unit."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from cpgan_ray import theory
from cpgan_ray.analysis.published import published_theory
from cpgan_ray.analysis.theory_figure import draw_frontier, frontier_figure, limits, measured, smallest_error
from cpgan_ray.data.datasets.gaussian import mixture
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report import figures

DRAWN = mixture(9)
MOMENTS = theory.population_moments(DRAWN.mean, within=DRAWN.covariance)


def cell(seed: int, accuracy: float, mse: float, mechanism: str = "cpgan") -> dict:
    attacks = [{"mse_raw": mse, "r2": 1 - mse / 16, "low": 0.95 - mse / 16, "high": 1.1 - mse / 16}, {"mse_raw": 15, "r2": 0.1}]
    utility = {"accuracy": accuracy, "accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.02}
    held = {"accuracy": accuracy + 0.001, "mse": mse + 2}
    return {"cell": {"mechanism": mechanism, "setting": 1.0, "seed": seed}, "utility": utility, "attacks": attacks, "theory": held}


def test_of_a_cells_attacks_the_one_of_the_smallest_error_counts_with_its_own_interval():
    assert smallest_error(cell(0, 0.9, 12.0)["attacks"]) == pytest.approx((12.0, 10.4, 12.8))


def test_a_settings_place_is_the_mean_over_its_seeds_with_students_interval():
    one, other = measured([cell(0, 0.9, 12.0), cell(0, 0.8, 13.0, "pca"), cell(1, 0.92, 12.2)])
    assert (one.mechanism, other.mechanism) == ("cpgan", "pca")
    half = 12.706205 * 0.01 / 1  # t(0.975, 1) times the deviation 0.01 sqrt(2), over sqrt(2)
    assert one.accuracy == pytest.approx((0.91, 0.91 - half, 0.91 + half))
    assert one.mse == pytest.approx((12.1, 12.1 - 10 * half, 12.1 + 10 * half))
    assert one.own == pytest.approx((14.1, 0.911))
    assert other.accuracy == pytest.approx((0.8, 0.79, 0.82)), "one seed's own interval"


@pytest.mark.parametrize("attacker", ["linear", "exact"])
def test_the_frontier_is_that_of_theory_and_ends_at_the_best_accuracy(attacker):
    _, one = figures.axes(4, 4)
    one.set_ylim(0.8, 1)
    draw_frontier(one, MOMENTS, attacker)
    mse, accuracy = one.lines[0].get_data()
    best = theory.least_leaking_point(1.0, moments=MOMENTS).accuracy
    assert accuracy[0] == pytest.approx(0.8)
    assert accuracy[-2:] == pytest.approx([best, best])
    assert mse[-1] == 0, "with the best accuracy a code may tell everything"
    some = slice(5, 40, 15)
    points = [theory.least_leaking_point(a, moments=MOMENTS, attacker=attacker) for a in accuracy[some]]
    assert mse[some] == pytest.approx([p.mse for p in points])
    errors = {
        "linear": [theory.lmmse(p.direction, total=MOMENTS.total) for p in points],
        "exact": [theory.mmse(p.direction, mean=MOMENTS.mean, within=MOMENTS.within) for p in points],
    }
    assert mse[some] == pytest.approx(errors[attacker])


def test_every_setting_is_inside_the_figure():
    _, one = figures.axes(4, 4)
    limits(one, measured([cell(0, 0.7, 2.0, "noise"), cell(0, 0.99, 12.0)]), MOMENTS)
    assert one.get_xlim()[0] < 2 < MOMENTS.mean_mse < one.get_xlim()[1]
    assert one.get_ylim()[0] < 0.7 < 0.99 < one.get_ylim()[1]


def test_the_originals_theory_is_drawn_where_it_is_given():
    def pixels(colour: str, picture: bytes) -> int:
        drawn = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        return int((np.abs(drawn - 255 * np.array(to_rgb(colour))).max(axis=2) < 3).sum())

    cells = [cell(0, 0.95, 11.0), cell(0, 0.9, 12.0, "pca")]
    alone, beside = frontier_figure(cells, seed=9), frontier_figure(cells, seed=9, published=[(0.96, 11.5), (0.5, 3.0)])
    for colour in figures.TRAINING[:2]:
        assert pixels(colour, alone) > 20, "a colour for each mechanism"
    assert pixels(figures.FRESH, alone) == 0
    assert pixels(figures.FRESH, beside) > 20


def test_the_originals_theory_is_read_per_dimension_and_what_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "Final_theory.csv"
    assert published_theory(tmp_path) == []
    path.write_text("Lambda,acc,acc_theory,mse,mse_theory\n1,0.84,0.85,14.3,14.2\n")
    assert published_theory(tmp_path) == [(0.85, 14.2)]
    path.write_text("Lambda,acc\n1,0.84\n")
    with pytest.raises(InputError, match=r"Final_theory\.csv: no column 'acc_theory'"):
        published_theory(tmp_path)

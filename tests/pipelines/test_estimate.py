"""Tests of `jobs/reproduce.py --estimate`: what a comparison costs."""

from dataclasses import replace
from typing import Any

import pytest

from cpgan_ray.analysis.cells import Cell
from cpgan_ray.cli import parse_reproduce
from cpgan_ray.config import Config, ReproduceJob
from cpgan_ray.data import load
from cpgan_ray.pipelines.reproduce.estimate import SHARED, Cost, Row, estimate, extended, pilots, rows_of, table, time_cell

pytestmark = pytest.mark.usefixtures("process_left_as_it_was")
QUICK = (
    "--epochs 2 --data.max-train-samples 200 --batch-size 100 --attacks.names ridge --attacks.max-budget-doublings 0 "
    "--runtime.backend local --runtime.threads 1"
)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> ReproduceJob:
    """A comparison of the digits whose trainings take less than a second."""
    cache = tmp_path_factory.mktemp("estimate") / "cache"
    return parse_reproduce(["digits", *QUICK.split(), "--cache-dir", str(cache)], description="")[0]


def finished_cell(cell: Cell, *, training: float, attacks: float) -> dict[str, Any]:
    return {"cell": vars(cell), "cpu_s": {"training": training, "attacks": attacks}}


@pytest.mark.parametrize(("one", "two", "epochs", "seconds"), [(3, 5, 1, 3), (3, 5, 2, 5), (3, 5, 10, 21), (3, 2, 10, 3)])
def test_epochs_are_extended_along_a_line(one, two, epochs, seconds):
    assert extended(one, two, epochs) == seconds


def test_rows_of_recorded_cells_have_their_mean(quick):
    cells = [Cell(mechanism="pca", setting=setting, rounded=True, seed=seed) for setting in (1.0, 0.5) for seed in range(2)]
    done = [finished_cell(cell, training=seconds, attacks=10 * seconds) for cell, seconds in zip(cells, (1, 3), strict=False)]
    (row,) = rows_of(cells[2:], done, quick.config, load(quick.config, progress=False), attacked=True)
    assert row == Row(name="pca", count=2, cost=Cost(training=2, attacks=20), recorded=True)
    assert row.hours == pytest.approx(44 / 3600)
    assert "pca (recorded)" in table([row])


def test_estimate_counts_every_cell_and_adds_up(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = replace(quick, mechanisms=("answers", "pca"), num_seeds=3, rounding=("on",), num_settings=2)
    text, summary = estimate(job, resume=False)
    assert summary["cells"] == 2 * 2 * 3
    assert summary["by_mechanism"].keys() == {"answers", "pca", SHARED["twin"], SHARED["floor"]}
    assert all(hours > 0 for name, hours in summary["by_mechanism"].items() if name != "answers")
    assert summary["cpu_hours"] == pytest.approx(sum(summary["by_mechanism"].values()), abs=1e-4)
    variants, attacks = 2, 1
    assert summary["attacks"] == summary["cells"] * (variants * attacks + 3 + 1), "on z, on the true labels, on the answers"
    assert "once for each seed" in text
    assert list(tmp_path.iterdir()) == [], "nothing is written next to the prepared store"


def test_time_of_a_mechanism_leaves_out_what_it_shares(quick, tmp_path):
    dataset = load(quick.config, progress=False)

    def timed(mechanism: str, setting: float, config: Config = quick.config) -> tuple[Cost, dict[str, Cost]]:
        cell = Cell(mechanism=mechanism, setting=setting, rounded=False, seed=0)
        return time_cell(cell, config, dataset, tmp_path / mechanism, attacked=False)

    answers, shared = timed("answers", 1.0)
    assert shared.keys() == {"twin"} and answers.training < shared["twin"].training
    _, of_features = timed("dnn", 0.0)
    assert of_features.keys() == {"features"}
    alone, nothing = timed("pca", 1.0)
    assert nothing == {} and alone.attacks == 0.0 < alone.training


def test_estimate_of_a_calibration_counts_its_pilots(quick):
    job = replace(quick, mechanisms=("cpgan", "answers", "answers_noisy"), num_pilots=4, rounding=("on", "off"), calibrate=True)
    names = [cell.mechanism for cell in pilots(job, 7)]
    assert names.count("bottleneck") == 1, "the undefended twin"
    assert names.count("cpgan") == 2 * 4 and names.count("answers_noisy") == 4 and "answers" not in names
    assert {cell.seed for cell in pilots(job, 7)} == {7}

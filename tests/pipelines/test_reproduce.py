"""Tests of `jobs/reproduce.py` on scikit-learn's digits."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cpgan_ray.analysis.cells import Cell, trial
from cpgan_ray.analysis.comparison import findings, gap, paired, recommended, volumes
from cpgan_ray.analysis.fronts import Reference
from cpgan_ray.cli import parse_reproduce
from cpgan_ray.common.ownership import sign
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.reproduce.job import open_run, reproduce
from cpgan_ray.pipelines.reproduce.results import settings_table
from tests.process import HANG_S

JOB = Path(__file__).parents[2] / "jobs" / "reproduce.py"
QUICK = (
    "--epochs 2 --data.max-train-samples 200 --batch-size 100 --attacks.names ridge mlp --attacks.epochs 1 "
    "--attacks.max-budget-doublings 0"
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(JOB), *arguments], capture_output=True, text=True, timeout=HANG_S, check=False)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> tuple[Path, dict, str]:
    """A small comparison: its folder, its summary, its standard output."""
    folder = tmp_path_factory.mktemp("reproduce")
    flags = [*QUICK.split(), "--cache-dir", str(folder / "cache"), "--output", str(folder / "out"), "--num-seeds", "2"]
    done = run("digits", "--mechanisms", "cpgan", "bottleneck", "noise", "--num-settings", "2", *flags)
    assert done.returncode == 0, done.stderr
    return folder / "out", json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_reproduce_runs_and_tracks_every_cell(comparison):
    folder, summary, _ = comparison
    assert summary["cells"] == 12
    assert summary["failed"] == 0
    client = mlflow.MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    parent = client.get_run(summary["run_id"])
    assert parent.info.status == "FINISHED"
    below = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{summary['run_id']}'")
    assert sorted(r.data.tags["search.trial"] for r in below) == sorted(p.name for p in (folder / "cells").iterdir())
    assert all(r.info.status == "FINISHED" and "privacy/strongest_r2" in r.data.metrics for r in below)


def test_reproduce_results_match_cells(comparison):
    folder, summary, printed = comparison
    text = (folder / "results.md").read_text()
    assert text.strip() in printed
    cells = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("cells/*/cell.json")}
    with (folder / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["name"]: float(row["accuracy"]) for row in rows} == {n: c["utility"]["accuracy"] for n, c in cells.items()}
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(cells)
    for row in table:
        cell = cells[f"{row['mechanism']}-{row['setting'].removesuffix('.0')}-{row['seed']}"]
        assert float(row["accuracy"]) == cell["utility"]["accuracy"]
        attacks = {a["name"]: (a["r2"], a["mse_255"]) for a in cell["attacks"]}
        assert {name: (float(row[f"{name}_r2"]), float(row[f"{name}_mse"])) for name in attacks} == attacks
        assert float(row["r2"]) >= max(r2 for r2, _ in attacks.values())
    noise = [cells[f"noise-0.5-{seed}"]["utility"]["accuracy"] for seed in (0, 1)]
    half = stats.t.ppf(0.975, 1) * np.std(noise, ddof=1) / 2**0.5
    assert f"{np.mean(noise):.3f} [{np.mean(noise) - half:.3f}, {np.mean(noise) + half:.3f}]" in text
    results = json.loads((folder / "results.json").read_text())
    assert results["hypervolume"]["cpgan"]["value"] == pytest.approx(summary["hypervolume"])
    assert sum(results["strongest_attacks"]["noise"].values()) == 4
    for name in ("frontier.png", "attackers.png"):
        with Image.open(folder / name) as figure:
            assert figure.width > 600
    with Image.open(folder / "cells" / "cpgan-0.1-0" / "pictures.png") as panel:
        assert panel.height > 100


def test_settings_table_marks_unsaturated_attack(comparison):
    folder, _, _ = comparison
    cells = [json.loads((folder / "cells" / f"cpgan-0.1-{seed}" / "cell.json").read_text()) for seed in (0, 1)]
    for cell in cells:
        best = max(a["r2"] for a in cell["attacks"])
        for a in cell["attacks"]:
            a["saturated"] = a["r2"] == best
    trials = [trial(cell, folder) for cell in cells]
    assert "*" not in settings_table(cells, trials)
    for a in cells[1]["attacks"]:
        a["saturated"] = not a["saturated"]
    assert f"{trials[1].attack} *" in settings_table(cells, trials)
    assert settings_table(cells, trials).endswith("a lower bound")


def test_reproduce_resume_runs_only_missing_cells(comparison):
    folder, _, _ = comparison
    unchanged, removed = folder / "cells" / "noise-4-1" / "cell.json", folder / "cells" / "noise-0.5-1" / "cell.json"
    before, original = unchanged.stat().st_mtime_ns, json.loads(removed.read_text())
    removed.unlink()
    done = run("--resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert "1 of 12 cells to run" in done.stderr
    assert unchanged.stat().st_mtime_ns == before
    repeated = json.loads(removed.read_text())
    assert repeated["utility"] == original["utility"]
    assert repeated["privacy"] == original["privacy"], "the same seeds must give the same numbers"


@pytest.mark.usefixtures("process_left_as_it_was")
def test_reproduce_interrupted_leaves_table_of_ten_cells(comparison):
    folder, _, _ = comparison
    blocked, aside = folder / "cells" / "noise-0.5-1", folder / "aside"
    missing = [folder / "cells" / name / "cell.json" for name in ("noise-4-0", "noise-4-1")]
    whole = {path: path.read_bytes() for path in (*missing, folder / "results.csv", folder / "reproduction.json")}
    job, _ = parse_reproduce(["--resume", str(folder), "--runtime.backend", "local"], description="")
    for path in (*missing, folder / "results.csv"):
        path.unlink()
    blocked.rename(aside)
    blocked.touch()  # a file in place of the folder of the eleventh cell
    try:
        with pytest.raises(FileExistsError, match=blocked.name):
            reproduce(job, resume=True)
        with (folder / "results.csv").open() as file:
            names = [f"{row['mechanism']}-{float(row['setting']):g}-{row['seed']}" for row in csv.DictReader(file)]
    finally:
        blocked.unlink()
        aside.rename(blocked)
        for path, content in whole.items():
            path.write_bytes(content)
        sign(folder / "reproduction.json")
    assert sorted(names) == sorted({p.name for p in (folder / "cells").iterdir()} - {"noise-0.5-1", "noise-4-1"})
    assert len(names) == 10


@pytest.mark.slow
def test_reproduce_resume_results_include_all_cells(comparison):
    folder, _, _ = comparison
    record = (folder / "reproduction.json").read_bytes()
    done = run("--resume", str(folder), "--mechanisms", "pca", "--num-settings", "1", "--num-seeds", "1")
    (folder / "reproduction.json").write_bytes(record)
    sign(folder / "reproduction.json")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 cells to run" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["cells"] == 13
    with (folder / "results.csv").open() as file:
        rows = [(row["mechanism"], float(row["setting"]), int(row["seed"])) for row in csv.DictReader(file)]
    settings = [
        (name, setting)
        for name, values_ in (("cpgan", (0.1, 10)), ("bottleneck", (1, 0.125)), ("noise", (0.5, 4)))
        for setting in values_
    ]
    assert rows == [(*setting_, seed) for setting_ in settings for seed in (0, 1)] + [("pca", 1.0, 0)]
    assert json.loads((folder / "results.json").read_text())["ours_less"]["pca"]["value"] is not None


def test_parse_reproduce_resume_allows_more_cells_only(comparison):
    folder, _, _ = comparison
    job, resume = parse_reproduce(["--resume", str(folder), "--num-seeds", "3", "--num-settings", "1"], description="")
    assert resume
    assert (job.num_seeds, job.num_settings, job.mechanisms) == (3, 1, ("cpgan", "bottleneck", "noise"))
    with pytest.raises(InputError, match=r"^--k is 8, but the comparison in .* was started with 16: leave the flag out"):
        parse_reproduce(["--resume", str(folder), "--k", "8"], description="")


@pytest.mark.usefixtures("process_left_as_it_was")
def test_open_run_resume_updates_tags(comparison):
    folder, _, _ = comparison
    record = (folder / "reproduction.json").read_bytes()
    job, _ = parse_reproduce(["--resume", str(folder), "--num-seeds", "5"], description="")
    run = open_run(job, folder, resume=True)
    run.close("FINISHED")
    (folder / "reproduction.json").write_bytes(record)
    sign(folder / "reproduction.json")
    data = run.client.get_run(run.run_id).data
    assert (data.tags["num_seeds"], data.tags["mechanisms"]) == ("5", "cpgan bottleneck noise")
    assert "seeds" not in data.params


@pytest.mark.slow
def test_reproduce_published_draws_reference_results(tmp_path):
    reference = tmp_path / "reference"
    reference.mkdir()
    (reference / "noise.csv").write_text("Noise,acc,mse\n0.1,0.98,0.16\n")
    (reference / "Final_theory.csv").write_text("Lambda,acc,acc_theory,mse,mse_theory\n2,0.8475,0.8515,14.29,14.16\n")
    flags = ["--cache-dir", str(tmp_path / "cache"), "--output", str(tmp_path / "out"), "--published", str(reference)]
    few = [*QUICK.split(), "--mechanisms", "pca", "--num-settings", "1", "--num-seeds", "1", "--k", "4"]
    done = run("gaussian", *few, *flags, "--tracking.uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert done.returncode == 0, done.stderr
    for name in ("published.png", "theory.png"):
        with Image.open(tmp_path / "out" / name) as figure:
            assert figure.width > 1000


def test_reproduce_bad_input_exits_2_with_one_line_and_no_output(comparison, tmp_path, in_process):
    folder, _, _ = comparison
    for arguments, message in (
        (("digits", "--output", str(folder)), "already holds a comparison"),
        (("mnist", "--output", str(tmp_path / "a")), "give it with --data-dir"),
        (("nothing",), "there is no preset 'nothing'"),
        ((), "nothing to reproduce"),
        (("digits", "--theory"), "available only for gaussian"),
        (
            ("digits", "--published", str(tmp_path), "--output", str(tmp_path / "a")),
            "the reference implementation has no files of 'digits'",
        ),
        (("--resume", str(tmp_path)), "has no reproduction.json"),
    ):
        status, _, stderr = in_process(JOB, *arguments)
        assert status == 2, (arguments, stderr)
        assert message in stderr
        assert len(stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["here"], "the folder that in_process works in"
    assert list((tmp_path / "here").iterdir()) == []


def test_parse_reproduce_unknown_mechanism_raises_with_choices():
    with pytest.raises(InputError, match="cpgan_one"):
        parse_reproduce(["digits", "--mechanisms", "gan"], description="")


def values(mechanism: str, setting: float, seed: int, accuracy: float, r2: float, floor: float = 0.1) -> dict:
    attack = {"attack": "mlp", "variant": "leaked", "r2": r2, "low": r2, "high": r2}
    utility = {"accuracy": accuracy, "accuracy_low": accuracy, "accuracy_high": accuracy}
    utility |= {"val_accuracy": accuracy, "majority_accuracy": 0.1}
    attacks = [{"name": "mlp", "r2": r2}, {"name": "ridge", "r2": r2 - 0.01 * (seed + 1)}]
    return {
        "cell": {"mechanism": mechanism, "setting": setting, "seed": seed},
        "utility": utility,
        "privacy": {"strongest": attack, "val_r2": r2, "label_floor_r2": floor, "excess": {"r2": r2 - floor}},
        "attacks": attacks,
        "direct": None,
        "k": 8 * setting if mechanism == "bottleneck" else 8,
        "seconds": 1.0,
        "data": "x",
    }


def test_paired_takes_differences_per_seed():
    assert paired({0: 0.5, 1: 0.7, 2: 1.0}, {1: 0.6, 0: 0.4}).value == pytest.approx(0.1)
    low, high = paired({0: 0.5, 1: 0.9}, {0: 0.4, 1: 0.6})[1:]
    assert (low, high) == pytest.approx(tuple(0.2 + stats.t.ppf(0.975, 1) * 0.1 * sign for sign in (-1, 1)))


def test_volumes_use_only_settings_with_all_seeds():
    cells = [values("cpgan", weight, s, 0.9, 0.2) for weight in (0.1, 1.0) for s in (0, 1)]
    extra = trial(values("cpgan", 2.0, 1, 0.95, 0.0), Path())
    trials = [trial(v, Path()) for v in cells]
    assert volumes([*trials, extra], Reference(0.1)) == volumes(trials, Reference(0.1)) != {}
    incomplete = [trials[0], extra]
    assert volumes(incomplete, Reference(0.1)) == {}, "settings without all seeds have no hypervolume, not even 0"


def test_findings_match_cells():
    cells = [values("cpgan", 1.0, s, 0.90 + 0.01 * s, 0.15) for s in (0, 1)]
    cells += [values("bottleneck", 1.0, s, 0.92 + 0.01 * s, 0.6) for s in (0, 1)]
    trials = [trial(v, Path()) for v in cells]
    numbers = findings(cells, trials, Reference(0.1))
    assert numbers["hypervolume"]["cpgan"]["value"] == pytest.approx(np.mean([0.80, 0.81]) * 0.85)
    assert numbers["ours_less"]["bottleneck"]["value"] == pytest.approx(
        np.mean([0.8 * 0.85 - 0.82 * 0.4, 0.81 * 0.85 - 0.83 * 0.4])
    )
    assert numbers["neural_less_closed_form"]["cpgan"]["value"] == pytest.approx(0.015)
    assert numbers["strongest_attacks"] == {"cpgan": {"mlp": 2}, "bottleneck": {"mlp": 2}}
    gaps = gap(trials)
    assert gaps is not None
    assert gaps["utility_loss"]["value"] == pytest.approx(0.02)
    assert gaps["excess_r2"]["value"] == pytest.approx(0.05)


def test_recommended_is_most_private_setting_within_tolerated_loss():
    def recommended_weight(*ours: tuple[float, float, float]) -> float | None:
        cells = [values("bottleneck", share, s, 0.9 - (1 - share), 0.6) for share in (1.0, 0.25) for s in (0, 1)]
        cells += [values("cpgan", weight, s, accuracy, r2) for weight, accuracy, r2 in ours for s in (0, 1)]
        recommendation = recommended([trial(v, Path()) for v in cells])
        return recommendation and recommendation.point.setting["privacy_weight"]

    assert recommended_weight((0.1, 0.9, 0.4), (1.0, 0.892, 0.2), (10.0, 0.7, 0.0)) == 1.0
    assert recommended_weight((1.0, 0.88, 0.2), (10.0, 0.7, 0.0)) == 1.0
    assert recommended([trial(values("cpgan", 1.0, 0, 0.9, 0.1), Path())]) is None, "there is no twin"


def test_trial_code_itself_may_be_strongest_attack():
    cell = values("noise", 0.5, 0, 0.9, 0.5)
    direct = {"r2": 0.75, "low": 0.7, "high": 0.8}
    assert (trial(cell | {"direct": direct}, Path()).strongest_r2, trial(cell, Path()).strongest_r2) == (0.75, 0.5)
    assert trial(cell | {"direct": direct}, Path()).attack == "itself"
    assert Cell(mechanism="noise", setting=0.5, seed=0).name == "noise-0.5-0"

"""Tests of `jobs/reproduce.py` on scikit-learn's digits."""

import csv
import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from cpgan_ray.analysis.cells import Cell, by_name, strongest, trial
from cpgan_ray.analysis.comparison import Plan, complete_trials, findings, recommended
from cpgan_ray.analysis.crossed import outcomes_without_people
from cpgan_ray.analysis.fronts import UTILITY, Estimate, Trial, mean_with_ci
from cpgan_ray.cli import parse_reproduce
from cpgan_ray.common.json_files import read_json
from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.common.ownership import sign
from cpgan_ray.config import Config, RidgeConfig, override
from cpgan_ray.config.folders.jobs import planned_seeds
from cpgan_ray.data import load
from cpgan_ray.data.store import open_store
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report.paired import Rows, read_rows, write_rows
from cpgan_ray.evaluation.scoring import RowErrors
from cpgan_ray.evaluation.utility import Answers
from cpgan_ray.pipelines.reproduce.estimate import estimate
from cpgan_ray.pipelines.reproduce.grids import GRIDS, built_in, ensure_usable, read_grids
from cpgan_ray.pipelines.reproduce.job import open_run, reproduce
from cpgan_ray.pipelines.reproduce.provenance import ensure_same_provenance, provenance
from cpgan_ray.pipelines.reproduce.results import cell_metrics, differences_table, fronts_table, row, settings_table
from tests.process import HANG_S

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "reproduce.py"
FROZEN = ROOT / "docs" / "results" / "grids"
QUICK = (
    "--epochs 2 --data.max-train-samples 400 --batch-size 100 --attacks.names ridge mlp --attacks.epochs 1 "
    "--attacks.max-budget-doublings 0"
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(JOB), *arguments], capture_output=True, text=True, timeout=HANG_S, check=False)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> tuple[Path, dict, str]:
    """A small comparison: its folder, its summary, its standard output."""
    folder = tmp_path_factory.mktemp("reproduce")
    flags = [*QUICK.split(), "--cache-dir", str(folder / "cache"), "--output", str(folder / "out"), "--num-seeds", "2"]
    few = ["--mechanisms", "cpgan", "bottleneck", "noise", "--num-settings", "2", "--rounding", "on"]
    done = run("digits", *few, *flags)
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
    for line in table:
        cell = cells[f"{line['mechanism']}-{line['setting'].removesuffix('.0')}-rounded-{line['seed']}"]
        assert float(line["accuracy"]) == cell["utility"]["accuracy"]
        attacks = {name: (a["r2"], a["mse_255"]) for name, a in by_name(cell).items()}
        assert {a["variant"] for a in cell["attacks"]} == {"leaked", "fresh"}
        assert {name: (float(line[f"{name}_r2"]), float(line[f"{name}_mse"])) for name in attacks} == attacks
        assert float(line["r2"]) >= max(r2 for r2, _ in attacks.values())
    noise = [Estimate(*(cells[f"noise-0.5-rounded-{seed}"]["utility"][name] for name in UTILITY[:3])) for seed in (0, 1)]
    interval = mean_with_ci(noise)
    assert f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]" in text
    results = json.loads((folder / "results.json").read_text())
    assert results["hypervolume"]["cpgan"]["value"] == pytest.approx(summary["hypervolume"])
    front = json.loads((folder / "frontier.json").read_text())
    for method, volume in results["hypervolume"].items():
        assert volume["value"] == pytest.approx(front["methods"][method]["hypervolume"])
        assert volume["low"] < volume["value"] < volume["high"]
        for level, of_front in zip(results["r2_at"][method], front["methods"][method]["r2_at"], strict=True):
            assert (level["share"], level["accuracy"]) == (of_front["share"], pytest.approx(of_front["accuracy"]))
            assert level["value"] == (of_front["strongest_r2"] and pytest.approx(of_front["strongest_r2"]))
    assert (results["planned_seeds"], results["num_seeds"]) == (2, 2)
    assert results["ours_less"]["noise"]["verdict"] == "not tested: 2 seeds, at least 5 are needed"
    assert sum(results["strongest_attacks"]["noise"].values()) == 4
    for name in ("frontier.png", "attackers.png"):
        with Image.open(folder / name) as figure:
            assert figure.width > 600
    with Image.open(folder / "cells" / "cpgan-0.1-rounded-0" / "pictures.png") as panel:
        assert panel.height > 100


def test_reproduce_row_errors_match_cells(comparison):
    folder, _, _ = comparison
    for path in folder.glob("cells/*/cell.json"):
        cell, rows = json.loads(path.read_text()), read_rows(path.parent)
        assert rows.answers is not None
        assert rows.strongest.r2 == pytest.approx(strongest(cell)["r2"])
        assert rows.floor.r2 == pytest.approx(cell["privacy"]["label_floor_r2"])
        assert rows.answers.right.mean() == pytest.approx(cell["utility"]["accuracy"])
        groups = outcomes_without_people(rows.strongest, rows.answers, objective="balanced_accuracy")
        assert groups[0, 1] == pytest.approx(cell["utility"]["balanced_accuracy"])


def test_reproduce_resume_refuses_cells_of_other_code(comparison):
    folder, _, _ = comparison
    path = folder / "cells" / "noise-4-rounded-1" / "cell.json"
    original = path.read_text()
    path.write_text(original.replace(json.loads(original)["made_by"]["code"], "0" * 16))
    job, _ = parse_reproduce(["--resume", str(folder), "--runtime.backend", "local"], description="")
    try:
        with pytest.raises(InputError, match=r"cell noise-4-rounded-1 in .* was computed by other code"):
            reproduce(job, resume=True)
    finally:
        path.write_text(original)


def test_settings_table_marks_unsaturated_attack(comparison):
    folder, _, _ = comparison
    cells = [json.loads((folder / "cells" / f"cpgan-0.1-rounded-{seed}" / "cell.json").read_text()) for seed in (0, 1)]
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


def test_reproduce_resume_runs_only_missing_cells(comparison, in_process):
    folder, _, _ = comparison
    unchanged, removed = (
        folder / "cells" / "noise-4-rounded-1" / "cell.json",
        folder / "cells" / "noise-0.5-rounded-1" / "cell.json",
    )
    before, original = unchanged.stat().st_mtime_ns, json.loads(removed.read_text())
    removed.unlink()
    status, _, stderr = in_process(JOB, "--resume", folder, "--runtime.backend", "local")
    assert status == 0, stderr
    assert "1 of 12 cells to run" in stderr
    assert unchanged.stat().st_mtime_ns == before
    repeated = json.loads(removed.read_text())
    assert repeated["utility"] == original["utility"]
    assert min(repeated["cpu_s"].values()) > 0
    assert repeated["privacy"] == original["privacy"], "the same seeds must give the same numbers"


@pytest.mark.usefixtures("process_left_as_it_was")
def test_estimate_of_a_resumed_comparison_uses_its_finished_cells(comparison):
    folder, _, _ = comparison
    path = folder / "cells" / "noise-4-rounded-1" / "cell.json"
    cost = [json.loads(p.read_text())["cpu_s"] for p in folder.glob("cells/noise-*/cell.json") if p != path]
    content = path.read_bytes()
    path.unlink()
    try:
        job, resume = parse_reproduce(["--resume", str(folder), "--estimate", "--runtime.backend", "local"], description="")
        text, summary = estimate(job, resume=resume)
    finally:
        path.write_bytes(content)
    assert summary["cells"] == 1 and "noise (recorded)" in text
    mean = sum(c["training"] + c["attacks"] for c in cost) / len(cost)
    assert summary["cpu_hours"] == pytest.approx(mean / 3600, abs=1e-4)


@pytest.mark.usefixtures("process_left_as_it_was")
def test_reproduce_interrupted_leaves_table_of_ten_cells(comparison):
    folder, _, _ = comparison
    blocked, aside = folder / "cells" / "noise-0.5-rounded-1", folder / "aside"
    missing = [folder / "cells" / name / "cell.json" for name in ("noise-4-rounded-0", "noise-4-rounded-1")]
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
            names = [f"{row['mechanism']}-{float(row['setting']):g}-rounded-{row['seed']}" for row in csv.DictReader(file)]
    finally:
        blocked.unlink()
        aside.rename(blocked)
        for path, content in whole.items():
            path.write_bytes(content)
        sign(folder / "reproduction.json")
    assert sorted(names) == sorted({p.name for p in (folder / "cells").iterdir()} - {"noise-0.5-rounded-1", "noise-4-rounded-1"})
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
    run = open_run(job, folder, read_grids(folder / GRIDS), resume=True)
    run.close("FINISHED")
    assert planned_seeds(folder) == 2, "seeds that are added later do not change the plan"
    (folder / "reproduction.json").write_bytes(record)
    sign(folder / "reproduction.json")
    data = run.client.get_run(run.run_id).data
    assert (data.tags["num_seeds"], data.tags["planned_seeds"]) == ("5", "2")
    assert data.tags["mechanisms"] == "cpgan bottleneck noise"
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
        (("digits", "--calibrate", "--final"), "leave out --final"),
        (("digits", "--mechanisms", "gan", "--output", str(tmp_path / "a")), "cpgan_one"),
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


PEOPLE = 10


def values(mechanism: str, setting: float, seed: int, accuracy: float, r2: float, floor: float = 0.1) -> dict:
    attack = {"attack": "mlp", "variant": "leaked", "r2": r2, "low": r2, "high": r2}
    names = (accuracy_ for accuracy_ in UTILITY if "accuracy" in accuracy_)
    utility = dict.fromkeys(names, accuracy) | {"majority_accuracy": 0.1, "majority_balanced_accuracy": 0.1, "dead_labels": 2}
    attacks = [{"name": "mlp", "r2": r2, "mse_255": 1 - r2, "saturated": True}]
    attacks += [attacks[0] | {"name": "ridge", "r2": r2 - 0.01 * (seed + 1)}]
    attacks += [attacks[0] | {"name": "stack", "r2": r2 + 0.05}]
    return {
        "cell": {"mechanism": mechanism, "setting": setting, "rounded": True, "seed": seed},
        "made_by": {"code": "c", "config": "d"},
        "utility": utility,
        "privacy": {"strongest": attack, "val_r2": r2, "label_floor_r2": floor, "answers_floor_r2": floor / 2}
        | {
            name: {"r2": e, "low": e - 0.01, "high": e + 0.01}
            for name, e in (("label_excess", r2 - floor), ("excess", r2 - floor / 2))
        },
        "code": {"bits": 20.0, "low": 19.0, "high": 21.0, "val_bits": 20.5, "raw": 32},
        "identity_linkage": {},
        "client": {"multiply_adds": 1000, "parameters": 100, "ms": 0.5, "bytes": 4.0},
        "cost": {"utility_head": {"multiply_adds": 5000, "parameters": 500}},
        "attacks": attacks,
        "direct": None,
        "k": 8 * setting if mechanism == "bottleneck" else 8,
        "seconds": 1.0,
        "cpu_s": {"training": 0.5, "attacks": 0.25},
        "data": "x",
    }


def trials_with_rows(cells: Sequence[dict], folder: Path, *, rows: int = 10) -> list[Trial]:
    """The cells as trials, whose `errors.npz` has their R2 and accuracy (in hundredths) for ten people, who differ a little in both
    in the same way in all cells."""
    spread = np.linspace(-0.02, 0.02, PEOPLE)
    person = np.repeat(np.arange(PEOPLE), rows)
    trials = []
    for v in cells:
        t = trial(v, folder / Cell(**v["cell"]).name)
        one = np.ones(len(person))
        right = np.zeros(len(person), bool)
        right[: round(len(person) * v["utility"]["accuracy"])] = True
        order = np.arange(len(person)).reshape(PEOPLE, rows).T.ravel()  # so that all people have nearly as many right answers
        of_people = np.empty_like(right)
        of_people[order] = right
        errors = one - v["privacy"]["strongest"]["r2"] + spread[person]
        floor = RowErrors(one - v["privacy"]["label_floor_r2"], one, person)
        answers = Answers(of_people[:, None], np.zeros((len(person), 1), np.int8))
        Path(str(t.output)).mkdir(parents=True)
        own = RowErrors(one - v["privacy"]["answers_floor_r2"], one, person)
        write_rows(Path(str(t.output)), Rows(RowErrors(errors, one, person), floor, answers, own))
        trials.append(t)
    return trials


PLAN = Plan(planned_seeds=5, num_seeds=5)


def test_complete_trials_have_all_seeds():
    cells = [values("cpgan", weight, s, 0.9, 0.2) for weight in (0.1, 1.0) for s in (0, 1)]
    extra = trial(values("cpgan", 2.0, 1, 0.95, 0.0), Path())
    trials = [trial(v, Path()) for v in cells]
    assert complete_trials([*trials, extra]) == complete_trials(trials) == {"cpgan": trials}
    assert complete_trials([trials[0], extra]) == {}, "settings without all seeds have no hypervolume, not even 0"


def test_findings_match_cells(tmp_path):
    cells = [values("cpgan", 1.0, s, 0.90 + 0.01 * s, 0.15) for s in (0, 1)]
    cells += [values("bottleneck", 1.0, s, 0.92 + 0.01 * s, 0.6) for s in (0, 1)]
    cells += [values("noise", 1.0, 0, 0.5, 0.9)]
    trials = trials_with_rows(cells, tmp_path)
    numbers = findings(cells, trials, plan=Plan(planned_seeds=2, num_seeds=2))

    def volume(accuracy: float, r2: float) -> float:
        return (accuracy - 0.1) * (1 - r2 / 2)

    assert numbers["hypervolume"]["cpgan"]["value"] == pytest.approx(volume(0.905, 0.15))
    less = numbers["ours_less"]["bottleneck"]
    assert less["value"] == pytest.approx(volume(0.905, 0.15) - volume(0.925, 0.6))
    assert less["low"] < less["value"] < less["high"]
    assert (less["p"], less["p_holm"], less["verdict"]) == (None, None, "not tested: 2 seeds, at least 5 are needed")
    assert [level["accuracy"] for level in numbers["r2_at"]["cpgan"]] == pytest.approx(
        [0.1 + share * 0.825 for share in (0.25, 0.5, 0.75, 0.9)]
    )
    assert numbers["r2_at"]["cpgan"][1]["value"] == pytest.approx(0.15 * 0.5 * 0.825 / 0.805)
    assert numbers["r2_at"]["noise"][2] == numbers["r2_at"]["noise"][3] | {"share": 0.75, "accuracy": pytest.approx(0.71875)}
    assert numbers["r2_at"]["noise"][2]["value"] is None, "not reached"
    assert numbers["neural_less_closed_form"]["cpgan"] == {"mean": pytest.approx(0.015), "num_above_0": 2, "num_cells": 2}
    assert numbers["strongest_attacks"] == {"cpgan": {"mlp": 2}, "bottleneck": {"mlp": 2}, "noise": {"mlp": 1}}
    assert numbers["spearman"]["cpgan"]["reason"] == "1 values of privacy_weight; at least 5 are needed"
    gaps = numbers["gap"]
    assert gaps["utility_loss"]["value"] == pytest.approx(0.02)
    assert gaps["label_excess_r2"]["value"] == pytest.approx(0.05)
    assert gaps["excess_r2"]["value"] == pytest.approx(0.1), "over the answers floor"
    assert "not reached" in fronts_table(numbers)
    assert "Seeds: 2 planned, 2 used" in differences_table(numbers)


def test_differences_are_paired_over_seeds_and_people_and_corrected(tmp_path):
    rng = np.random.default_rng(0)
    seeds = [rng.normal(0, 0.05) for _ in range(5)]
    cells = []
    for s, shift in enumerate(seeds):
        cells += [values("cpgan", 1.0, s, 0.9, 0.3 + shift)]
        cells += [values("bottleneck", 1.0, s, 0.9, 0.32 + shift + rng.normal(0, 0.002))]
        cells += [values("ran", 0.5, s, 0.9, 0.2 + shift + rng.normal(0, 0.002))]
        cells += [values("noise", 1.0, s, 0.9, 0.3 + rng.normal(0, 0.02))]
    numbers = findings(cells, trials_with_rows(cells, tmp_path), plan=PLAN)
    less = numbers["ours_less"]
    assert {name: value["verdict"] for name, value in less.items()} == {
        "bottleneck": "better",
        "ran": "worse",
        "noise": "not separated",
    }
    own = numbers["hypervolume"]["cpgan"]
    assert less["bottleneck"]["high"] - less["bottleneck"]["low"] < 0.2 * (own["high"] - own["low"]), "common variation cancels"
    assert less["bottleneck"]["p_holm"] == pytest.approx(2 * less["bottleneck"]["p"])
    assert less["noise"]["p_holm"] == less["noise"]["p"]
    table = differences_table(numbers).splitlines()
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == ["mechanism", "cpgan minus it", "p (Holm)", "cpgan is"]
    later = findings(cells, trials_with_rows(cells, tmp_path / "later"), plan=Plan(planned_seeds=3, num_seeds=5))
    assert later["ours_less"]["bottleneck"]["verdict"] == "not tested: 3 seeds were planned, and 5 are used"
    assert (later["planned_seeds"], later["num_seeds"]) == (3, 5)


def test_findings_without_row_errors_raise(tmp_path):
    cells = [values("cpgan", 1.0, 0, 0.9, 0.15)]
    with pytest.raises(InputError, match=r"has no errors\.npz"):
        findings(cells, [trial(v, tmp_path) for v in cells], plan=PLAN)


def test_settings_table_uses_objective_and_shows_dead_labels(tmp_path):
    cells = [values("cpgan", 1.0, 0, 0.9, 0.15)]
    cells[0]["utility"] |= {"balanced_accuracy": 0.7, "balanced_accuracy_low": 0.6, "balanced_accuracy_high": 0.8}
    text = settings_table(cells, [trial(cells[0], tmp_path)], "balanced_accuracy")
    assert "balanced accuracy" in text and "0.700 [0.600, 0.800]" in text
    heading, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    assert row[heading.index("dead labels")] == "2"


def test_tables_and_metrics_show_bits_excess_cost_and_linkage(tmp_path):
    cell = values("cpgan", 1.0, 0, 0.9, 0.15)
    without = dict(row(cell))
    best = {"auc": 0.7, "low": 0.6, "high": 0.8, "tar_at_1_far": 0.25}
    trivial = best | {"auc": 0.99}
    weaker = best | {"auc": 0.65, "tar_at_1_far": 0.5}
    cell["identity_linkage"] = {"picture and picture": trivial, "code and code": best, "embedding by ridge and picture": weaker}
    shown = dict(zip(*cells_of(settings_table([cell], [trial(cell, tmp_path)])), strict=True))
    assert shown["excess R2"] == "0.100 [0.090, 0.110]"
    assert (shown["bits"], shown["bytes"]) == ("20 [19, 21]", "4")
    assert (shown["multiply-adds"], shown["parameters"], shown["cloud's multiply-adds"]) == ("1,000", "100", "5,000")
    assert (shown["linkage AUC"], shown["TAR at 1 % FAR"]) == ("0.700 [0.600, 0.800]", "0.250")
    assert (shown["balanced accuracy"], shown["dead labels"]) == ("0.900 [0.900, 0.900]", "2")
    columns, metrics = row(cell), cell_metrics(cell)
    assert (columns["linkage_auc"], columns["linkage_tar"], without["linkage_auc"]) == (0.7, 0.25, None)
    assert (columns["excess_r2_low"], columns["bits_high"]) == (pytest.approx(0.09), 21)
    assert (metrics["code/bits_low"], metrics["code/bits_raw"], metrics["privacy/strongest_linkage_auc"]) == (19, 32, 0.7)
    assert metrics["privacy/excess_r2_high"] == pytest.approx(0.11)
    assert [name for name in metrics if name not in DICTIONARY and not name.startswith("attack/")] == []


def cells_of(table: str) -> list[list[str]]:
    """The headings and the only row of a Markdown table."""
    heading, _, only = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (heading, only)]


def test_ensure_same_provenance_refuses_cells_of_other_code_or_config():
    config = Config()
    own, now = values("cpgan", 1.0, 0, 0.9, 0.1), provenance(config)
    ensure_same_provenance([own | {"made_by": now}], config, Path("folder"))
    for what, words in (("code", "other code"), ("config", "another configuration")):
        with pytest.raises(
            InputError, match=rf"cell cpgan-1-rounded-0 in folder was computed by {words} \(digest old, now [0-9a-f]{{16}}\)"
        ):
            ensure_same_provenance([own | {"made_by": now | {what: "old"}}], config, Path("folder"))


def test_provenance_ignores_seed_and_places_but_no_setting():
    config = Config()
    same = override(config, {"seed": 7, "tracking.experiment": "other", "runtime.threads": 3, "cache_dir": "/elsewhere"})
    assert provenance(same) == provenance(config)
    for name, value in (("k", 7), ("attacks.epochs", 7), ("privacy_weight", 0.25)):
        changed = provenance(override(config, {name: value}))
        assert changed["code"] == provenance(config)["code"]
        assert changed["config"] != provenance(config)["config"], name


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
    assert Cell(mechanism="noise", setting=0.5, rounded=True, seed=0).name == "noise-0.5-rounded-0"
    assert Cell(mechanism="noise", setting=4.0, rounded=False, seed=1).name == "noise-4-unrounded-1"


def test_cells_and_results_record_the_grids(comparison):
    folder, summary, _ = comparison
    digest = hashlib.sha256((folder / GRIDS).read_bytes()).hexdigest()
    cells = [json.loads(path.read_text()) for path in folder.glob("cells/*/cell.json")]
    assert all(cell["grids"] == {"source": "built-in", "sha256": digest} for cell in cells)
    assert json.loads((folder / "results.json").read_text())["grids"]["sha256"] == digest == built_in().sha256
    assert f"Settings: built-in; SHA-256 of grids.json: {digest}" in (folder / "results.md").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    parent = client.get_run(summary["run_id"])
    below = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{summary['run_id']}'")
    assert {run.data.tags["grids.sha256"] for run in (parent, *below)} == {digest}


def test_cell_of_other_grids_is_not_pooled(comparison, in_process):
    folder, _, _ = comparison
    path = folder / "cells" / "noise-4-rounded-1" / "cell.json"
    content = path.read_text()
    other = json.loads(content)
    other["grids"]["sha256"] = "f" * 64
    path.write_text(json.dumps(other))
    try:
        status, _, stderr = in_process(JOB, "--resume", str(folder))
    finally:
        path.write_text(content)
    assert status == 2
    assert len(stderr.strip().splitlines()) == 1
    assert "noise-4-rounded-1" in stderr
    assert "cells of different grids are not pooled" in stderr


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> tuple[Path, dict, str]:
    """A small calibration: its folder, its summary, its standard output."""
    folder = tmp_path_factory.mktemp("calibrated")
    flags = [*QUICK.split(), "--cache-dir", str(folder / "cache"), "--output", str(folder / "out"), "--rounding", "on"]
    few = ["--mechanisms", "pca", "gaussian_noise", "dnn", "--num-settings", "2", "--num-pilots", "3"]
    done = run("digits", "--calibrate", *few, *flags, "--runtime.backend", "local")
    assert done.returncode == 0, done.stderr
    return folder / "out", json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_calibrate_writes_settings_near_the_targets(calibrated):
    folder, summary, printed = calibrated
    grids = read_grids(folder / GRIDS)
    assert summary["sha256"] == grids.sha256 == hashlib.sha256((folder / GRIDS).read_bytes()).hexdigest()
    how = grids.calibration
    assert how is not None
    assert how.pilot_seed == 1_000_000
    middle = (how.majority_accuracy + how.undefended_accuracy) / 2
    assert how.targets == pytest.approx((how.undefended_accuracy, middle))
    for name in ("pca", "gaussian_noise"):
        pilots, choices = how.pilots[name]["on"], grids.grids[name]["on"]
        assert len(pilots) == 3
        assert len({choice.setting for choice in choices}) == 2
        for choice in choices:
            accuracy = next(pilot.val_accuracy for pilot in pilots if pilot.setting == choice.setting)
            assert accuracy == choice.val_accuracy
            tolerance = 0.05 * (how.undefended_accuracy - how.majority_accuracy)
            assert choice.reached == (abs(accuracy - choice.target) <= tolerance)
        assert f"{choices[0].setting:g} ({choices[0].val_accuracy:.3f})" in printed
    assert grids.settings("dnn", rounded=True) == [0.0], "it has no knob"
    assert summary["not_reached"] == sum(c.reached is False for by in grids.grids.values() for c in by["on"])


def test_calibrate_resume_trains_nothing_again(calibrated, in_process):
    folder, summary, _ = calibrated
    stamps = {path.name: path.stat().st_mtime_ns for path in (folder / "pilots").iterdir()}
    status, stdout, stderr = in_process(JOB, "--resume", str(folder))
    assert status == 0, stderr
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "pilots").iterdir()} == stamps
    assert json.loads(stdout.splitlines()[-1])["sha256"] == summary["sha256"]


def test_reproduce_final_with_grids_scores_the_final_split(calibrated, tmp_path, in_process):
    folder, summary, _ = calibrated
    own = ["--cache-dir", str(folder.parent / "cache"), "--output", str(tmp_path / "out"), "--runtime.backend", "local"]
    few = ["--mechanisms", "pca", "--num-seeds", "1", "--rounding", "on", "--grids", str(folder / GRIDS), "--final"]
    status, stdout, stderr = in_process(JOB, "digits", *QUICK.replace("ridge mlp", "ridge").split(), *few, *own)
    assert status == 0, stderr
    settings = read_grids(folder / GRIDS).settings("pca", rounded=True)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("cells/*/cell.json")]
    assert sorted(cell["cell"]["setting"] for cell in cells) == sorted(settings)
    assert all(cell["grids"] == {"source": "calibrated", "sha256": summary["sha256"]} for cell in cells)
    assert (tmp_path / "out" / GRIDS).read_bytes() == (folder / GRIDS).read_bytes()

    summary = json.loads(stdout.splitlines()[-1])
    (store,) = (folder.parent / "cache").glob(f"*{cells[0]['data']}")
    dataset = open_store(store)
    assert (final := len(dataset.final)) != len(dataset.test)
    for path in (tmp_path / "out").glob("cells/*"):
        assert len(read_rows(path).strongest.errors) == final
    assert {cell["split"] for cell in cells} == {"final"}
    assert summary["split"] == read_json(tmp_path / "out" / "results.json")["split"] == "final"
    assert "opening 1 of the final split" in stderr
    runs = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"], f"tags.`final.data` = '{dataset.digest}'")
    assert [run.info.run_id for run in runs] == [summary["run_id"]]


def test_grids_are_refused_where_they_do_not_fit(calibrated, comparison, tmp_path, in_process):
    folder, _, _ = calibrated
    path = folder / GRIDS
    damaged, old = tmp_path / "damaged.json", tmp_path / "old.json"
    damaged.write_text(path.read_text().replace('"source": "calibrated"', '"source": "guessed"'))
    old.write_text(path.read_text().replace('"format": 1', '"format": 0', 1))
    own = ["--cache-dir", str(folder.parent / "cache"), "--output", str(tmp_path / "out"), "--runtime.backend", "local"]
    new = ["digits", *QUICK.split(), *own, "--mechanisms", "pca", "--rounding", "on"]
    for arguments, message in (
        ((*new, "--grids", str(path), "--seed", "999999"), "seed 1000000 chose the settings in"),
        ((*new, "--grids", str(path), "--epochs", "3"), "was calibrated with epochs 2, here it is 3"),
        ((*new, "--grids", str(path), "--mechanisms", "dca"), "grids.json has no settings of dca with rounding on"),
        ((*new, "--grids", str(path), "--rounding", "off"), "grids.json has no settings of pca with rounding off"),
        ((*new, "--grids", str(damaged)), "is damaged (source"),
        ((*new, "--grids", str(old)), "has format 0, this version reads 1: calibrate again"),
        ((*new, "--grids", str(tmp_path / "none.json")), "cannot be read (No such file or directory)"),
        ((*new, "--grids", str(path), "--calibrate"), "but calibrate chooses the settings itself"),
        (("--resume", str(comparison[0]), "--grids", str(path)), "leave out --grids, or start a new comparison"),
        (("gaussian", "--rounding", "on"), "rounding is on, but privatizer.quantization_step is 0"),
        ((*new, "--rounding", "on", "on"), "it must name each of on and off at most once"),
    ):
        status, _, stderr = in_process(JOB, *arguments)
        assert status == 2, (arguments, stderr)
        assert message in stderr
        assert len(stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_ensure_usable_other_data_raises(calibrated):
    folder, _, _ = calibrated
    job, _ = parse_reproduce(["digits", *QUICK.split(), "--cache-dir", str(folder.parent / "cache")], description="")
    with pytest.raises(InputError, match=r"was calibrated on the store \w{16}, this is 0{16}"):
        ensure_usable(read_grids(folder / GRIDS), folder / GRIDS, job, data="0" * 16)


def test_settings_table_separates_rounded_from_unrounded_codes():
    rounded = values("pca", 1.0, 0, 0.9, 0.2) | {"privacy": values("pca", 1.0, 0, 0.9, 0.2)["privacy"]}
    unrounded = values("pca", 1.0, 0, 0.95, 0.6)
    unrounded["cell"]["rounded"] = False
    cells = [rounded, unrounded]
    for cell in cells:
        for a in cell["attacks"]:
            a |= {"saturated": True, "mse_255": 1.0}
    table = settings_table(cells, [trial(cell, Path()) for cell in cells]).splitlines()
    assert len(table) == 4
    assert ("0.9" in table[2], "yes" in table[2], "0.95" in table[3], "no" in table[3]) == (True,) * 4


def test_job_rounding_default_is_both_if_the_preset_rounds():
    assert parse_reproduce(["digits"], description="")[0].roundings == (True, False)
    assert parse_reproduce(["gaussian"], description="")[0].roundings == (False,)
    assert parse_reproduce(["digits", "--rounding", "off"], description="")[0].roundings == (False,)


@pytest.mark.parametrize("path", sorted(FROZEN.glob("*.json")), ids=lambda path: path.stem)
def test_frozen_grids_fit_their_preset(path, cache_dir):
    """A new field of the configuration makes no frozen file unusable: it had its default when the file was made."""
    arguments = [path.stem, "--grids", str(path), "--seed", "100", "--cache-dir", str(cache_dir)]
    job, _ = parse_reproduce(arguments, description="")
    grids = read_grids(path)
    assert grids.calibration is not None
    embedded = path.stem in ("digits", "gaussian")
    data = load(job.config, progress=False).digest if embedded else grids.calibration.data
    ensure_usable(grids, path, job, data=data)
    other = dataclasses.replace(job, config=override(job.config, {"epochs": job.config.epochs + 1}))
    with pytest.raises(InputError, match="was calibrated with epochs"):
        ensure_usable(grids, path, other, data=data)
    more = job.config.adversaries | {"another": RidgeConfig()}
    other = dataclasses.replace(job, config=dataclasses.replace(job.config, adversaries=more))
    with pytest.raises(InputError, match=r"was calibrated with adversaries\.another\.kind None"):
        ensure_usable(grids, path, other, data=data)

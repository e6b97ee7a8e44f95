"""Tests of `jobs/frontier.py` on a real tracking store."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Dataset as UsedData
from mlflow.entities import DatasetInput, Metric, Param, RunTag
from PIL import Image

from cpgan_ray.cli import parse_frontier
from cpgan_ray.config import override
from cpgan_ray.data import load
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.frontier import draw_fronts
from cpgan_ray.tracking import Tracker, read_trials
from cpgan_ray.tracking.store import all_runs
from tests.process import environment

JOB = Path(__file__).parents[2] / "jobs" / "frontier.py"
METRICS = {
    "utility/accuracy": 0.86,
    "utility/majority_accuracy": 0.806,
    "utility/val_accuracy": 0.855,
    "privacy/strongest_r2": 0.1,
    "privacy/strongest_r2_low": 0.09,
    "privacy/strongest_r2_high": 0.11,
    "privacy/label_floor_r2": 0.075,
    "time/total_s": 300.0,
}
NUMBERS = {
    "accuracy": "utility/accuracy",
    "r2": "privacy/strongest_r2",
    "val_r2": "privacy/val_r2",
    "val_accuracy": "utility/val_accuracy",
}


@pytest.fixture
def client(mlflow_uri) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(mlflow_uri)


@pytest.fixture
def record(client, tmp_path) -> Callable[..., str]:
    """Function that records a run like a training: experiment, k, privacy weight, and other values. Returns its id."""
    at = int(time.time() * 1000)

    def make(
        experiment: str,
        k: int = 64,
        weight: float = 1.0,
        *,
        seed: int = 0,
        status: str = "FINISHED",
        tags: dict[str, str] | None = None,
        digest: str = "beef",
        preset: str = "celeba",
        bare: bool = False,
        more: dict[str, float] | None = None,
        **numbers: float,
    ) -> str:
        nonlocal at
        at += 1000
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(experiment, (tmp_path / "artifacts").as_uri())
        run_id = client.create_run(experiment_id, start_time=at, run_name=f"{preset} k={k} w={weight:g}").info.run_id
        metrics = {} if bare else METRICS | {NUMBERS[name]: value for name, value in numbers.items()} | (more or {})
        client.log_batch(
            run_id,
            metrics=[Metric(name, value, at, 0) for name, value in metrics.items()],
            params=[Param(n, str(v)) for n, v in {"preset": preset, "k": k, "privacy_weight": weight, "seed": seed}.items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
        )
        if not bare:
            client.log_inputs(run_id, [DatasetInput(UsedData("celeba", digest, "local", "{}"))])
        if status != "RUNNING":
            client.set_terminated(run_id, status, end_time=at + 500)
        return run_id

    return make


@pytest.fixture
def search_run(record) -> str:
    """A search: its parent run, six trials and a control; one trial stopped, one failed once, one failed finally."""
    parent = record("hunt", tags={"search.role": "parent"}, bare=True)

    def child(k: int, weight: float, *, control: bool = False, state: str = "finished", **more: Any) -> str:
        setting = {"privacy_weight": 0.0} if control else {"k": k, "privacy_weight": weight}
        tags = {
            "mlflow.parentRunId": parent,
            "search.role": "trial",
            "search.trial": f"k={k} privacy_weight={weight:g}",
            "search.setting": json.dumps(setting),
            "search.control": str(control).lower(),
            "search.state": state,
            "changed.k": str(k),
            "changed.attacks.quick_every": "0" if control else "2",
        }
        return record("hunt", k, weight, tags=tags, **more)

    child(16, 1.0, accuracy=0.85, r2=0.04, val_r2=0.05)
    child(64, 0.3, state="failed", status="FAILED", bare=True)
    child(64, 0.3, accuracy=0.875, r2=0.09, val_r2=0.08, val_accuracy=0.872)
    child(256, 0.1, accuracy=0.88, r2=0.2, val_r2=0.21)
    child(16, 0.3, accuracy=0.84, r2=0.08, val_r2=0.08)
    child(8, 9.0, state="stopped", bare=True)
    child(8, 8.0, state="failed", status="FAILED", bare=True)
    attacked = child(128, 0.0, control=True, accuracy=0.886, r2=0.41)
    record("hunt", 128, 0.0, tags={"attacked": attacked, "mlflow.parentRunId": attacked}, r2=0.5)
    return parent


@pytest.fixture
def draw(mlflow_uri, tmp_path, capsys) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run the job in this process; its folder is `<tmp_path>/drawn`."""

    def make(*arguments: str) -> dict[str, Any]:
        flags = [*arguments, "--tracking-uri", mlflow_uri, "--output", str(tmp_path / "drawn")]
        return draw_fronts(parse_frontier(flags, description=""))[1]

    yield make
    mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]


def run_job(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(**variables))


def test_read_trials_of_search_has_states_and_last_attempts(search_run, mlflow_uri):
    trials = read_trials(mlflow_uri, "hunt")
    assert [(t.name, t.state, t.control) for t in trials] == [
        ("k=16 privacy_weight=1", "finished", False),
        ("k=64 privacy_weight=0.3", "finished", False),
        ("k=256 privacy_weight=0.1", "finished", False),
        ("k=16 privacy_weight=0.3", "finished", False),
        ("k=8 privacy_weight=9", "stopped", False),
        ("k=8 privacy_weight=8", "failed", False),
        ("k=128 privacy_weight=0", "finished", True),
    ]
    assert trials[1].setting == {"k": 64, "privacy_weight": 0.3}
    assert trials[-1].setting == {"privacy_weight": 0.0}
    expected = {"accuracy": 0.875, "strongest_r2": 0.09, "strongest_r2_low": 0.09, "val_accuracy": 0.872, "val_r2": 0.08}
    expected |= {"majority_accuracy": 0.806, "label_floor_r2": 0.075, "seconds": 300.0, "data": "beef", "accuracy_low": None}
    assert {name: getattr(trials[1], name) for name in expected} == expected
    assert read_trials(mlflow_uri, search_run) == trials


def test_read_trials_of_experiment_has_only_trainings(record, mlflow_uri):
    record("plain", 64, 0.5, seed=3)
    record("plain", 64, 0.0)
    record("plain", 64, 0.5, status="FAILED")
    record("plain", 64, 0.5, status="RUNNING")
    record("plain", 64, 0.5, status="KILLED")
    record("plain", bare=True)
    trials = read_trials(mlflow_uri, "plain", method="here")
    values = [(t.setting, t.seed, t.state, t.control) for t in trials]
    setting = {"k": 64, "privacy_weight": 0.5}
    assert values == [
        (setting, 3, "finished", False),
        (setting | {"privacy_weight": 0.0}, 0, "finished", True),
        (setting, 0, "failed", False),
        (setting, 0, "killed", False),
        (setting, 0, "running", False),
    ]
    assert trials[0].name == "celeba k=64 w=0.5"
    assert trials[0].val_r2 == trials[0].strongest_r2
    assert {t.method for t in trials} == {"here"}


def test_read_trials_separates_runs_with_other_fields(record, mlflow_uri):
    record("plain")
    record("plain", seed=1, tags={"changed.seed": "1", "changed.attacks.quick_every": "3"})
    record("plain", tags={"changed.privatizer.quantization_step": "0.5", "changed.privatizer.family": "residual"})
    record("plain", preset="celeba_paper")
    first, second, changed, paper = (t.setting for t in read_trials(mlflow_uri, "plain"))
    assert first == second
    assert (changed["privatizer.quantization_step"], changed["privatizer.family"]) == (0.5, "residual")
    assert (first["privatizer.family"], first["preset"], paper["preset"]) == ("conv", "celeba", "celeba_paper")
    assert isinstance(first["privatizer.quantization_step"], float)
    assert "seed" not in first
    assert "attacks.quick_every" not in first


def test_read_trials_reads_all_pages(record, client):
    ids = {record("plain", 8 + i) for i in range(5)}
    experiment = client.get_experiment_by_name("plain").experiment_id
    assert {run.info.run_id for run in all_runs(client, experiment, page_size=2)} == ids


def test_read_trials_reads_run_of_tracker(tiny, mlflow_uri, tmp_path):
    config = override(tiny(seed=2, k=5, privacy_weight=0.25), {"tracking.uri": mlflow_uri})
    dataset = load(config)
    tracker = Tracker(config, tmp_path / "run", dataset=dataset)
    tracker.log(METRICS | {"utility/val_accuracy": 0.7}, step=0)
    tracker.log({"utility/val_accuracy": 0.8}, step=1)
    tracker.close("FINISHED")
    mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
    (trial,) = read_trials(mlflow_uri, config.tracking.experiment)
    assert (trial.setting, trial.seed, trial.state) == ({"k": 5, "privacy_weight": 0.25}, 2, "finished")
    assert (trial.val_accuracy, trial.strongest_r2, trial.run_id) == (0.8, 0.1, tracker.run_id)
    assert trial.data == dataset.digest[:36]


def test_frontier_of_search_writes_files_and_recommends(search_run, mlflow_uri, tmp_path):
    process = run_job("hunt", "--max-r2", "0.1", "--tracking-uri", mlflow_uri, "--output", "drawn", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    *text, last = process.stdout.splitlines()
    assert json.loads(last) == {
        "output": str(tmp_path / "drawn"),
        "experiments": {
            "hunt": {
                "trials": 4,
                "front": 3,
                "hypervolume": pytest.approx(0.044 * 0.98 + 0.025 * (0.96 + 0.91) / 2 + 0.005 * (0.91 + 0.8) / 2),
                "r2_at": [
                    {"share": share, "accuracy": pytest.approx(0.806 + share * 0.08), "strongest_r2": pytest.approx(r2)}
                    for share, r2 in (
                        (0.25, 0.04 * 0.02 / 0.044),
                        (0.5, 0.04 * 0.04 / 0.044),
                        (0.75, 0.04 + 0.05 * 0.016 / 0.025),
                        (0.9, 0.09 + 0.11 * 0.003 / 0.005),
                    )
                ],
            }
        },
        "recommended": {
            "setting": {"k": 64, "privacy_weight": 0.3},
            "seeds": [0],
            "accuracy": 0.875,
            "strongest_r2": 0.09,
            "rule": "largest validation accuracy among settings with validation R2 <= 0.1",
            "meets_bounds": False,
        },
    }
    assert text[0].split()[1::2][:3] == ["k", "privacy_weight", "seeds"]
    assert len(text) == 2 + 4 + 1 + 3
    assert text[-1].split("|")[2].strip() == "0.0708"
    values = json.loads((tmp_path / "drawn" / "frontier.json").read_text())
    assert [p["k"] for p in values["front"]] == [16, 64, 256]
    rows = list(csv.DictReader((tmp_path / "drawn" / "frontier.csv").read_text().splitlines()))
    assert [row["state"] for row in rows].count("stopped") == 1
    with Image.open(tmp_path / "drawn" / "frontier.png") as picture:
        assert picture.size == (1800, 1040)


def test_frontier_uses_default_store_and_folder(record, mlflow_uri, tmp_path):
    record("plain")
    process = run_job("plain", cwd=tmp_path, MLFLOW_TRACKING_URI=mlflow_uri)
    assert process.returncode == 0, process.stderr
    output = Path(json.loads(process.stdout.splitlines()[-1])["output"])
    assert output.parent == tmp_path / "outputs"
    assert output.name.startswith("frontier-")
    (tmp_path / "mlflow.db").rename(tmp_path / "outputs" / "mlflow.db")
    assert run_job("plain", "--output", "again", cwd=tmp_path).returncode == 0
    assert (tmp_path / "again" / "frontier.png").is_file()


def test_frontier_of_two_experiments_has_two_fronts(search_run, record, draw, tmp_path):
    record("noise", 64, 0.3, accuracy=0.82, r2=0.15, val_r2=0.15)
    record("noise", 64, 1.0, accuracy=0.83, r2=0.02, val_r2=0.02)
    summary = draw("hunt", "noise", "--min-accuracy", "0.83")
    assert {name: (counts["trials"], counts["front"]) for name, counts in summary["experiments"].items()} == {
        "hunt": (4, 3),
        "noise": (2, 1),
    }
    assert summary["experiments"]["hunt"]["hypervolume"] > summary["experiments"]["noise"]["hypervolume"]
    assert summary["recommended"]["method"] == "noise"
    values = json.loads((tmp_path / "drawn" / "frontier.json").read_text())
    assert values["methods"].keys() == {"hunt", "noise"}


def test_frontier_of_balanced_accuracy(record, draw, tmp_path):
    values = {"utility/balanced_accuracy": 0.7, "utility/majority_balanced_accuracy": 0.5, "utility/dead_labels": 4.0}
    record("plain", 64, 1.0, r2=0.2, more=values)
    record("plain", 32, 1.0, r2=0.3, more=values | {"utility/balanced_accuracy": 0.6})
    summary = draw("plain", "--objectives", "balanced_accuracy", "r2")
    assert summary["experiments"]["plain"] == {"trials": 2, "front": 1, "hypervolume": pytest.approx(0.2 * 0.9), "r2_at": []}
    drawn = json.loads((tmp_path / "drawn" / "frontier.json").read_text())
    assert (drawn["objective"], drawn["reference_point"]["balanced_accuracy"]) == ("balanced_accuracy", 0.5)
    assert drawn["points"][0]["dead_labels"] == 4
    assert drawn["reason"] == "no setting has the validation numbers that choose it"


def test_frontier_without_recommendation_gives_reason(search_run, draw):
    summary = draw(search_run, "--max-r2", "0.01")
    assert summary["recommended"] is None
    assert summary["reason"] == "no setting has validation R2 <= 0.01; the lowest is 0.0500 at k=16 privacy_weight=1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hunts"], "no experiment 'hunts'; nearest: hunt"),
        (["f" * 32], f"no experiment '{'f' * 32}'; nearest: "),
        (["empty"], "empty has no finished run with both utility/accuracy and privacy/strongest_r2"),
        (
            ["hunt", "other_data"],
            "data sets (digests) and no common front: beef in hunt/k=16 privacy_weight=1; feed in other_data/celeba k=64 w=1",
        ),
        (["hunt", "--output", "{file}"], "is a file: give a folder with --output"),
        ([], "nothing to draw"),
        (["hunt", "--max-r2", "1.5"], "max_r2 is 1.5; it must be at most 1"),
        (["hunt", "--min-acuracy", "0.5"], "did you mean --min-accuracy?"),
        (["hunt", "--tracking-uri", "sqlite:////nowhere/mlflow.db"], "there is no tracking store sqlite:////nowhere/mlflow.db"),
        (["hunt", "--tracking-uri", "sqlite:///{file}"], "which is not an SQLite database: give another file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_frontier_bad_input_raises_one_line_and_writes_nothing(search_run, record, mlflow_uri, tmp_path, arguments, message):
    record("empty", bare=True)
    record("empty", 64, 0.0)
    record("other_data", digest="feed")
    file = tmp_path / "text"
    file.write_text("this is no database" * 100)
    flags = [argument.format(file=file) for argument in arguments]
    defaults = {"--tracking-uri": mlflow_uri, "--output": str(tmp_path / "drawn")}
    flags += [word for flag, value in defaults.items() if flag not in flags for word in (flag, value)]
    with pytest.raises(InputError) as raised:
        draw_fronts(parse_frontier(flags, description=""))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "drawn").exists()


def test_frontier_bad_input_exits_2(search_run, mlflow_uri, tmp_path):
    process = run_job("hunts", "--output", "drawn", cwd=tmp_path, MLFLOW_TRACKING_URI=mlflow_uri)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "error: MLflow has no experiment 'hunts'; nearest: hunt\n"
    assert not (tmp_path / "drawn").exists()

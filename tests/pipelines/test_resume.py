"""Tests of `--resume`: an interrupted run continues from its last checkpoint and ends like an uninterrupted run."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import pytest
import torch

from cpgan_ray.cli import parse_train
from cpgan_ray.common.ownership import sign
from cpgan_ray.pipelines.train import train
from tests.process import HANG_S, RIDGE_ONLY, kill_alone, left_as_it_was

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "train_celeba.py"
FLAGS = (
    f"smoke --adversaries ridge mlp --epochs 12 {RIDGE_ONLY} --recovery.checkpoint-every 7 --recovery.snapshot-every 4 "
    "--data.image-size 16 --data.final-fraction 0 --batch-size 80 --privatizer.depth 2 "
    "--tracking.no-log-models --tracking.no-system-metrics"
)


@pytest.fixture
def job(in_process: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return partial(in_process, JOB)


@pytest.fixture
def started(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path, cache_dir: Path, mlflow_uri: str
) -> Callable[..., subprocess.Popen[str]]:
    """Start a run and wait until it has written a checkpoint and a few rounds more."""
    output = tmp_path / "out"

    def start(*arguments: str) -> subprocess.Popen[str]:
        flags = [*FLAGS.split(), "--cache-dir", cache_dir, "--tracking.uri", mlflow_uri, "--output", output, *arguments]
        return begin(
            [sys.executable, JOB, *flags], lambda: list((output / "checkpoints").glob("*.ckpt")), "no checkpoint is written"
        )

    return start


def weights_and_metrics(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The exported weights of a run, and its metrics without times and recoveries."""
    program = torch.export.load(folder / "privatizer.pt2").state_dict
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in row.items() if not k.startswith(("time/", "recovery/"))} for row in rows if "utility/loss" in row]
    return dict(program), metrics


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    flags = ["--cache-dir", cache_dir, "--output", folder / "out", "--runtime.backend", "local"]
    flags += ["--tracking.uri", f"sqlite:///{folder / 'mlflow.db'}"]
    config, _ = parse_train([*FLAGS.split(), *map(str, flags)], default="smoke", description="")
    with left_as_it_was():
        train(config)
    return folder / "out"


@pytest.mark.parametrize("backend", [pytest.param("local", marks=pytest.mark.slow), "ray"])
def test_resume_of_killed_run_matches_uninterrupted_run(backend, started, job, uninterrupted, tmp_path, mlflow_uri):
    killed = started("--runtime.backend", backend)
    kill_alone(killed)
    before = json.loads((tmp_path / "out" / "config.json").read_text())["run_id"]
    assert mlflow.MlflowClient(mlflow_uri).get_run(before).info.status == "RUNNING"
    status, out, err = job("--resume", tmp_path / "out")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["run_id"] == before
    weights, rows = weights_and_metrics(tmp_path / "out")
    expected, expected_rows = weights_and_metrics(uninterrupted)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert rows == expected_rows, "each round must be logged once, with the numbers of the uninterrupted run"
    client = mlflow.MlflowClient(mlflow_uri)
    assert client.get_run(before).info.status == "FINISHED"
    assert [run.info.run_id for run in client.search_runs(["1"])] == [before]


@pytest.mark.parametrize(
    ("backend", "sent", "status"), [("local", signal.SIGTERM, 143), pytest.param("ray", signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_resume_of_stopped_run_continues_from_last_checkpoint(
    backend, sent, status, started, job, uninterrupted, tmp_path, mlflow_uri
):
    stopped = started("--runtime.backend", backend, "--recovery.checkpoint-every", "7")
    stopped.send_signal(sent)
    stdout, stderr = stopped.communicate(timeout=HANG_S)
    assert stopped.returncode == status, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    client = mlflow.MlflowClient(mlflow_uri)
    run_id = json.loads((tmp_path / "out" / "config.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "KILLED"
    played = [json.loads(line)["round"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    newest = max(int(re.findall(r"\d+", path.name)[0]) for path in (tmp_path / "out" / "checkpoints").glob("*.ckpt"))
    assert newest == max(played) + 1, "rounds that were played are lost"
    status, _, err = job("--resume", tmp_path / "out", "--runtime.backend", "local")
    assert status == 0, err
    weights, rows = weights_and_metrics(tmp_path / "out")
    expected, expected_rows = weights_and_metrics(uninterrupted)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert rows == expected_rows


def test_resume_finished_run_or_other_settings_exits_2(uninterrupted, job, tmp_path):
    for arguments, message in (
        (["--resume", uninterrupted], r"has finished: there is nothing to resume"),
        (["--resume", tmp_path], r"has no config\.json: give the output folder of a run"),
    ):
        status, _, err = job(*arguments)
        assert status == 2
        assert re.fullmatch(r"error: [^\n]+\n", err), err
        assert re.search(message, err)
    started_run = tmp_path / "begun"
    started_run.mkdir()
    (started_run / "config.json").write_text((uninterrupted / "config.json").read_text())
    sign(started_run / "config.json")
    for flag, value, message in (
        ("--k", "9", r"--k is 9, but the run in .* was started with 16"),
        ("--game.schedule", "stale1", "--game.schedule"),
    ):
        status, _, err = job("--resume", started_run, flag, value)
        assert status == 2
        assert re.search(message, err), err


@pytest.mark.slow
def test_resume_with_more_epochs_continues(started, job, tmp_path):
    stopped = started("--runtime.backend", "local")
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=HANG_S)
    status, _, err = job("--resume", tmp_path / "out", "--epochs", "14")
    assert status == 0, err
    rows = weights_and_metrics(tmp_path / "out")[1]
    assert [row["round"] for row in rows] == list(range(14 * 4))

"""`--resume`: an interrupted run goes on from its last checkpoint and ends as if nothing had been."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import psutil
import pytest
import torch

from tests.process import below, environment

ROOT = Path(__file__).parents[1]
JOB = [sys.executable, str(ROOT / "jobs" / "train_celeba.py")]
FLAGS = (
    "smoke --epochs 12 --attacks.names ridge --recovery.checkpoint-every 7 --recovery.snapshot-every 4 "
    "--data.image-size 16 --batch-size 80 --privatizer.depth 2 --tracking.no-log-models --tracking.no-system-metrics"
)

pytestmark = pytest.mark.timeout(600)


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*JOB, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture
def started(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path, cache_dir: Path, mlflow_uri: str
) -> Callable[..., subprocess.Popen[str]]:
    """Start a run and wait until it has written a checkpoint and a few rounds more."""
    output = tmp_path / "out"

    def start(*arguments: str) -> subprocess.Popen[str]:
        flags = [*FLAGS.split(), "--cache-dir", cache_dir, "--tracking.uri", mlflow_uri, "--output", output, *arguments]
        return begin([*JOB, *flags], lambda: list((output / "checkpoints").glob("*.ckpt")), "no checkpoint is written")

    return start


def end_of(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The weights that a run hands out, and its metrics without times and faults."""
    program = torch.export.load(folder / "privatizer.pt2").state_dict
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith(("time/", "fault/"))} for row in rows if "utility/loss" in row]
    return dict(program), kept


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    flags = ["--cache-dir", cache_dir, "--output", folder / "out", "--runtime.backend", "local"]
    ran = run(*FLAGS.split(), *flags, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return folder / "out"


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_a_run_whose_driver_was_killed_ends_like_the_unbroken_one(backend, started, unbroken, tmp_path, mlflow_uri):
    job = started("--runtime.backend", backend)
    processes = below(job.pid)
    job.kill()
    job.communicate()
    psutil.wait_procs(processes, timeout=30)
    before = json.loads((tmp_path / "out" / "config.json").read_text())["run_id"]
    assert mlflow.MlflowClient(mlflow_uri).get_run(before).info.status == "RUNNING"
    ran = run("--resume", tmp_path / "out", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["run_id"] == before
    weights, rows = end_of(tmp_path / "out")
    expected, expected_rows = end_of(unbroken)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert rows == expected_rows, "each round stands once, with the numbers of the unbroken run"
    client = mlflow.MlflowClient(mlflow_uri)
    assert client.get_run(before).info.status == "FINISHED"
    assert [run.info.run_id for run in client.search_runs(["1"])] == [before]


@pytest.mark.parametrize(("backend", "sent", "status"), [("local", signal.SIGTERM, 143), ("ray", signal.SIGINT, 130)])
def test_a_run_that_is_stopped_writes_a_checkpoint_first_and_goes_on_from_there(
    backend, sent, status, started, unbroken, tmp_path, mlflow_uri
):
    job = started("--runtime.backend", backend, "--recovery.checkpoint-every", "7")
    job.send_signal(sent)
    stdout, stderr = job.communicate(timeout=90)
    assert job.returncode == status, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    client = mlflow.MlflowClient(mlflow_uri)
    run_id = json.loads((tmp_path / "out" / "config.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "KILLED"
    played = [json.loads(line)["round"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    newest = max(int(re.findall(r"\d+", path.name)[0]) for path in (tmp_path / "out" / "checkpoints").glob("*.ckpt"))
    assert newest == max(played) + 1, "nothing that was played is lost"
    ran = run("--resume", tmp_path / "out", "--runtime.backend", "local", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    weights, rows = end_of(tmp_path / "out")
    expected, expected_rows = end_of(unbroken)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert rows == expected_rows


def test_a_finished_run_and_other_settings_are_refused(unbroken, tmp_path):
    for arguments, said in (
        (["--resume", unbroken], r"has come to its end: there is nothing to resume"),
        (["--resume", tmp_path], r"has no config\.json: give the output folder of a run"),
    ):
        ran = run(*arguments, cwd=tmp_path)
        assert ran.returncode == 2
        assert re.fullmatch(r"error: [^\n]+\n", ran.stderr), ran.stderr
        assert re.search(said, ran.stderr)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_text((unbroken / "config.json").read_text())
    for flag, value, said in (
        ("--k", "9", r"--k is 9, the run in .* was begun with 16"),
        ("--game.schedule", "stale1", "--game.schedule"),
    ):
        ran = run("--resume", begun, flag, value, cwd=tmp_path)
        assert ran.returncode == 2
        assert re.search(said, ran.stderr), ran.stderr


def test_a_run_goes_on_for_more_epochs_than_it_was_begun_with(started, tmp_path):
    job = started("--runtime.backend", "local")
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    ran = run("--resume", tmp_path / "out", "--epochs", "14", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    rows = end_of(tmp_path / "out")[1]
    assert [row["round"] for row in rows] == list(range(14 * 4))

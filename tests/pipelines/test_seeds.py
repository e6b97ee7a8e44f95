"""Tests of `jobs/train_celeba.py --seeds`: trainings under several seeds, their means, and how they are resumed."""

import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cpgan_ray.cli import parse_seeds
from cpgan_ray.common.json_files import read_json
from cpgan_ray.common.signals import handle_signals
from cpgan_ray.config import Config, SeedsJob, override, to_json
from cpgan_ray.config.folders.jobs import SEEDS
from cpgan_ray.config.folders.records import write_record
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.seeds.job import train_seeds
from cpgan_ray.pipelines.train import RunContext, train
from tests.conftest import COMPONENTS

pytestmark = pytest.mark.usefixtures("process_left_as_it_was")
JOB = Path(__file__).parents[2] / "jobs" / "train_celeba.py"


def small(cache_dir: Path, uri: str, output: Path, tiny: Callable[..., Config], **fields: Any) -> Config:
    changes = {"tracking.uri": uri, "output": str(output), "epochs": 1, "adversaries.ridge.components": COMPONENTS}
    return override(tiny("ridge"), changes | fields)


def resumed(folder: Path, *flags: str) -> tuple[str, dict[str, Any]]:
    parsed = parse_seeds(["--resume", str(folder), *flags], default="faces", description="")
    assert parsed is not None and parsed[1]
    return train_seeds(parsed[0], resume=True)


def without_times(folder: Path) -> dict[str, Any]:
    """A run's report without what differs from one training to the next."""
    report = read_json(folder / "report" / "report.json")
    kept = {name: report[name] for name in ("utility", "privacy", "code")}
    return kept | {"attacks": [{n: v for n, v in a.items() if n != "seconds"} for a in report["attacks"]]}


def test_seeds_are_trained_once_and_equal_single_runs(cache_dir, mlflow_uri, tmp_path, tiny):
    folder = tmp_path / "out"
    config = small(cache_dir, mlflow_uri, folder, tiny)
    text, summary = train_seeds(SeedsJob(num_seeds=2, config=config), resume=False)
    assert summary["seeds"] == [0, 1] and (folder / "seed-1" / "privatizer.pt2").is_file()
    first = (folder / "seed-0" / "privatizer.pt2").stat().st_mtime_ns

    shutil.rmtree(folder / "seed-1" / "report")  # as if it had been interrupted before its attacks
    before = read_json(folder / "results.json")
    again_text, again = resumed(folder)
    assert again_text == text and again["run_id"] == summary["run_id"]
    assert read_json(folder / "results.json") == before, "an interrupted training goes on to the same numbers"

    _, more = resumed(folder, "--seeds", "3")
    assert more["seeds"] == [0, 1, 2]
    assert (folder / "seed-0" / "privatizer.pt2").stat().st_mtime_ns == first, "a finished training is not repeated"
    single = tmp_path / "single"
    train(replace(config, seed=2, output=single))
    assert without_times(folder / "seed-2") == without_times(single)

    results = read_json(folder / "results.json")
    accuracies = [read_json(folder / f"seed-{seed}" / "report" / "report.json")["utility"]["accuracy"] for seed in range(3)]
    assert results["mean"]["accuracy"]["value"] == pytest.approx(sum(accuracies) / 3)
    assert [run["accuracy"]["value"] for run in results["runs"]] == accuracies
    assert more["accuracy"]["low"] < more["accuracy"]["value"] < more["accuracy"]["high"]
    page = (folder / "report.html").read_text()
    for link in re.findall(r'href="([^"]+)"', page):
        assert (folder / link).is_file()
    assert page.count("<tr><td>") == 3

    client = mlflow.MlflowClient(mlflow_uri)
    parent = client.get_run(summary["run_id"])
    assert parent.info.status == "FINISHED" and parent.data.tags["num_seeds"] == "3"
    assert parent.data.metrics["utility/accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert {"privacy/strongest_r2_low", "privacy/excess_r2"} <= parent.data.metrics.keys()
    below = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{summary['run_id']}'")
    assert sorted(run.data.params["seed"] for run in below) == ["0", "1", "2"]
    assert {run.info.status for run in below} == {"FINISHED"}


def test_a_request_to_stop_after_a_training_stops_the_next(mlflow_uri, cache_dir, tmp_path, tiny):
    config = small(cache_dir, mlflow_uri, tmp_path / "run", tiny)
    with handle_signals():
        train(config, RunContext(is_last=False))
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smoke", "--seeds"), "--seeds has no number; it must be a whole number of at least 2"),
        (("smoke", "--seeds", "--epochs", "1"), "--seeds has no number"),
        (("smoke", "--seeds", "1"), "--seeds is '1'; it must be a whole number of at least 2"),
        (("smoke", "--seeds=two"), "--seeds is 'two'"),
        (("smoke", "--seeds", "2", "--check"), "leave out --seeds"),
        (("--resume", "{tmp}", "--seeds", "3"), "has no seeds.json"),
    ],
)
def test_seeds_bad_flags_exit_2_with_one_line(arguments, message, tmp_path, in_process):
    status, _, stderr = in_process(JOB, *(word.format(tmp=tmp_path) for word in arguments))
    assert (status, len(stderr.strip().splitlines())) == (2, 1)
    assert message in stderr


def test_parse_seeds_of_a_single_run_is_none():
    assert parse_seeds(["smoke", "--epochs", "1"], default="faces", description="") is None
    parsed = parse_seeds(["smoke", "--seeds=4", "--seed", "7"], default="faces", description="")
    assert parsed is not None and (parsed[0].num_seeds, parsed[0].config.seed, parsed[1]) == (4, 7, False)


def test_resume_with_other_settings_raises(mlflow_uri, cache_dir, tmp_path, tiny):
    job = SeedsJob(num_seeds=2, config=small(cache_dir, mlflow_uri, tmp_path, tiny))
    write_record(tmp_path / SEEDS, {"run_id": "0" * 32, "job": to_json(job)})
    parsed = parse_seeds(["--resume", str(tmp_path), "--runtime.threads", "2"], default="faces", description="")
    assert parsed is not None and parsed[0].config.runtime.threads == 2
    with pytest.raises(InputError, match=r"--k is 5, but the training in .* was started with 6"):
        parse_seeds(["--resume", str(tmp_path), "--k", "5"], default="faces", description="")
    with pytest.raises(InputError, match="already holds a training under several seeds: continue it with --resume"):
        train_seeds(job, resume=False)
    (tmp_path / SEEDS).write_text((tmp_path / SEEDS).read_text().replace('"job"', '"jobs"'))
    with pytest.raises(InputError, match=r"seeds\.json is damaged"):
        parse_seeds(["--resume", str(tmp_path)], default="faces", description="")

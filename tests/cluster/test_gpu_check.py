"""The checks of cluster/gpu_check.py on the CPU, as far as they go; where there is no GPU it says so and fails."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster import gpu_check

ROOT = Path(__file__).parents[2]
SMALL = ("ridge", "rbf", "decoder")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> dict[str, str]:
    """Three of the adversaries, on the pictures that are there already."""
    preset = gpu_check.preset("smoke")
    chosen = {name: preset.adversaries[name] for name in SMALL}
    monkeypatch.setattr(gpu_check, "preset", lambda name: gpu_check.Config(**{**vars(preset), "adversaries": chosen}))
    return {"cache_dir": str(cache_dir)}


def test_the_game_of_a_device_is_compared_with_that_of_the_cpu(small):
    assert gpu_check.check_game("cpu", **small) == "metrics of 3 rounds within 0.00 of the tolerance"


@pytest.mark.usefixtures("ray_session")
def test_the_game_of_actors_is_compared_with_that_of_one_process(small):
    assert gpu_check.check_actors("cpu", **small) == "4 actors with 0.0 GPUs each, metrics within 0.00 of the tolerance"


def test_metrics_are_apart_by_the_largest_difference_of_any_but_times():
    found = gpu_check.apart([{"r2": 0.5, "time/round_s": 1.0}], [{"r2": 0.2, "time/round_s": 9.0}])
    assert found == pytest.approx(0.3 / (gpu_check.TOLERANCE * 1.2))


@pytest.mark.parametrize("name", ["bfloat16", "transfers", "all-reduce"])
def test_the_other_checks_pass_on_the_cpu(name):
    assert gpu_check.CHECKS[name]("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: `make gpu-check` checks it")
def test_without_a_gpu_nothing_is_checked_and_the_exit_status_says_so():
    ran = subprocess.run([sys.executable, str(ROOT / "cluster" / "gpu_check.py")], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.endswith("no CUDA device: nothing was checked\n")

"""The checks of cluster/gpu_check.py pass on the CPU, and the script fails on a machine without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster import gpu_check

ROOT = Path(__file__).parents[2]
SMALL = ("rbf", "decoder")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> dict[str, str]:
    """The flag for the tests' cache; the smoke preset has only two adversaries."""
    preset = gpu_check.preset("smoke")
    adversaries = {name: preset.adversaries[name] for name in SMALL}
    monkeypatch.setattr(gpu_check, "preset", lambda name: gpu_check.Config(**{**vars(preset), "adversaries": adversaries}))
    return {"cache_dir": str(cache_dir)}


def test_check_game_on_the_cpu_finds_no_difference(small):
    assert gpu_check.check_game("cpu", **small) == "metrics of 3 rounds differ by 0.00 times the tolerance"


@pytest.mark.usefixtures("ray_session")
def test_check_actors_on_the_cpu_finds_no_difference(small):
    assert gpu_check.check_actors("cpu", **small) == "3 actors with 0.0 GPUs each, metrics differ by 0.00 times the tolerance"


def test_largest_difference_ignores_times():
    difference = gpu_check.largest_difference([{"r2": 0.5, "time/round_s": 1.0}], [{"r2": 0.2, "time/round_s": 9.0}])
    assert difference == pytest.approx(0.3 / (gpu_check.TOLERANCE * 1.2))


@pytest.mark.parametrize("name", ["bfloat16", "transfers", "all-reduce"])
def test_other_checks_on_the_cpu_pass(name):
    assert gpu_check.CHECKS[name]("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: `make gpu-check` checks it")
def test_gpu_check_without_a_gpu_exits_with_1():
    ran = subprocess.run([sys.executable, str(ROOT / "cluster" / "gpu_check.py")], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.endswith("no CUDA device: nothing was checked\n")

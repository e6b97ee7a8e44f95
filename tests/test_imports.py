"""What a process imports before it answers `--help` or computes. The order of imports is checked by import-linter (`make lint`)."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cpgan_ray.config import to_json
from cpgan_ray.config.presets import PRESETS
from cpgan_ray.data import load

ROOT = Path(__file__).parents[1]
JOBS = sorted(p.relative_to(ROOT) for p in (ROOT / "jobs").rglob("*.py"))
UNUSED = {"scipy", "sklearn", "matplotlib", "torchmetrics", "optuna", "sympy", "torch._dynamo", "torch._inductor"}
"""What neither a player nor a job needs before the first round."""


@pytest.mark.parametrize("path", JOBS, ids=str)
def test_help_is_answered_at_once_without_torch_ray_or_mlflow(path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-X", "importtime", str(ROOT / path), "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 0, ran.stderr
    assert "usage:" in ran.stdout
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in ran.stderr.splitlines() if line.startswith("import time:")}
    assert "tyro" in loaded
    assert loaded & {"torch", "ray", "mlflow"} == set()
    assert after.ru_utime - before.ru_utime < 4, "CPU seconds: the wall clock of a busy machine says little"


def test_help_names_every_preset_and_shows_the_chosen_ones_values():
    command = [sys.executable, str(ROOT / "jobs" / "train_celeba.py")]
    ran = subprocess.run([*command, "smoke", "--help-all"], capture_output=True, text=True, check=True)
    assert ", ".join(PRESETS) in " ".join(ran.stdout.split())
    assert "Values shown are those of smoke" in " ".join(ran.stdout.split())
    assert "--adversaries.decoder.width" in ran.stdout


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_import_sets_waiting_threads_to_sleep_unless_set(given, expected):
    """torch's threads read the setting when torch is imported, which importing the package must not do."""
    code = "import sys, os, cpgan_ray; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {"PYTHONPATH": str(ROOT)} | ({} if given is None else {"OMP_WAIT_POLICY": given})
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert ran.stdout.split() == [expected, "False"]


def test_a_player_and_an_attack_begin_without_what_they_have_no_use_for(tiny_config):
    """Every actor and every attack on Ray is a process, and pays for what it imports before it computes."""
    store = load(tiny_config).folder / "train.arrow"
    code = f"""
import sys
from pathlib import Path
from cpgan_ray.distributed import adversary_pool, host, tasks
from cpgan_ray.data.store.dataset import open_split
from cpgan_ray.common.process import set_up_process
set_up_process(threads=1)
assert len(open_split(Path({str(store)!r})))
print(*sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {*ran.stdout.split()}
    assert {"torch", "ray", "pyarrow"} <= loaded
    assert loaded & (UNUSED | {"pandas", "mlflow"}) == set()


def test_job_plays_first_round_without_libraries_of_the_evaluation(tiny_config):
    """The job imports MLflow, which imports pandas and scipy; the game does not."""
    load(tiny_config)
    code = """
import json, sys
from cpgan_ray.config import from_json
from cpgan_ray.common.process import set_up_process
set_up_process(threads=1)
from cpgan_ray.training.game import play_in_process
assert play_in_process(from_json(json.loads(sys.argv[1])), threads=1).play(1)
print(*sys.modules)
import cpgan_ray.pipelines.train
print(*sys.modules)
"""
    command = [sys.executable, "-c", code, json.dumps(to_json(tiny_config))]
    game, job = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    assert {*game.split()} & (UNUSED | {"pandas", "mlflow", "ray"}) == set()
    assert {*job.split()} & (UNUSED - {"scipy"} | {"ray"}) == set()

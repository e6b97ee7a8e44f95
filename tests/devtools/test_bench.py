"""Tests that the benchmark reports every value; the values themselves need an idle machine."""

import json
import subprocess
import sys

import numpy as np
import pytest

from cpgan_ray.common.types import Batch, Feedback, Release
from cpgan_ray.devtools.bench.rounds import num_bytes
from tests.process import HANG_S

TINY = "--rounds 2 --repeats 1 --warmup 1 --image-size 16 --batch-size 16 --k 8 --width 2 --sleepers 2 --adversaries 1 2"


def test_num_bytes_of_messages_has_little_overhead():
    batch, k = 128, 128
    z = np.zeros((batch, k), np.float32)
    rows = Batch(rows=np.arange(batch), mirrored=np.zeros(batch, bool), shift=np.zeros((batch, 2), np.int16))
    release = num_bytes(Release(round=10**6, batch=rows, z=z))
    reply = num_bytes(Feedback(name="adversary", round=10**6, grad_z=z, r2=0.5, metrics={"mse": 0.1}))
    assert z.nbytes + rows.rows.nbytes <= release <= z.nbytes + rows.rows.nbytes + 4096
    assert z.nbytes <= reply <= z.nbytes + 4096


@pytest.mark.slow
def test_bench_json_has_every_number():
    command = [sys.executable, "-m", "cpgan_ray.devtools.bench", "--json", *TINY.split()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    names = {"speedup_k1", "speedup_k1_ray", "speedup_k2", "speedup_k2_stale1", "critical_path_speedup_k2", "round_ms_sleep20_k2"}
    assert all(result[name] > 0 for name in names | {"bytes_per_reply", "bytes_per_release"})
    assert result["round_ms_sleep20_k2"] >= 20


@pytest.mark.slow
def test_bench_checkpoints_measures_both_backends():
    tiny = "--image-size 16 --k 8 --rounds 1 --repeats 1 --warmup 1"
    command = [sys.executable, "-m", "cpgan_ray.devtools.bench", "--checkpoints", "--json", *tiny.split()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    for backend in ("local", "ray"):
        assert all(result[f"checkpoint_{what}_{backend}"] > 0 for what in ("ms", "share", "mb"))


@pytest.mark.slow
def test_bench_nodes_measures_each_number_of_adversaries():
    command = [sys.executable, "-m", "cpgan_ray.devtools.bench", "--nodes", "2", "--crowds", "1", "3", "--json", *TINY.split()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    for count in (1, 3):
        assert result[f"round_over_slowest_k{count}"] >= 1
        assert 0 < result[f"privatizer_cpu_ms_k{count}"] < 200, "the privatizer's process is idle while the adversaries sleep"


@pytest.mark.slow
def test_bench_process_starts_measures_every_process():
    command = [sys.executable, "-m", "cpgan_ray.devtools.bench", "--process-starts", "1", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert all(result[f"{name}_postponed_cpu_s"] > 0.5 for name in ("adversary", "job", "trial"))


def test_bench_layers_measures_both_variants():
    command = [sys.executable, "-m", "cpgan_ray.devtools.bench", "--layers", "--json", *TINY.split()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    for name, sides in (
        ("privatizer", ("series", "plane")),
        ("decoder", ("series", "plane")),
        ("pointwise", ("pixels_read", "torch")),
    ):
        assert all(result[f"{name}_{what}"] > 0 for what in ("speedup", *(f"{side}_ms" for side in sides)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--nodes -1", "nodes is -1; it must be at least 0"),
        ("--nodes 2 --crowds 4 0", "crowds is (4, 0); it must be one or more numbers of at least 1"),
    ],
)
def test_bench_with_bad_flags_ends_with_one_line(flags, message):
    process = subprocess.run(
        [sys.executable, "-m", "cpgan_ray.devtools.bench", *flags.split()], capture_output=True, text=True, timeout=HANG_S
    )
    assert process.returncode == 2
    assert process.stderr == f"error: {message}\n"

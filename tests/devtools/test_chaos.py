"""Tests of the fault test `python -m cpgan_ray.devtools.chaos` with a few kills of each kind."""

import json
import subprocess
import sys

import pytest
import torch

from cpgan_ray.devtools.chaos.__main__ import spread
from cpgan_ray.devtools.chaos.kills import same
from cpgan_ray.devtools.chaos.settings import Settings
from cpgan_ray.errors import InputError
from tests.process import HANG_S, environment


@pytest.mark.slow
def test_chaos_with_kills_of_every_kind_is_bit_identical(tmp_path):
    command = [sys.executable, "-m", "cpgan_ray.devtools.chaos", "--kills", "3", "--drivers", "1", "--nodes", "1", "--json"]
    process = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["struck"] == {"players": 3, "drivers": 1, "nodes": 1}
    assert (result["kills"], result["identical"], result["lost_checkpoints"], result["running_left"]) == (5, True, 0, 0)
    assert 0 < result["recovery_s"]["median"] <= result["recovery_s"]["max"]


def test_same_of_states_that_differ_in_one_bit_is_false():
    state = {"a": [torch.ones(3), 1.5], "b": {"c": (None, "x")}}
    copy = {"a": [torch.ones(3), 1.5], "b": {"c": (None, "x")}}
    assert same(state, copy)
    copy["a"][0][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert not same(state, copy)
    assert not same(state, {"a": state["a"]})
    assert not same([torch.ones(3)], [torch.ones(3, dtype=torch.float64)])


def test_settings_are_checked_and_spread_of_no_times_is_none():
    with pytest.raises(InputError, match="kills is -1"):
        Settings(kills=-1)
    assert spread([]) is None
    assert spread([1.0, 3.0, 2.0]) == {"median": 2.0, "max": 3.0}

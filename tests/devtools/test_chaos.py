"""`python -m cpgan_ray.devtools.chaos`, with few kills of each kind; the reported numbers come from many."""

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
def test_kills_of_players_drivers_and_a_node_change_nothing(tmp_path):
    command = [sys.executable, "-m", "cpgan_ray.devtools.chaos", "--kills", "3", "--drivers", "1", "--nodes", "1", "--json"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANG_S)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["struck"] == {"players": 3, "drivers": 1, "nodes": 1}
    assert (result["kills"], result["identical"], result["lost_checkpoints"], result["running_left"]) == (5, True, 0, 0)
    assert 0 < result["recovery_s"]["median"] <= result["recovery_s"]["max"]


def test_states_that_differ_in_one_bit_are_not_the_same():
    state = {"a": [torch.ones(3), 1.5], "b": {"c": (None, "x")}}
    again = {"a": [torch.ones(3), 1.5], "b": {"c": (None, "x")}}
    assert same(state, again)
    again["a"][0][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert not same(state, again)
    assert not same(state, {"a": state["a"]})
    assert not same([torch.ones(3)], [torch.ones(3, dtype=torch.float64)])


def test_settings_are_checked_and_no_times_have_no_median():
    with pytest.raises(InputError, match="kills is -1"):
        Settings(kills=-1)
    assert spread([]) is None
    assert spread([1.0, 3.0, 2.0]) == {"median": 2.0, "max": 3.0}

"""Tests of SIGINT and SIGTERM at any moment to a job's whole process group, which includes Ray's processes."""

import signal
import subprocess
import sys

import pytest

from tests.process import HANG_S, environment
from tests.stopping import FLAGS, Workspace, make_workspace, moments, stop

REPEATS = 20


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("stopping"))


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=str)
def test_group_signal_in_mid_round_loses_nothing(workspace, sent):
    outcome = stop(workspace, "train", "play", sent, delay_s=0.3)
    assert outcome.faults() == [], outcome


SIGNALLED_AFTER_RAY = """
import atexit, os, re, signal
from pathlib import Path
from cpgan_ray.cli.exit_status import run

def receives_sigterm(thread):
    try:
        blocked = re.search(r"SigBlk:\\s*(\\w+)", (thread / "status").read_text())[1]
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended by now
    return not int(blocked, 16) >> signal.SIGTERM - 1 & 1

def job():
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)  # before Ray's is registered, so it runs after it
    from cpgan_ray.config import RuntimeConfig
    from cpgan_ray.distributed.cluster import connect
    before = set(Path("/proc/self/task").iterdir())
    connect(RuntimeConfig())
    print([thread for thread in set(Path("/proc/self/task").iterdir()) - before if receives_sigterm(thread)])

run(job)
"""
"""Prints the threads of Ray that would receive a SIGTERM, and sends one after Ray has shut down."""


def test_signal_after_ray_has_shut_down_keeps_the_status(tmp_path):
    command = [sys.executable, "-c", SIGNALLED_AFTER_RAY]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANG_S)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[]\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(REPEATS))
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=str)
@pytest.mark.parametrize("job", FLAGS)
def test_group_signal_at_any_moment_leaves_no_process(workspace, job, sent, repeat):
    """Race conditions have no fixed moments: the moments alternate, and the delay after each one increases."""
    names = list(moments(job, workspace.folder, workspace.folder))
    moment = names[repeat % len(names)]
    delay_s = (2 + repeat) * {"start": 1.0, "play": 0.2, "attacks": 0.1, "finish": 0.05}[moment]
    outcome = stop(workspace, job, moment, sent, delay_s=delay_s)
    assert outcome.faults() == [], outcome

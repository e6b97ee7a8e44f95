"""Tests of SIGINT and SIGTERM at any moment to a job's whole process group, which includes Ray's processes."""

import signal

import pytest

from tests.stopping import FLAGS, Workspace, make_workspace, moments, stop

REPEATS = 20


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("stopping"))


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=str)
def test_group_signal_in_mid_round_loses_nothing(workspace, sent):
    outcome = stop(workspace, "train", "play", sent, delay_s=0.3)
    assert outcome.faults() == [], outcome


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

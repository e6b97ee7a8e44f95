"""SIGINT or SIGTERM to a job's whole process group, Ray's processes among it, at any moment."""

import signal

import pytest

from tests.stopping import FLAGS, Place, make_place, moments, stop

REPEATS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return make_place(tmp_path_factory.mktemp("stopping"))


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=str)
def test_group_signal_in_mid_round_loses_nothing(place, sent):
    outcome = stop(place, "train", "play", sent, delay_s=0.3)
    assert outcome.faults() == [], outcome


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(REPEATS))
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=str)
@pytest.mark.parametrize("job", FLAGS)
def test_group_signal_at_any_moment_leaves_nothing_behind(place, job, sent, repeat):
    """The race has no fixed places: the moments take turns, and each is met a little later each time."""
    names = list(moments(job, place.folder, place.folder))
    moment = names[repeat % len(names)]
    delay_s = (2 + repeat) * {"start": 1.0, "play": 0.2, "attacks": 0.1, "finish": 0.05}[moment]
    outcome = stop(place, job, moment, sent, delay_s=delay_s)
    assert outcome.faults() == [], outcome

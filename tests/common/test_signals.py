"""Tests of requests to stop: raised at once, deferred, repeated, too late."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from cpgan_ray import cli
from cpgan_ray.common import signals
from cpgan_ray.common.signals import REPEAT_S, defer_signals, handle_signals, requested
from cpgan_ray.errors import InputError

BOTH = [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    with handle_signals():
        yield


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every signal comes long after the previous signal."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 2 * REPEAT_S
        return now[0]

    monkeypatch.setattr(time, "monotonic", monotonic)


@pytest.mark.parametrize(("sent", "raised"), BOTH)
def test_first_signal_raises_at_once(sent, raised):
    with pytest.raises(raised):
        signal.raise_signal(sent)
    assert requested() == sent


@pytest.mark.parametrize(("sent", "raised"), BOTH)
def test_deferred_signal_raises_after_the_block(sent, raised):
    done = []
    with pytest.raises(raised), defer_signals() as stop:  # noqa: PT012
        assert not stop.requested
        signal.raise_signal(sent)
        assert stop.requested
        done.append("the rest")
    assert done == ["the rest"]


def test_signal_sent_twice_in_a_row_counts_once():
    """The command `timeout` does this: it signals its child, and then the child's group."""
    done = []
    with pytest.raises(SystemExit), defer_signals():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        done.append("the rest")
    signal.raise_signal(signal.SIGTERM)  # while the run is closed
    assert done == ["the rest"]


@pytest.mark.usefixtures("later")
def test_second_signal_after_a_pause_ends_a_deferral_at_once():
    with pytest.raises(SystemExit), defer_signals():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the block continued")


def test_allowed_signal_is_raised_inside_and_closing_is_not_interrupted():
    steps = []
    with pytest.raises(SystemExit), defer_signals() as stop:  # noqa: PT012
        try:
            with stop.allowed():
                signal.raise_signal(signal.SIGTERM)
                steps.append("played on")
        finally:
            steps.append(stop.run_status("FAILED"))
            signal.raise_signal(signal.SIGTERM)
            steps.append("closed")
    assert steps == ["KILLED", "closed"]


def test_signal_before_an_allowed_block_is_raised_at_its_start():
    with pytest.raises(SystemExit), defer_signals() as stop:  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        with stop.allowed():
            pytest.fail("the block began")


def test_signal_after_the_work_is_complete_changes_nothing():
    with defer_signals() as stop:
        with stop.allowed():
            stop.complete()
            signal.raise_signal(signal.SIGTERM)
        assert stop.run_status("FINISHED") == "FINISHED"
    assert requested() is None


def test_signal_in_a_destructor_is_not_lost():
    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    dropped = Dropped()
    with pytest.raises(SystemExit):  # noqa: PT012
        del dropped
        time.sleep(10)


def test_ignored_sigint_stays_ignored():
    signals.reset()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handle_signals():
            signal.raise_signal(signal.SIGINT)
            assert requested() is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_not_affected():
    seen = []

    def work() -> None:
        with defer_signals() as stop, stop.allowed():
            seen.append(stop.requested)
            stop.complete()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("error", [SystemExit(1), RuntimeError("an actor is gone"), InputError("no room")])
def test_job_that_fails_after_a_signal_has_the_signals_status(error, capsys):
    def job() -> None:
        with defer_signals():
            signal.raise_signal(signal.SIGTERM)
            raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(job)
    assert ended.value.code == 143
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert isinstance(error, SystemExit) or f"{type(error).__name__}: {error}" in err


def test_signal_after_a_job_has_ended_keeps_its_status(capsys):
    cli.run(lambda: None)
    os.kill(os.getpid(), signal.SIGTERM)
    assert requested() is None

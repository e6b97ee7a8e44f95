"""SIGINT and SIGTERM as requests to stop: the job ends in order, with exit status 130 or 143.

The first request raises KeyboardInterrupt or SystemExit(143) in the main thread; within `defer_signals` only after the block.
Many senders deliver one request twice: `timeout` signals its child and then the child's group; a terminal signals the group, and
a wrapper forwards its own signal. Signals within REPEAT_S after the first therefore belong to the same request. A later signal ends
the job at once, at any point.

After the work is complete (`Stop.complete`) a request has no effect: the job is already closing and exiting.

If the process was started with SIGINT ignored, as shells start background jobs, SIGINT stays ignored.
"""

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SHUTDOWN_GRACE_S = 30
"""Time that a job has after a request to stop: to end the current rounds, write a checkpoint and close its MLflow run."""
REPEAT_S = 2.0
"""Signals within this time after the first are part of the same request."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _State:
    """The request to stop, if any, and how to treat it. Only the main thread changes it."""

    previous: dict[int, Any] = field(default_factory=dict)  # signal -> the handler before `install`
    number: int | None = None  # the signal of the request
    at: float = 0.0
    raised: bool = False
    deferred: int = 0
    complete: bool = False
    ending: int | None = None  # exit status of a process that has nothing left to do


_state = _State()


class Stop:
    """The object that `defer_signals` yields: reports whether the job was requested to stop."""

    @property
    def requested(self) -> bool:
        return requested() is not None

    def now(self) -> None:
        """Ends the work if a stop was requested.

        Raises: KeyboardInterrupt after SIGINT, SystemExit(143) after SIGTERM.
        """
        if requested() is not None:
            _raise()

    def complete(self) -> None:
        """Marks the work as complete: later requests have no effect, and the process ends as finished."""
        if _in_main_thread() and _state.number is None:
            _state.complete = True

    def run_status(self, status: str) -> str:
        """Final status of an MLflow run: KILLED if a stop was requested, else `status`. Marks the work as complete."""
        self.complete()
        return "KILLED" if self.requested else status

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Within this block a request is not deferred. Code around it, which opens and closes something, is not interrupted."""
        if not _in_main_thread():
            yield
            return
        before, _state.deferred = _state.deferred, 0
        try:
            self.now()
            yield
        finally:
            _state.deferred = before


@contextlib.contextmanager
def defer_signals() -> Iterator[Stop]:
    """Within the block a first request is only recorded; it is raised after the block. No effect outside the main thread."""
    stop = Stop()
    if not _in_main_thread():
        yield stop
        return
    with handle_signals():
        _state.deferred += 1
        try:
            yield stop
        finally:
            _state.deferred -= 1
        if not (_state.raised or _state.deferred):
            stop.now()


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM are requests to stop. Nested blocks and other threads' blocks have no effect."""
    if not _in_main_thread() or _state.previous:
        yield
        return
    install()
    try:
        yield
    finally:
        reset()


def install() -> None:
    """Handle SIGINT and SIGTERM until `reset`."""
    reset()
    for number in STOP_SIGNALS:
        if (before := signal.getsignal(number)) is not signal.SIG_IGN:
            _state.previous[number] = before
            signal.signal(number, _receive)


def reinstall() -> None:
    """Install the handlers again, after a library has replaced them by its own."""
    if _in_main_thread():
        for number in _state.previous:
            signal.signal(number, _receive)


def ignore_at_exit() -> None:
    """Ignore SIGINT and SIGTERM once everything registered with `atexit` from now on has run: the interpreter then restores the
    default handlers, and a late signal would turn the exit status of finished work into that of a killed process."""
    atexit.register(_ignore)


def _ignore() -> None:
    for number in _state.previous:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def blocked_signals(*numbers: signal.Signals) -> Iterator[None]:
    """Within the block these signals (by default SIGINT and SIGTERM) wait, for this thread and those that it starts, which keep
    them blocked: unlike a deferred signal they reach no handler at all, not even one that a library installs meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers or STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def reset() -> None:
    """Restore the handlers from before `install`, and clear the request."""
    for number, handler in _state.previous.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    vars(_state).update(vars(_State()))


def requested() -> int | None:
    """The signal that requested this process to stop. None if there was none, or if the work was already complete."""
    return None if _state.complete else _state.number


def end(status: int) -> None:
    """Declare that the process is about to exit with this status: a first signal has no effect, a second one ends it at once."""
    _state.ending, _state.complete = status, True


def _receive(number: int, frame: Any) -> None:
    now = time.monotonic()
    if _state.number is not None and now - _state.at < REPEAT_S:
        return
    if _in_destructor(frame):  # Python ignores exceptions raised in a destructor
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        return
    first = _state.number is None
    _state.number, _state.at = number, now
    if first and (_state.deferred or _state.complete):
        return
    if _state.ending is not None:
        os._exit(_state.ending)
    _raise()


def _raise() -> None:
    _state.raised = True
    if _state.number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.SIGTERM)


def _in_destructor(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()

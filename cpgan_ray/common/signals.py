"""SIGINT and SIGTERM: requests to stop. The work under way ends in order, and the exit status is 130 or 143.

The first request raises KeyboardInterrupt or SystemExit(143) in the main thread; within `defer_signals` only after the block.
Many senders deliver one request twice: `timeout` signals its child and then the child's group; a terminal signals the group, and
a wrapper forwards its own signal. Whatever follows within REPEAT_S therefore belongs to the first request. A later signal ends the
work at once, wherever it is.

Once the work is complete (`Stop.complete`) a request changes nothing any more: what is left is to close and to exit.

A SIGINT that the process was started to ignore, as shells start a background job, stays ignored.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SHUTDOWN_GRACE_S = 30
"""How long a job that was asked to stop may need to end the rounds under way, write a checkpoint and close its MLflow run."""
REPEAT_S = 2.0
"""Signals within this time after the first are the same request, in seconds."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _State:
    """What this process was asked for. Only the main thread changes it."""

    previous: dict[int, Any] = field(default_factory=dict)  # signal -> its handler before ours
    number: int | None = None  # the signal of the request
    at: float = 0.0
    raised: bool = False
    deferred: int = 0
    complete: bool = False
    ending: int | None = None  # exit status of a process that has nothing left to do


_state = _State()


class Stop:
    """What `defer_signals` yields: whether the job was asked to stop meanwhile."""

    @property
    def asked(self) -> bool:
        return requested() is not None

    def now(self) -> None:
        """Ends the work if it was asked to stop.

        Raises: KeyboardInterrupt or SystemExit(143), as was asked.
        """
        if requested() is not None:
            _raise()

    def complete(self) -> None:
        """The work is done: a request that comes now changes nothing, and the process ends as finished."""
        if _in_main_thread() and _state.number is None:
            _state.complete = True

    def run_status(self, status: str) -> str:
        """With which status an MLflow run that would end with `status` is closed; nothing is left to be stopped then."""
        self.complete()
        return "KILLED" if self.asked else status

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Within this block a request is not deferred. What surrounds the block, to open and to close something, is never torn."""
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
    """Within the block a first request is only noted; it is raised when the block has ended. No effect outside the main thread."""
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
    """Within the block SIGINT and SIGTERM are requests to stop; nested blocks add nothing. No effect outside the main thread."""
    if not _in_main_thread() or _state.previous:
        yield
        return
    install()
    try:
        yield
    finally:
        reset()


def install() -> None:
    """Handle SIGINT and SIGTERM from here on, until `reset`."""
    reset()
    for number in STOP_SIGNALS:
        if (before := signal.getsignal(number)) is not signal.SIG_IGN:
            _state.previous[number] = before
            signal.signal(number, _receive)


def take_back() -> None:
    """Install the handlers again, after a library has put its own in their place."""
    if _in_main_thread():
        for number in _state.previous:
            signal.signal(number, _receive)


def reset() -> None:
    """Put the handlers of before `install` back, and forget what was asked."""
    for number, handler in _state.previous.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    vars(_state).update(vars(_State()))


def requested() -> int | None:
    """The signal by which this process was asked to stop, or None if it was not, or only after its work was complete."""
    return None if _state.complete else _state.number


def end(status: int) -> None:
    """The process is about to exit with this status: a first signal does not disturb it, a second one ends it at once."""
    _state.ending, _state.complete = status, True


def _receive(number: int, frame: Any) -> None:
    now = time.monotonic()
    if _state.number is not None and now - _state.at < REPEAT_S:
        return
    if _in_destructor(frame):  # Python drops what is raised here
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

"""How a job ends: its exit status, one line for bad input, and time to write a checkpoint when it is stopped."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from cpgan_ray.credentials import redacted, taken
from cpgan_ray.errors import InputError

BAD_INPUT, FAILED = 2, 1
POLITE_S = 30
"""How long a run that was asked to stop may need to end the rounds under way, write a checkpoint and close its MLflow run."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable by which a process knows that it is the entrypoint of a Ray job."""
STOPPED = threading.Event()
"""Set when SIGTERM came: a blocking call of Ray that it interrupts makes a SystemExit(1) of any other."""


def run(job: Callable[[], None]) -> None:
    """Run a job and end the process: 0, 2 after one line for bad input, 130 when interrupted; other errors end it with 1.

    Before torch is imported, its threads are told to sleep while they wait: spinning ones cost others several times their time. The
    processes of a local Ray inherit that.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "MLFLOW_TRACKING_URI" in os.environ:
        os.environ["MLFLOW_TRACKING_URI"] = taken(os.environ["MLFLOW_TRACKING_URI"])
    warn_of_hasty_end()
    try:
        job()
    except InputError as e:
        print(f"error: {redacted(' '.join(str(e).split()))}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        end_where_nobody_reads()
        raise
    except SystemExit:
        if STOPPED.is_set():
            sys.exit(128 + signal.SIGTERM)
        end_where_nobody_reads()
        raise


def warn_of_hasty_end() -> None:
    """Say where `ray job stop` would kill this job before it has written a checkpoint: after 3 seconds, unless it was submitted
    with more."""
    patience_s = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")
    if JOB_CONFIG in os.environ and patience_s.isdigit() and int(patience_s) < POLITE_S:
        told = f"`ray job stop` leaves this job {patience_s} s to write a checkpoint, which may take {POLITE_S}: submit it with"
        print(f"{told} RAY_JOB_STOP_WAIT_TIME_S={POLITE_S} in the env_vars of its runtime environment", file=sys.stderr, flush=True)


def end_where_nobody_reads() -> None:
    """End as a shell's own commands do where who read standard output (`| head`) has gone; otherwise do nothing."""
    readers = select.poll()
    readers.register(1, 0)
    if any(event & select.POLLERR for _, event in readers.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be written
        sys.exit(128 + signal.SIGPIPE)


def stop_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit(143), so that runs are closed. Call after `ray.init`, which installs a handler of its own."""

    def stop(*_: object) -> None:
        STOPPED.set()
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)


class Stop:
    """What was asked for while something was finished politely."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def asked(self) -> bool:
        return self.signal is not None

    def now(self) -> None:
        """Raises: KeyboardInterrupt or SystemExit(143), as was asked."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        STOPPED.set()
        raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def politely() -> Iterator[Stop]:
    """Within the block a first SIGINT or SIGTERM is only noted; a second one ends it at once. No effect outside the main thread."""
    stop = Stop()

    def note(number: int, frame: object) -> None:
        if stop.asked:
            stop.signal = number
            stop.now()
        stop.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Jobs as tests start them: in a process of their own, or in pytest's, which they set up for themselves."""

import atexit
import contextlib
import functools
import os
import random
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

from cpgan_ray.common import signals

HANG_S = 1200
"""When a process, or what is waited for, is taken to hang, in seconds: many times what it takes on a busy machine."""
GONE_S = 120.0
"""What was told or left to end does so within this time, in seconds, on a machine that is busy with other things too."""


def environment(**variables: str) -> dict[str, str]:
    """This process's, without what would lead a job to another cluster or tracking store; and those given."""
    led = ("RAY_", "MLFLOW_", "PYTEST_", "TUNE_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(led)}
    return own | {"RAY_AUTH_TOKEN_PATH": token_file()} | variables


@functools.cache
def token_file() -> str:
    """A token of these tests' own for Ray: that of the user may be readable for others, which jobs warn of."""
    handle, name = tempfile.mkstemp(prefix="cpgan-token-")
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    atexit.register(lambda: Path(name).unlink(missing_ok=True))
    return name


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, below those that the system gives to who asks for any: they stay free until they are used."""
    found: set[int] = set()
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return list(found)


def wait_until(
    true: Callable[[], object],
    what: str,
    *,
    job: subprocess.Popen[str] | None = None,
    patience_s: float = HANG_S,
    every_s: float = 0.05,
) -> None:
    """Fails with `what` if it takes too long, and with what the job says if that ends before."""
    end = time.monotonic() + patience_s
    while not true():
        assert job is None or job.poll() is None, job.communicate()
        assert time.monotonic() < end, what
        time.sleep(every_s)


def below(pid: int) -> list[psutil.Process]:
    """The processes that this one has started, and those that they have."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def called(name: str, pid: int) -> list[psutil.Process]:
    """Those below a process whose program, or whose title, begins so; the oldest first. Others may come and go meanwhile."""
    found = []
    for process in below(pid):
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if line and Path(line[0]).name.startswith(name):
                found.append((process.create_time(), process))
    return [process for _, process in sorted(found, key=lambda one: one[0])]


def end_all(process: subprocess.Popen[str]) -> None:
    """Kill it and all below it, and wait until they are gone."""
    gone = below(process.pid)
    process.kill()
    for one in gone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(gone, timeout=GONE_S)
    process.communicate()


def kill_alone(process: subprocess.Popen[str]) -> None:
    """Kill it, and wait until what it has started has noticed. Ray's agents take minutes to, and are killed too."""
    started = below(process.pid)
    agents = called("ray::DashboardAgent", process.pid) + called("ray::RuntimeEnvAgent", process.pid)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs([p for p in started if p not in agents], timeout=GONE_S)
    for one in [*agents, *alive]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs([*agents, *alive], timeout=GONE_S)
    assert alive == [], "its actors outlive it"


@contextlib.contextmanager
def left_as_it_was() -> Iterator[None]:
    """Threads, determinism, signals, environment, MLflow's store and whether Ray runs are afterwards what they were."""
    import mlflow
    import ray

    connected = ray.is_initialized()
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    handlers, environment = {n: signal.getsignal(n) for n in signals.STOP_SIGNALS}, os.environ.copy()
    try:
        yield
    finally:
        if not connected:
            ray.shutdown(wait_for_processes=True)  # or what it has not waited for is a warning in whatever test runs then
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.set_flush_denormal(False)
        signals.reset()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
        os.environ.clear()
        os.environ.update(environment)

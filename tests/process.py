"""Helpers to run jobs in tests: in a separate process, or in pytest's process, which is restored afterwards."""

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

RIDGE_ONLY = "--attacks.names ridge --attacks.no-identity --attacks.no-attributes --attacks.no-similarity --attacks.no-generative"
"""Flags for the quickest tournament, for tests that do not look at its report: it also saves imports of several seconds."""
HANG_S = 1200
"""Time after which a process counts as hanging: many times what it needs on a busy machine."""
GONE_S = 120.0
"""Time within which a stopped or orphaned process ends, even on a busy machine."""


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without variables that select a cluster or tracking store, and with `variables`."""
    removed = ("RAY_", "MLFLOW_", "PYTEST_", "TUNE_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    return inherited | {"RAY_AUTH_TOKEN_PATH": token_file()} | variables


@functools.cache
def token_file() -> str:
    """A token for Ray that only these tests use: the user's own token may be readable for others, and then jobs warn."""
    handle, name = tempfile.mkstemp(prefix="cpgan-token-")
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    atexit.register(lambda: Path(name).unlink(missing_ok=True))
    return name


def free_ports(count: int) -> list[int]:
    """Free ports below the range from which the system assigns ports, so that they stay free until they are used."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)


def wait_until(
    true: Callable[[], object],
    what: str,
    *,
    job: subprocess.Popen[str] | None = None,
    timeout_s: float = HANG_S,
    every_s: float = 0.05,
) -> None:
    """Waits until `true` holds. Fails with `what` after the timeout, or with the output of `job` if that ends earlier."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert job is None or job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, what
        time.sleep(every_s)


def below(pid: int) -> list[psutil.Process]:
    """All descendants of a process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def called(name: str, pid: int) -> list[psutil.Process]:
    """Descendants of a process whose program or title begins with `name`, the oldest first. Other processes may start or end
    meanwhile."""
    matching = []
    for process in below(pid):
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if line and Path(line[0]).name.startswith(name):
                matching.append((process.create_time(), process))
    return [process for _, process in sorted(matching, key=lambda pair: pair[0])]


def end_all(process: subprocess.Popen[str]) -> None:
    """Kills a process and its descendants, and waits until they have ended."""
    descendants = below(process.pid)
    process.kill()
    for descendant in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    psutil.wait_procs(descendants, timeout=GONE_S)
    process.communicate()


def kill_alone(process: subprocess.Popen[str]) -> None:
    """Kills only this process, and waits until its descendants have ended. Ray's agents would take minutes and are killed too."""
    started = below(process.pid)
    agents = called("ray::DashboardAgent", process.pid) + called("ray::RuntimeEnvAgent", process.pid)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs([p for p in started if p not in agents], timeout=GONE_S)
    for remaining in [*agents, *alive]:
        with contextlib.suppress(psutil.NoSuchProcess):
            remaining.kill()
    psutil.wait_procs([*agents, *alive], timeout=GONE_S)
    assert alive == [], "its actors outlive it"


@contextlib.contextmanager
def left_as_it_was() -> Iterator[None]:
    """Restores threads, determinism, signals, environment and MLflow's store, and shuts down Ray if it did not run before."""
    import mlflow
    import ray

    connected = ray.is_initialized()
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    handlers, environment = {n: signal.getsignal(n) for n in signals.STOP_SIGNALS}, os.environ.copy()
    try:
        yield
    finally:
        if not connected:
            ray.shutdown(wait_for_processes=True)  # otherwise a later test would get a warning about unfinished processes
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.set_flush_denormal(False)
        signals.reset()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
        os.environ.clear()
        os.environ.update(environment)

"""The Ray cluster of a job: the one that is named, the one that it runs on, or a local one that only this machine can reach."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from cpgan_ray.config import RuntimeConfig
from cpgan_ray.credentials import redacted
from cpgan_ray.errors import InputError
from cpgan_ray.process import available_cpus

KNOCK_S = 5.0
"""How long a cluster may take to answer at all, in seconds."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """Nodes that are started, or joined, in the block have the address 127.0.0.1, and listen there alone.

    Without it their servers are open on every interface: on Linux Ray takes the machine's own address even where it is told
    127.0.0.1. Where it does not (macOS, Windows) is decided by this switch (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER).
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def connect(runtime: RuntimeConfig) -> None:
    """Join the cluster that was named, the one this job runs on, or start a local one, that only this machine can reach.

    Raises: InputError where nothing answers at the address.
    """
    if ray.is_initialized():
        return
    address = runtime.address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    handler = signal.getsignal(signal.SIGTERM)
    hide_secrets_of_command_line()
    try:
        if address:
            knock(address)
            ray.init(address=address, **quiet)
        else:
            with on_loopback():
                ray.init(address="local", num_cpus=available_cpus(), include_dashboard=False, **quiet)
        quiet_stdout()
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init has put its own there
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, socket.gaierror) as e:
        raise InputError(f"no Ray cluster answers at {address!r}: start it, or leave --runtime.address out for a local one") from e


def hide_secrets_of_command_line() -> None:
    """Ray's list of jobs shows each driver's command line: without the secrets in it."""
    told = ray_utils.get_entrypoint_name
    if not isinstance(told, partial):
        ray_utils.get_entrypoint_name = partial(redacted_result, told)


def redacted_result(call: Callable[[], str]) -> str:
    return redacted(call())


def quiet_stdout() -> None:
    """What Ray's daemons report goes to standard error: a job's last line on standard output is its result.

    Ray prints such reports ("a worker died ...") on standard output whatever `log_to_driver` is, some of them only as it leaves.
    """
    told = ray_worker.print_to_stdstream
    if not isinstance(told, partial):

        def print_on_stderr(data: dict[str, Any], **how: Any) -> None:
            told(data | {"is_err": True}, **how)

        ray_worker.print_to_stdstream = partial(print_on_stderr)


def knock(address: str) -> None:
    """Open and close a connection to `host:port`: Ray itself would try for minutes. Other forms of address are left to Ray.

    Raises: OSError where nothing answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()

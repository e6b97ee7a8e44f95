"""The Ray cluster of a job: the one that is named, the one that it runs on, or a local one that only this machine can reach."""

import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import ray
from ray import _raylet
from ray._private import ray_constants, services
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.process import available_cpus
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.common.signals import blocked_signals, defer_signals, reinstall
from cpgan_ray.config import RuntimeConfig
from cpgan_ray.distributed.machine import ensure_shared_memory, ensure_token, temporary_folder, warn_of_readable_token
from cpgan_ray.errors import InputError

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
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


class ShieldedProcess(services.ConsolePopen):
    """A process of a local Ray that no signal to this job's process group reaches, nor one to all processes of the job.

    A terminal, `timeout`, `kill -- -PGID` and many batch managers send SIGINT or SIGTERM to a job's whole process group; Slurm and
    systemd send it to every process of the job. Ray's processes would end before the game has written its checkpoint, and the
    driver would wait in vain for an answer. So each of them begins a session, and with it a process group, of its own, and has
    SIGTERM blocked, as Ray itself blocks SIGINT; its children, the actors among them, inherit both.

    Whoever ends the cluster therefore uses SIGKILL, on it and on what it has started. That loses nothing, since by then nobody is
    waiting for its answers, and it takes less time than Ray's own way. Nothing outlives the driver either: the kernel
    kills what Ray has started directly (PR_SET_PDEATHSIG, which a new session leaves as it is), and actors end with their raylet.
    """

    def __init__(self, *args: Any, preexec_fn: Any = None, **options: Any) -> None:
        def prepare() -> None:
            if preexec_fn is not None:
                preexec_fn()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

        super().__init__(*args, preexec_fn=prepare, start_new_session=True, **options)

    def terminate(self) -> None:
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(self.pid).children(recursive=True)
        self.kill()
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextmanager
def shielded_from_signals() -> Iterator[None]:
    """The processes of a Ray cluster that is started in the block are `ShieldedProcess`es."""
    before, services.ConsolePopen = services.ConsolePopen, ShieldedProcess
    try:
        yield
    finally:
        services.ConsolePopen = before


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Within the block Ray does not replace the handler of SIGTERM: its own ones end the cluster and the process with status 1, or
    the process only, with a stack trace. One is set by Python, another one by the C++ part as soon as the driver joins.
    """
    raylet: Any = _raylet
    set_handler, core_worker = ray_utils.set_sigterm_handler, raylet.CoreWorker

    def join(*arguments: Any, **options: Any) -> Any:
        with blocked_signals():  # one that reached Ray's handler would end the process with a stack trace
            try:
                return core_worker(*arguments, **options)
            finally:
                reinstall()

    ray_utils.set_sigterm_handler, raylet.CoreWorker = lambda handler: None, join
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler, raylet.CoreWorker = set_handler, core_worker


def connect(runtime: RuntimeConfig) -> None:
    """Join the cluster that was named, the one this job runs on, or start a local one, that only this machine can reach.

    Raises: InputError where nothing answers at the address, or a registry was changed, which other processes would not see.
    """
    ensure_unchanged()
    if ray.is_initialized():
        return
    address = runtime.address or os.environ.get("RAY_ADDRESS")
    warn_of_readable_token()
    hide_secrets_of_command_line()
    with own_signal_handlers():
        if address:
            join(address)
        else:
            start_local()
    quiet_stdout()


def join(address: str) -> None:
    """Raises: InputError where nothing answers at the address."""
    try:
        knock(address)
        with on_loopback() if is_loopback(address) else contextlib.nullcontext():
            ray.init(address=address, **QUIET)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, socket.gaierror) as e:
        raise InputError(f"no Ray cluster answers at {address!r}: start it, or leave --runtime.address out for a local one") from e


def start_local() -> None:
    """Raises: InputError where the machine lacks what Ray needs."""
    ensure_shared_memory()
    folder = temporary_folder()
    ensure_token()
    try:
        with defer_signals(), on_loopback(), shielded_from_signals():  # deferred: no half of a cluster
            ray.init(address="local", num_cpus=available_cpus(), include_dashboard=False, _temp_dir=folder, **QUIET)
    except Exception as e:  # whatever the machine lacks leads to
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise InputError(
            f"Ray cannot be started on this machine ({reason}); its logs are in {folder}: mend that, or work in one process with "
            "--runtime.backend local"
        ) from e


def is_local() -> bool:
    """Whether this process has started the cluster itself, which then ends with it."""
    return ray_worker.global_worker.node is not None and ray_worker.global_worker.node.head


def is_loopback(address: str) -> bool:
    """Whether `host:port` is on the loopback interface, where only processes of this machine reach it.

    Ray would join such a cluster from the machine's own address, where a cluster that listens on loopback only does not answer.
    """
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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

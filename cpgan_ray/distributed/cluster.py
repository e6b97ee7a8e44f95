"""Connects a job to its Ray cluster: the given one, the one that it runs on, or a local one that only this machine can reach."""

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
from ray._private import node as ray_node
from ray._private import ray_constants, services
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.plugins import shipping
from cpgan_ray.common.process import available_cpus
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.common.signals import blocked_signals, defer_signals, reinstall
from cpgan_ray.config import RuntimeConfig
from cpgan_ray.distributed.machine import ensure_shared_memory, ensure_token, temporary_folder, warn_of_readable_token
from cpgan_ray.errors import InputError

raylet: Any = _raylet  # compiled, without types
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
CONNECT_TIMEOUT_S = 5.0
"""How long a cluster may take to accept a connection."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """Nodes that are started or joined in the block have the address 127.0.0.1 and listen only there.

    Otherwise their servers are open on every interface: on Linux Ray uses the machine's own address even if 127.0.0.1 is given. On
    macOS and Windows it uses 127.0.0.1, by this switch (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER).
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


class ShieldedProcess(services.ConsolePopen):
    """A process of a local Ray that ignores signals to this job's process group and to all processes of the job.

    A terminal, `timeout`, `kill -- -PGID` and many batch managers send SIGINT or SIGTERM to a job's whole process group; Slurm and
    systemd send it to every process of the job. Ray's processes would end before the game has written its checkpoint, and the
    driver would wait for a reply that never comes. Therefore each of them starts its own session and process group, and blocks
    SIGTERM, as Ray itself blocks SIGINT. Its children, which include the actors, inherit both.

    To end the cluster, its processes and their children are killed with SIGKILL. Nothing is lost, because the driver no longer
    waits for replies, and it is faster than Ray's own shutdown. No process outlives the driver: the kernel kills the direct
    children (PR_SET_PDEATHSIG, which a new session does not change), and actors end with their raylet.
    """

    def __init__(self, *args: Any, preexec_fn: Any = None, **options: Any) -> None:
        def prepare() -> None:
            if preexec_fn is not None:
                preexec_fn()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

        super().__init__(*args, preexec_fn=prepare, start_new_session=True, **options)

    def terminate(self) -> None:
        descendants: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            descendants = psutil.Process(self.pid).children(recursive=True)
        self.kill()
        for process in descendants:
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextmanager
def shielded_from_signals() -> Iterator[None]:
    """A Ray cluster that is started in the block consists of `ShieldedProcess`es."""
    before, services.ConsolePopen = services.ConsolePopen, ShieldedProcess
    try:
        yield
    finally:
        services.ConsolePopen = before


class ShieldedCoreWorker(raylet.CoreWorker):
    """A driver's connection to its cluster that leaves the handling of SIGTERM as it found it.

    Ray's C++ code sets a handler of its own when the driver joins, which would end the process with a stack trace, and restores the
    system's default when the driver leaves, which would end finished work with the status of a killed process.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> "ShieldedCoreWorker":
        with blocked_signals():
            try:
                return super().__new__(cls, *arguments, **options)
            finally:
                reinstall()

    def shutdown_driver(self) -> None:
        with blocked_signals():
            super().shutdown_driver()
            reinstall()


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """A driver that joins a cluster in the block keeps its handler of SIGTERM, until it has left the cluster too.

    Ray's Python handler would end the process, and one of them also the cluster, with status 1. SIGTERM waits until the end of the
    block. The threads that Ray starts in it never receive it: while Ray's C++ handler is installed, a thread that received the
    signal would end the process. SIGINT is not blocked, so that a hanging connection can be interrupted.
    """
    set_handler, core_worker = ray_utils.set_sigterm_handler, raylet.CoreWorker
    ray_utils.set_sigterm_handler, raylet.CoreWorker = lambda handler: None, ShieldedCoreWorker
    try:
        with blocked_signals(signal.SIGTERM):
            yield
    finally:
        ray_utils.set_sigterm_handler, raylet.CoreWorker = set_handler, core_worker


@contextmanager
def only_needed_processes() -> Iterator[None]:
    """A local cluster that is started in the block has no server for a dashboard, no autoscaler and no log monitor: nothing asks
    them, and it starts faster without them (benchmark: `python -m cpgan_ray.devtools.bench --ray-starts 5`)."""
    names = ("start_api_server", "start_monitor", "start_log_monitor")
    before = {name: getattr(ray_node.Node, name) for name in names}
    for name in names:
        setattr(ray_node.Node, name, lambda self, *_, **__: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(ray_node.Node, name, method)


def connect(runtime: RuntimeConfig) -> None:
    """Joins the given cluster or the one that this job runs on, or starts a local one that only this machine can reach.

    Raises: InputError if no cluster responds at the address, or if a registry was changed, because other processes would not see
    it.
    """
    ensure_unchanged()
    if ray.is_initialized():
        if has_all_code():
            return
        if session_name() not in _started:
            raise InputError(
                "Ray was connected before the code of this run was named, so its processes do not have it: call "
                "ray.shutdown() first"
            )
        ray.shutdown()
    address = runtime.address or os.environ.get("RAY_ADDRESS")
    warn_of_readable_token()
    redact_command_line()
    with own_signal_handlers():
        if address:
            join(address)
        else:
            start_local()
    redirect_ray_reports()


@contextmanager
def connected(runtime: RuntimeConfig) -> Iterator[None]:
    """A connection for the block. It is closed at the end if there was none before, so that the next one can bring further files to
    the nodes."""
    before = ray.is_initialized()
    connect(runtime)
    try:
        yield
    finally:
        if not before:
            ray.shutdown()


def join(address: str) -> None:
    """Raises: InputError if no cluster responds at the address."""
    try:
        ensure_listening(address)
        with on_loopback() if is_loopback(address) else contextlib.nullcontext():
            ray.init(address=address, **QUIET, **shipped_code())
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, socket.gaierror) as e:
        raise InputError(f"no Ray cluster responds at {address!r}: start it, or omit --runtime.address for a local one") from e


def start_local() -> None:
    """Raises: InputError if Ray cannot be started on this machine."""
    ensure_shared_memory()
    folder = temporary_folder()
    ensure_token()
    try:
        with (
            defer_signals(),  # a signal must not leave half a cluster
            on_loopback(),
            shielded_from_signals(),
            only_needed_processes(),
        ):
            ray.init(
                address="local", num_cpus=available_cpus(), include_dashboard=False, _temp_dir=folder, **QUIET, **shipped_code()
            )
    except Exception as e:  # Ray raises many types, depending on the machine
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise InputError(
            f"Ray cannot be started on this machine ({reason}); its logs are in {folder}: correct this or run in one process with "
            "--runtime.backend local"
        ) from e
    _started.clear()
    _started.add(session_name())


_sent: set[str] = set()
"""Names of the files that were sent to the present cluster."""
_started: set[str] = set()
"""The session of the local cluster that `start_local` has started, if it is the last one."""


def shipped_code() -> dict[str, Any]:
    """The argument of `ray.init` that sends the files of selected parts to every node; empty if all parts are built in."""
    modules = shipping.modules()
    _sent.clear()
    _sent.update(shipping.wanted())
    return {"runtime_env": {"py_modules": modules}} if modules else {}


def has_all_code() -> bool:
    """Whether the processes of the cluster have the files of all parts that this process has resolved. In a process of Ray they do:
    they come from its driver."""
    return ray_worker.global_worker.mode == ray_worker.WORKER_MODE or shipping.wanted() <= _sent


def session_name() -> str:
    """The name of the session of this process's cluster."""
    return "" if ray_worker.global_worker.node is None else ray_worker.global_worker.node.session_name


def is_local() -> bool:
    """Whether this process has started the cluster itself, which then ends with it."""
    return ray_worker.global_worker.node is not None and ray_worker.global_worker.node.head


def is_loopback(address: str) -> bool:
    """Whether `host:port` is a loopback address, which only processes of this machine can reach.

    Ray would join from the machine's own address, but a cluster that listens only on loopback does not respond there.
    """
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def redact_command_line() -> None:
    """Removes secrets from the driver's command line, which Ray shows in its list of jobs."""
    original = ray_utils.get_entrypoint_name
    if not isinstance(original, partial):
        ray_utils.get_entrypoint_name = partial(redacted_result, original)


def redacted_result(call: Callable[[], str]) -> str:
    return redacted(call())


def redirect_ray_reports() -> None:
    """Sends the reports of Ray's daemons to standard error, because a job's last line on standard output is its result.

    Ray prints reports ("a worker died ...") on standard output for any value of `log_to_driver`, some of them only at its end.
    """
    original = ray_worker.print_to_stdstream
    if not isinstance(original, partial):

        def print_on_stderr(data: dict[str, Any], **options: Any) -> None:
            original(data | {"is_err": True}, **options)

        ray_worker.print_to_stdstream = partial(print_on_stderr)


def ensure_listening(address: str) -> None:
    """Opens and closes a connection to `host:port`, because Ray itself would try for minutes, and could not be stopped. Ray checks
    other forms of address.

    Raises: OSError if nothing accepts the connection, or if what accepts it does not speak gRPC, as every Ray does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    import grpc

    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError as e:
            raise ConnectionError("what listens there is no Ray cluster") from e

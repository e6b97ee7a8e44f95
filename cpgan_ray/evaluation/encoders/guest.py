"""The process in which a program of unknown origin is read and called. See sandbox.py for its permissions and its protocol."""

import contextlib
import ctypes
import importlib
import json
import math
import os
import resource
import signal
import socket
import sys
from typing import Any

from cpgan_ray.evaluation.encoders.sandbox import ProgramError, RefusedError, SandboxError, receive, send

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MAX_OPEN = 256
PRELOADED = (
    "networkx",
    "torch",
    "torch.export.pt2_archive",
    "torch.export._trace",
    "torch.export._unlift",
    "torch._export.serde.serialize",
    "torch._functorch.aot_autograd",
    "cpgan_ray.common.process",
    "cpgan_ray.evaluation.encoders.runners",
)
"""Modules that every program needs; the helper imports them once."""


def main(control: int) -> None:
    """The helper: forks a process for each request, until the other side closes the socket `control`."""
    for name in PRELOADED:
        importlib.import_module(name)
    connection = socket.socket(fileno=control)
    connection.send(b"ready")
    pids: set[int] = set()
    while True:
        content, handles, _, _ = socket.recv_fds(connection, 1 << 16, 1)
        if not content:
            break
        request = json.loads(content)
        if "end" in request:
            connection.send(str(finish(request["end"], pids)).encode())
            continue
        importlib.import_module(request["preload"])
        if (pid := os.fork()) == 0:
            run_child(handles[0], request)
        os.close(handles[0])
        pids.add(pid)
        connection.send(str(pid).encode())
    for pid in list(pids):
        finish(pid, pids)


def finish(pid: int, pids: set[int]) -> int:
    """End one of the running processes `pids`. Returns its exit status, negative for a signal; 0 if it is not among them."""
    if pid not in pids:
        return 0
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    pids.discard(pid)
    return os.waitstatus_to_exitcode(status)


def run_child(handle: int, settings: dict[str, Any]) -> None:
    """Serve one program in the forked process, then exit. Does not return."""
    status = 1
    try:
        confine(handle)
        with socket.socket(fileno=3) as connection:
            serve(connection, settings)
        status = 0
    finally:
        os._exit(status)


def confine(handle: int) -> None:
    """Close all files but the connection, which becomes handle 3; remove the network if the system permits it; forbid larger files;
    and let this process end when the helper ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    null = os.open(os.devnull, os.O_RDWR)
    connection = os.dup(handle)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(connection, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1:
            os._exit(1)
        if libc.unshare(CLONE_NEWNET) != 0:
            libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)  # works without privileges; if that is forbidden too, the network stays
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN, MAX_OPEN))


def limit_memory(more: int) -> None:
    """Allow so many bytes more than are in use now; address space that is only reserved does not count."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        now = next((int(line.split()[1]) << 10 for line in file if line.startswith("VmData:")), 0)
    resource.setrlimit(resource.RLIMIT_DATA, (now + more, now + more))


def serve(connection: socket.socket, settings: dict[str, Any]) -> None:
    """Answer requests until the other side closes the connection: the first request opens a program, each later one calls it."""
    from cpgan_ray.common.process import set_up_process
    from cpgan_ray.evaluation.encoders.runners import open_runner

    set_up_process(threads=settings["threads"])
    if sys.platform == "linux":
        limit_memory(settings["memory"])
    runner: Any = None
    while True:
        try:
            request, arrays = receive(connection, deadline=math.inf, limit=settings["memory"])
        except EOFError:
            return
        reply: dict[str, Any] = {}
        results: Any = {}
        try:
            if runner is None:
                runner = open_runner(request["path"], stochastic=request["stochastic"])
                reply = {"inputs": [[list(shape), dtype] for shape, dtype in runner.inputs]}
            else:
                results = runner.run(arrays["x"])
        except RefusedError as e:
            reply = {"refused": str(e)}
        except SandboxError:
            reply = {"memory": True}
        except ProgramError as e:
            reply = {"failed": str(e)}
        send(connection, reply, results, deadline=math.inf)

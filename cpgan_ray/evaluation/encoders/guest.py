"""The process in which somebody else's program is read and called: see sandbox.py for what it may do and how it is asked."""

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
"""What every program needs; imported once."""


def main(control: int) -> None:
    """The helper: forks a process for each request, until nobody asks any more."""
    for name in PRELOADED:
        importlib.import_module(name)
    asked = socket.socket(fileno=control)
    asked.send(b"ready")
    started: set[int] = set()
    while True:
        content, handles, _, _ = socket.recv_fds(asked, 1 << 16, 1)
        if not content:
            break
        request = json.loads(content)
        if "end" in request:
            asked.send(str(finish(request["end"], started)).encode())
            continue
        importlib.import_module(request["preload"])
        if (pid := os.fork()) == 0:
            child(handles[0], request)
        os.close(handles[0])
        started.add(pid)
        asked.send(str(pid).encode())
    for pid in list(started):
        finish(pid, started)


def finish(pid: int, started: set[int]) -> int:
    """Ends a process that is not yet waited for; its exit status, negative for a signal."""
    if pid not in started:
        return 0
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    started.discard(pid)
    return os.waitstatus_to_exitcode(status)


def child(handle: int, settings: dict[str, Any]) -> None:
    """Does not return."""
    status = 1
    try:
        confine(handle)
        with socket.socket(fileno=3) as connection:
            serve(connection, settings)
        status = 0
    finally:
        os._exit(status)


def confine(handle: int) -> None:
    """Leave only the connection, as handle 3; no network where possible, no files, and no life after the helper's."""
    libc = ctypes.CDLL(None, use_errno=True)
    null = os.open(os.devnull, os.O_RDWR)
    kept = os.dup(handle)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(kept, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1:
            os._exit(1)
        if libc.unshare(CLONE_NEWNET) != 0:
            libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)  # without privileges; where that is forbidden too, the network stays
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN, MAX_OPEN))


def limit_memory(more: int) -> None:
    """At most so many bytes more than now; address space that is merely reserved does not count."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        now = next((int(line.split()[1]) << 10 for line in file if line.startswith("VmData:")), 0)
    resource.setrlimit(resource.RLIMIT_DATA, (now + more, now + more))


def serve(connection: socket.socket, settings: dict[str, Any]) -> None:
    """Answer requests until the other side closes: the first opens a program, each further one calls it."""
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
        answer: dict[str, Any] = {}
        results: Any = {}
        try:
            if runner is None:
                runner = open_runner(request["path"], stochastic=request["stochastic"])
                answer = {"inputs": [[list(shape), dtype] for shape, dtype in runner.inputs]}
            else:
                results = runner.run(arrays["x"])
        except RefusedError as e:
            answer = {"refused": str(e)}
        except SandboxError:
            answer = {"memory": True}
        except ProgramError as e:
            answer = {"failed": str(e)}
        send(connection, answer, results, deadline=math.inf)

"""A separate process for each program of unknown origin: the side that sends requests. `guest.py` is the other side.

A crash, a hang or too much memory in that process becomes a one-line error here. The process has only a few environment variables
for libraries, no open files except its connection, and no network if the system permits to remove it. It cannot make files larger,
and ends when the requesting process ends. Requests and replies consist of a length, a JSON header and raw arrays, whose types,
shapes and sizes are checked before they are read. No part of a reply is unpickled or executed, and unprintable characters are
replaced.

One helper process imports torch once and forks, so that opening a second program takes only some hundredths of a second.
"""

import atexit
import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.errors import printable

DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
"""Allowed types of the arrays in a request or reply."""
START_S = 600.0
"""Seconds that the helper may take to import torch. Long, because the helper runs only our own code and the machine may be busy."""
MAX_HEADER = 1 << 20
MAX_ARRAYS = 1000
LIBRARY_VARIABLES = re.compile("LD_LIBRARY_PATH|(OMP|GOMP|KMP|MKL|OPENBLAS|MALLOC)_.*")
"""Environment variables that the process keeps: where libraries are and how many threads they use."""
Arrays = dict[str, np.ndarray]


class SandboxError(RuntimeError):
    """A program exceeded its limits or crashed; the message is the reason in a few words."""


class ProgramError(RuntimeError):
    """A program cannot be read, or fails; the message is the name of the exception."""


class RefusedError(ValueError):
    """The file contains something that is not allowed; the message names it."""


class Sandbox:
    """A process for one program."""

    def __init__(self, *, timeout_s: float, memory_gb: float, threads: int, preload: str) -> None:
        """`preload`: a module that the program needs."""
        self.timeout_s, self.memory_gb = timeout_s, memory_gb
        self.helper = helper()
        self.pid, self.connection = self.helper.fork({"memory": int(memory_gb * 2**30), "threads": threads, "preload": preload})
        self.close = weakref.finalize(self, end, self.helper, self.pid, self.connection)

    def request(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> tuple[dict[str, Any], Arrays]:
        """Send one request and receive its reply.

        Raises: RefusedError, ProgramError if the program raises them; SandboxError if it crashes or exceeds a limit.
        """
        deadline = time.monotonic() + self.timeout_s
        try:
            send(self.connection, header, arrays or {}, deadline=deadline)
            reply, received = receive(self.connection, deadline=deadline, limit=int(self.memory_gb * 2**30))
        except TimeoutError as e:
            self.close()
            raise SandboxError(f"it took longer than {self.timeout_s:g} s: raise --encoder.timeout-s if that is too short") from e
        except (EOFError, ConnectionError) as e:
            raise SandboxError(describe_exit(self.close())) from e
        except (ValueError, TypeError, RecursionError) as e:
            self.close()
            raise SandboxError("its process sent a malformed reply") from e
        if "refused" in reply:
            raise RefusedError(one_line(reply["refused"]))
        if "failed" in reply:
            raise ProgramError(re.sub(r"\W", "", one_line(reply["failed"]))[:60])
        if "memory" in reply:
            raise SandboxError(
                f"it needs more than {self.memory_gb:g} GB of memory: raise --encoder.memory-gb if that is too little"
            )
        return reply, received


def describe_exit(status: int | None) -> str:
    if status is None or status >= 0:
        return "its process ended unexpectedly"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    cause = ", which the kernel sends when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{cause}"


def one_line(text: object, limit: int = 400) -> str:
    """The beginning of a text of unknown origin, on one line."""
    return " ".join(printable(str(text)[:limit]).split())


# ---------------------------------------------------------------------------------------------------------------- the connection


def send(connection: socket.socket, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, deadline: float) -> None:
    """Raises: TimeoutError; ConnectionError if the other side has closed the connection."""
    layout = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    content = json.dumps({**header, "arrays": layout}).encode()
    for part in (len(content).to_bytes(4, "big") + content, *map(as_bytes, arrays.values())):
        connection.settimeout(remaining(deadline))
        connection.sendall(part)


def receive(connection: socket.socket, *, deadline: float, limit: int) -> tuple[dict[str, Any], Arrays]:
    """Receive a header and its arrays; the arrays have at most `limit` bytes in total.

    Raises: TimeoutError; EOFError if the other side has closed the connection; ValueError if the data is malformed.
    """
    size = int.from_bytes(read(connection, bytearray(4), deadline), "big")
    if size > MAX_HEADER:
        raise ValueError("header too long")
    header = json.loads(read(connection, bytearray(size), deadline))
    layout = header.pop("arrays") if isinstance(header, dict) and isinstance(header.get("arrays"), list) else None
    if layout is None or len(layout) > MAX_ARRAYS:
        raise ValueError("no header")
    arrays: Arrays = {}
    for name, dtype, shape in layout:
        valid = isinstance(name, str) and dtype in DTYPES and isinstance(shape, list) and len(shape) <= 32
        if not valid or any(type(side) is not int or not 0 <= side < 2**40 for side in shape):
            raise ValueError("array")
        limit -= math.prod(shape) * np.dtype(dtype).itemsize
        if limit < 0 or name in arrays:
            raise ValueError("size")
        arrays[name] = np.empty(shape, dtype)
        read(connection, as_bytes(arrays[name]), deadline)
    return header, arrays


def as_bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read(connection: socket.socket, buffer: Any, deadline: float) -> Any:
    view = memoryview(buffer)
    while view:
        connection.settimeout(remaining(deadline))
        if not (count := connection.recv_into(view)):
            raise EOFError
        view = view[count:]
    return buffer


def remaining(deadline: float) -> float | None:
    if math.isinf(deadline):
        return None
    if (seconds := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds


# -------------------------------------------------------------------------------------------------------------------- the helper


class Helper:
    """The process from which the processes of programs are forked."""

    def __init__(self) -> None:
        self.control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = [path for path in sys.path if path and Path(path).is_absolute()]
        root = str(Path(__file__).parents[3])
        code = f"import sys; sys.path[:] = {[root, *paths]!r}\n"
        code += f"from cpgan_ray.evaluation.encoders.guest import main; main({other.fileno()})"
        with tempfile.TemporaryFile() as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(other.fileno(),),
                env=minimal_environment(),
                cwd="/",
                start_new_session=True,  # Ctrl-C in a terminal must reach only the job, which then ends its programs
            )
            other.close()
            self.lock = threading.Lock()
            self.control.settimeout(START_S)
            try:
                ready = self.control.recv(100) == b"ready"
            except TimeoutError:
                ready = False
            if not ready:
                self.process.kill()
                self.process.wait()
                errors.seek(0)
                lines = errors.read()[-2000:].decode(errors="replace").strip().splitlines()
                raise SandboxError(f"the process for programs does not start: {one_line(lines[-1] if lines else '')}")

    def fork(self, settings: Mapping[str, Any]) -> tuple[int, socket.socket]:
        """Start a new process. Returns its id and a connection to it."""
        parent_end, child_end = socket.socketpair()
        with self.lock, child_end:
            socket.send_fds(self.control, [json.dumps(settings).encode()], [child_end.fileno()])
            return int(self.control.recv(100)), parent_end

    def end(self, pid: int) -> int:
        """End a process if it still runs. Returns its exit status, negative for a signal."""
        with self.lock:
            self.control.send(json.dumps({"end": pid}).encode())
            return int(self.control.recv(100))

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def minimal_environment() -> dict[str, str]:
    """The environment of the helper and its children, without anything that could be a secret."""
    variables = {name: value for name, value in os.environ.items() if LIBRARY_VARIABLES.fullmatch(name)}
    return variables | {"LC_ALL": "C.UTF-8", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}


_helpers: dict[int, Helper] = {}
"""The helper of this process, by the process's id: after a fork, the child has none."""


def helper() -> Helper:
    """The helper of this process, started on first use."""
    current = _helpers.get(os.getpid())
    if current is None or current.process.poll() is not None:
        _helpers.clear()
        current = _helpers[os.getpid()] = Helper()
        atexit.register(current.close)
    return current


def end(owner: Helper, pid: int, connection: socket.socket) -> int | None:
    """End a process that is no longer needed. Returns its exit status; None if it is unknown."""
    connection.close()
    if _helpers.get(os.getpid()) is not owner:
        return None
    with contextlib.suppress(OSError, ValueError):
        return owner.end(pid)
    return None


def array_sizes(arrays: Mapping[str, np.ndarray]) -> Sequence[tuple[str, int]]:
    """Name of each array, and its number of values per sample."""
    return [(name, math.prod(array.shape[1:])) for name, array in arrays.items()]

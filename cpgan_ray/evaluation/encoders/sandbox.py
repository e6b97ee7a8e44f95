"""A process of its own for each program that somebody else has made: the side that asks. `guest.py` is the other side.

A crash, a hang or too much memory there is one line here. The process has no environment but a few settings of libraries, no open
files but its connection, no network where the system permits to take it away, cannot make files larger, and ends when the asking
process ends. Requests and replies are a length, a JSON header and raw arrays whose types, shapes and sizes are checked before they
are read. Nothing that comes back is unpickled or executed, and texts are cut to printable ones.

One helper process imports torch once and forks, so that the second program is open after some hundredths of a second.
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

DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
"""What an array that crosses the connection may be made of."""
START_S = 600.0
"""How long the helper may take to import torch, in seconds; it is this project's code, on however busy a machine."""
MAX_HEADER = 1 << 20
MAX_ARRAYS = 1000
KEPT = re.compile("LD_LIBRARY_PATH|(OMP|GOMP|KMP|MKL|OPENBLAS|MALLOC)_.*")
"""Variables that the process keeps: how libraries are found and how many threads they use."""
Arrays = dict[str, np.ndarray]


class SandboxError(RuntimeError):
    """A program went beyond its limits or crashed; the message is the reason in a few words."""


class ProgramError(RuntimeError):
    """A program cannot be read, or fails; the message is the name of the exception."""


class RefusedError(ValueError):
    """The file holds what is not allowed; the message says what."""


class Sandbox:
    """A process for one program."""

    def __init__(self, *, timeout_s: float, memory_gb: float, threads: int, preload: str) -> None:
        """`preload`: a module that the program needs."""
        self.timeout_s, self.memory_gb = timeout_s, memory_gb
        self.helper = helper()
        self.pid, self.connection = self.helper.fork({"memory": int(memory_gb * 2**30), "threads": threads, "preload": preload})
        self.close = weakref.finalize(self, end, self.helper, self.pid, self.connection)

    def ask(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> tuple[dict[str, Any], Arrays]:
        """One request and its reply.

        Raises: RefusedError, ProgramError as the program does; SandboxError where it crashes or exceeds a limit.
        """
        deadline = time.monotonic() + self.timeout_s
        try:
            send(self.connection, header, arrays or {}, deadline=deadline)
            reply, received = receive(self.connection, deadline=deadline, limit=int(self.memory_gb * 2**30))
        except TimeoutError as e:
            self.close()
            raise SandboxError(f"it took longer than {self.timeout_s:g} s: raise --encoder.timeout-s if that is too short") from e
        except (EOFError, ConnectionError) as e:
            raise SandboxError(how_it_ended(self.close())) from e
        except (ValueError, TypeError, RecursionError) as e:
            self.close()
            raise SandboxError("its process gave an answer of another form") from e
        if "refused" in reply:
            raise RefusedError(printable(reply["refused"]))
        if "failed" in reply:
            raise ProgramError(re.sub(r"\W", "", printable(reply["failed"]))[:60])
        if "memory" in reply:
            raise SandboxError(
                f"it needs more than {self.memory_gb:g} GB of memory: raise --encoder.memory-gb if that is too little"
            )
        return reply, received


def how_it_ended(status: int | None) -> str:
    if status is None or status >= 0:
        return "its process ended unexpectedly"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    why = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{why}"


def printable(text: object, limit: int = 400) -> str:
    """A text of unknown origin, on one line."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:limit])


# ---------------------------------------------------------------------------------------------------------------- the connection


def send(connection: socket.socket, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, deadline: float) -> None:
    """Raises: TimeoutError; ConnectionError where nobody reads."""
    layout = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    content = json.dumps({**header, "arrays": layout}).encode()
    for part in (len(content).to_bytes(4, "big") + content, *map(as_bytes, arrays.values())):
        connection.settimeout(remaining(deadline))
        connection.sendall(part)


def receive(connection: socket.socket, *, deadline: float, limit: int) -> tuple[dict[str, Any], Arrays]:
    """A header and its arrays, together at most `limit` bytes.

    Raises: TimeoutError; EOFError where the other side has gone; ValueError for what is not of this form.
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
        plain = isinstance(name, str) and dtype in DTYPES and isinstance(shape, list) and len(shape) <= 32
        if not plain or any(type(side) is not int or not 0 <= side < 2**40 for side in shape):
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
        if not (got := connection.recv_into(view)):
            raise EOFError
        view = view[got:]
    return buffer


def remaining(deadline: float) -> float | None:
    if math.isinf(deadline):
        return None
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


# -------------------------------------------------------------------------------------------------------------------- the helper


class Helper:
    """The process that the others are forked from."""

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
                start_new_session=True,  # a terminal's Ctrl-C ends the job, and the job its programs
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
                last = errors.read()[-2000:].decode(errors="replace").strip().splitlines()
                raise SandboxError(f"the process for programs does not start: {printable(last[-1] if last else '')}")

    def fork(self, settings: Mapping[str, Any]) -> tuple[int, socket.socket]:
        """A new process with a connection to it."""
        ours, theirs = socket.socketpair()
        with self.lock, theirs:
            socket.send_fds(self.control, [json.dumps(settings).encode()], [theirs.fileno()])
            return int(self.control.recv(100)), ours

    def end(self, pid: int) -> int:
        """The process's exit status, negative for a signal; it is ended if it still runs."""
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
    """The environment of the helper and its children: nothing that could be a secret."""
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    return kept | {"LC_ALL": "C.UTF-8", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}


_helpers: dict[int, Helper] = {}
"""The helper of this process, by its id: a fork has none."""


def helper() -> Helper:
    """The helper of this process, started on first use."""
    current = _helpers.get(os.getpid())
    if current is None or current.process.poll() is not None:
        _helpers.clear()
        current = _helpers[os.getpid()] = Helper()
        atexit.register(current.close)
    return current


def end(owner: Helper, pid: int, connection: socket.socket) -> int | None:
    """The exit status of a process that is no longer needed."""
    connection.close()
    if _helpers.get(os.getpid()) is not owner:
        return None
    with contextlib.suppress(OSError, ValueError):
        return owner.end(pid)
    return None


def split_arrays(arrays: Mapping[str, np.ndarray]) -> Sequence[tuple[str, int]]:
    """Names and sizes of what one sample has in each array."""
    return [(name, math.prod(array.shape[1:])) for name, array in arrays.items()]

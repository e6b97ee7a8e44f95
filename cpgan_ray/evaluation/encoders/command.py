"""A black box that is a command: it reads requests on its standard input and prints replies, one per line (messages.py).

It is the user's own program and runs with the user's rights, without a sandbox. It ends when its input ends.
"""

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import time
from typing import Any

import numpy as np

from cpgan_ray.evaluation.encoders.messages import MAX_REPLY, BlackBoxError, read_codes, write_pictures
from cpgan_ray.evaluation.encoders.sandbox import Arrays, describe_exit, one_line

END_S = 5.0
"""Seconds that the command has to end after its input has ended; then it is killed."""
CHUNK = 1 << 16
SHOWN_BYTES = 4000
"""How much of the end of its standard error is searched for the last line."""


class Command:
    """A running command."""

    def __init__(self, command: str, *, timeout_s: float) -> None:
        """Raises: BlackBoxError if it cannot be started."""
        self.timeout_s, self.rest = timeout_s, b""
        try:
            words = shlex.split(command)
        except ValueError as e:
            raise BlackBoxError(f"cannot be split into words ({e}): close its quotation marks") from e
        if not words:
            raise BlackBoxError("is empty: give a program, such as 'python my_encoder.py'")
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        try:  # a session of its own: Ctrl-C must reach only the job, which then ends the command
            self.process = subprocess.Popen(words, **pipes, bufsize=0, start_new_session=True)
        except (OSError, ValueError) as e:
            self.errors.close()
            reason = getattr(e, "strerror", None) or e
            raise BlackBoxError(f"cannot be started ({reason}): give a program and its arguments, as in a shell") from e
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    def encode(self, pictures: np.ndarray) -> Arrays:
        """Pictures (B, H, W, C) uint8 -> outputs by name.

        Raises: BlackBoxError if it ends, takes too long, or answers something else.
        """
        if self.rest:
            start = one_line(self.rest[:80].decode(errors="replace"), 80)
            raise BlackBoxError(
                f"prints {start!r} without a request: it must print one line per request, and everything else to stderr"
            )
        return read_codes(self._exchange(write_pictures(pictures) + b"\n"))

    def _exchange(self, request: bytes) -> bytes:
        """Write a line and read one; both at the same time, because the command may fill its output before it reads its input."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        deadline, waiting, reply = time.monotonic() + self.timeout_s, memoryview(request), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdin, selectors.EVENT_WRITE)
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while waiting or b"\n" not in reply:
                if not (ready := selector.select(max(deadline - time.monotonic(), 0))) and time.monotonic() >= deadline:
                    raise BlackBoxError(
                        f"took longer than {self.timeout_s:g} s for one request: raise --encoder.timeout-s, or lower "
                        "--encoder.batch-size"
                    )
                for key, _ in ready:
                    if key.fileobj is self.process.stdin:
                        waiting = waiting[self._write(waiting) :]
                        if not waiting:
                            selector.unregister(self.process.stdin)
                    elif part := self._read():
                        reply += part
                        if len(reply) > MAX_REPLY:
                            raise BlackBoxError(f"answers with more than {MAX_REPLY >> 20} MB: lower --encoder.batch-size")
        line, _, self.rest = bytes(reply).partition(b"\n")
        return line

    def _write(self, waiting: memoryview) -> int:
        assert self.process.stdin is not None
        try:
            return os.write(self.process.stdin.fileno(), waiting[:CHUNK])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise BlackBoxError(self._ended()) from None

    def _read(self) -> bytes:
        assert self.process.stdout is not None
        try:
            part = os.read(self.process.stdout.fileno(), CHUNK)
        except BlockingIOError:
            return b""
        if not part:
            raise BlackBoxError(self._ended())
        return part

    def _ended(self) -> str:
        """Why it does not answer: its exit status, and the last line that it has printed to standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        status = self.process.poll()
        reason = "closed its output" if status is None else f"ended with status {status}" if status >= 0 else describe_exit(status)
        lines = self._last_errors().strip().splitlines()
        said = f", and said {one_line(lines[-1], 200)!r}" if lines else ""
        return f"{reason.removeprefix('its process ')} before it answered{said}: it must answer until its input ends"

    def _last_errors(self) -> str:
        size = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(size - SHOWN_BYTES, 0))
        return self.errors.read().decode(errors="replace")

    def close(self) -> None:
        """End its input and wait for it; kill it, and what it has started, if it does not end."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.errors.close()

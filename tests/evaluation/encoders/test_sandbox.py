"""Tests of the sandbox: the permissions of its process, its crashes, and the checks of its replies."""

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpgan_ray.evaluation.encoders.sandbox import Sandbox, SandboxError, minimal_environment, receive, send


def proc(sandbox: Sandbox, name: str) -> Path:
    return Path("/proc", str(sandbox.pid), name)


def test_sandbox_isolates_program_and_reports_crash(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert "secret" not in str(minimal_environment())
    sandbox = Sandbox(timeout_s=600, memory_gb=1, threads=1, preload="torch")
    with pytest.raises(Exception, match="KeyError|FileNotFoundError"):
        sandbox.request(
            {"path": "/nowhere.pt2", "stochastic": False}
        )  # an error of the program itself shows that the process is set up
    variables = {entry.partition("=")[0] for entry in proc(sandbox, "environ").read_text().split("\0") if entry}
    assert not {name for name in variables if name.startswith(("AWS", "MLFLOW", "RAY", "CPGAN"))}
    files = {int(path.name): str(path.readlink()) for path in proc(sandbox, "fd").iterdir()}
    assert {number: name for number, name in files.items() if number != 3} == dict.fromkeys((0, 1, 2), "/dev/null")
    assert files[3].startswith("socket:")
    limits = dict(
        line.rsplit(maxsplit=3)[:2] for line in proc(sandbox, "limits").read_text().splitlines() if line.startswith("Max")
    )
    assert limits["Max file size"] == limits["Max core file size"] == "0"
    assert 1 << 30 <= int(limits["Max data size"]) < 8 << 30
    if os.geteuid() == 0:
        assert proc(sandbox, "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    os.kill(sandbox.pid, signal.SIGSEGV)
    with pytest.raises(SandboxError, match=r"^its process was ended by SIGSEGV$"):
        sandbox.request({})


def test_receive_returns_sent_arrays():
    here, there = socket.socketpair()
    arrays = {"a": np.arange(6.0).reshape(2, 3), "none": np.empty((3, 0), np.uint8), "one": np.array(True), "t": np.eye(3)[::2].T}
    with here, there:
        send(there, {"n": 1}, arrays, deadline=time.monotonic() + 60)
        header, received = receive(here, deadline=time.monotonic() + 60, limit=1000)
    assert header == {"n": 1}
    for name, array in arrays.items():
        assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(received[name], array)


def layout(*arrays: Any) -> bytes:
    return json.dumps({"arrays": list(arrays)}).encode()


HOSTILE: dict[str, bytes] = {
    "brackets": b"[" * 200_000,
    "no header": b"[]",
    "no arrays": b"{}",
    "text": b"\xff\xfe",
    "pickled objects": layout(["a", "object", [1]]),
    "too large": layout(["a", "float32", [1 << 20, 1 << 20]]),
    "negative": layout(["a", "float32", [-1, 4]]),
    "no numbers": layout(["a", "float32", ["4"]]),
    "twice": layout(["a", "uint8", [0]], ["a", "uint8", [0]]),
    "too many": layout(*([str(i), "uint8", [0]] for i in range(1001))),
    "not a list": layout(7),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_receive_malformed_reply_raises_without_allocating(case):
    here, there = socket.socketpair()
    with here, there:
        content = HOSTILE[case]
        there.setblocking(False)
        there.sendall(len(content).to_bytes(4, "big") + content)
        with pytest.raises((ValueError, RecursionError, TypeError)):
            receive(here, deadline=time.monotonic() + 60, limit=1 << 20)


def test_receive_too_long_header_raises():
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(ValueError, match="too long"):
            receive(here, deadline=time.monotonic() + 60, limit=1 << 20)

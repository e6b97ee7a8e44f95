"""Tests of encoders that are commands and services: their protocol, and one line for each way in which they fail."""

import base64
import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cpgan_ray.common.credentials import ENCODER_TOKEN
from cpgan_ray.config import EncoderConfig
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders import service
from cpgan_ray.evaluation.encoders.encoder import Encoder, open_black_box
from cpgan_ray.evaluation.encoders.messages import BlackBoxError, read_codes, write_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3, 6, 4)).astype(np.uint8)
MEANS = PIXELS.mean(axis=(2, 3)) / 255
"""The codes of `averages`: the mean of each colour."""


def averages(request: dict[str, Any]) -> dict[str, Any]:
    pictures = np.frombuffer(base64.b64decode(request["pictures"]), np.uint8).reshape(request["shape"])
    return {"codes": (pictures.mean(axis=(1, 2)) / 255).tolist()}


SCRIPT = """
import base64, json, sys, time
import numpy as np
for line in sys.stdin:
    request = json.loads(line)
    pictures = np.frombuffer(base64.b64decode(request["pictures"]), np.uint8).reshape(request["shape"])
    print(json.dumps({"codes": (pictures.mean(axis=(1, 2)) / 255).tolist()}), flush=True)
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Encoder]]:
    """Starts a script as a command; at the end it is closed."""
    encoders: list[Encoder] = []

    def start(script: str = SCRIPT, **settings: Any) -> Encoder:
        (tmp_path / "my encoder.py").write_text(script)
        command = f"{sys.executable} '{tmp_path}/my encoder.py'"
        encoders.append(open_black_box(command, EncoderConfig(command=command, **settings)))
        return encoders[-1]

    yield start
    for encoder in encoders:
        encoder.close()


def test_command_answers_pictures_with_codes_and_ends(started):
    encoder = started(batch_size=3)
    np.testing.assert_allclose(encoder.encode(PIXELS), MEANS, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(PIXELS[:1]), MEANS[:1], atol=1e-6)
    about = encoder.description()
    assert (about["kind"], about["black_box"], about["queries"]) == ("a command", True, 8)
    assert about["input"]["assumed"] == ["pictures have the size of the store (--encoder.size)"]
    encoder.close()
    assert [p for p in psutil.Process().children() if "my encoder.py" in " ".join(p.cmdline())] == []


def test_command_that_writes_before_it_reads_does_not_block(started):
    """Its first reply does not fit into a pipe, and neither does the request."""
    long = "import sys; print('{\"codes\": [[' + '1,' * 200_000 + '1]]}', flush=True); sys.stdin.readline()"
    encoder = started(long, timeout_s=60)
    assert encoder.encode(np.zeros((1, 3, 600, 600), np.uint8)).shape == (1, 200_001)


def test_program_of_the_page_for_auditors_is_an_encoder(started):
    page = (Path(__file__).parents[3] / "docs" / "auditing.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    pictures = np.random.default_rng(1).integers(0, 256, (5, 3, 10, 9)).astype(np.uint8)
    expected = pictures[:, :, :8, :8].reshape(5, 3, 4, 2, 4, 2).mean(axis=(3, 5)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(started(program).encode(pictures), expected.reshape(5, 48), rtol=1e-6)


COMMANDS: dict[str, tuple[str, str]] = {
    "an exception": (
        "import sys; sys.stdin.readline(); raise ValueError('no model')",
        "ended with status 1 .*ValueError: no model",
    ),
    "a crash": ("import os, sys; sys.stdin.readline(); os.abort()", "was ended by SIGABRT before it answered"),
    "an early end": ("print('x', file=__import__('sys').stderr)", "ended with status 0 before it answered, and said 'x'"),
    "a banner": ("print('loading'); input(); print('{}')", "answers 'loading', which is not JSON"),
    "too much": (
        "input(); print('{\"codes\": [' + '[0],' * 6 + '[1]]}\\nhello', flush=True); input()",
        "prints 'hello' without a request",
    ),
    "silence": ("import time; time.sleep(99)", "took longer than 1 s for one request: raise --encoder.timeout-s"),
    "an endless reply": ("import sys\nwhile True: sys.stdout.write('x' * 99999)", "took longer than 1 s|more than 256 MB"),
    "words": ('input(); print(\'{"codes": "much"}\')', "answers codes 'z' that are no rows"),
    "rows of two lengths": ("input(); print('{\"codes\": [[1], [1, 2]]}')", "no rows of equally many numbers"),
    "too few rows": ("input(); print('{\"codes\": [[1], [2]]}')", r"returns shape \(2, 1\) for 7 pictures"),
    "nothing": ("input(); print('{\"codes\": []}')", r"returns shape \(0,\) for 7 pictures"),
    "no codes": ("input(); print('{}')", "answers without codes"),
    "an error": ('input(); print(\'{"error": "out of\\\\nmemory"}\')', "answers with an error: out of memory"),
    "not a number": ("input(); print('{\"codes\": [' + '[NaN],' * 6 + '[1]]}')", "returns codes that are not finite"),
    "brackets": ("input(); print('[' * 100000)", "which is not JSON"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_command_failing_raises_one_line(case, started, tmp_path):
    script, message = COMMANDS[case]
    encoder = started(script, timeout_s=1 if case in ("silence", "an endless reply") else 60)
    with pytest.raises(InputError, match=message) as raised:
        encoder.encode(PIXELS), encoder.encode(PIXELS[:1])
    assert str(raised.value).startswith(f"encoder {sys.executable} '{tmp_path}/my encoder.py' ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "is empty"),
        ("python 'x", "cannot be split into words .*quotation marks"),
        ("/nowhere/encoder", r"cannot be started \(No such file or directory\)"),
        ("/tmp", r"cannot be started \(Permission denied\)"),
        ("a\0b", "cannot be started"),
    ],
)
def test_command_that_cannot_start_raises_one_line(command, message):
    with pytest.raises(InputError, match=message):
        open_black_box(command, EncoderConfig(command=command))


def test_command_that_ignores_its_end_is_killed(started):
    script = "import signal, subprocess, sys, time\nsubprocess.Popen(['sleep', '99'])\n" + SCRIPT + "\ntime.sleep(99)"
    encoder = started(script)
    encoder.encode(PIXELS)
    (process,) = [p for p in psutil.Process().children() if "my encoder.py" in " ".join(p.cmdline())]
    children = process.children()
    begun = time.monotonic()
    encoder.close()
    assert time.monotonic() - begun < 30
    _, alive = psutil.wait_procs([process, *children], timeout=10)
    assert alive == []


def test_black_box_with_settings_of_a_file_raises(started):
    with pytest.raises(InputError, match=r"gets pictures as they are, uint8 \(B, H, W, 3\): leave out --encoder.channel-order"):
        started(channel_order="bgr")


# --------------------------------------------------------------------------------------------------------------------------- URLs


class Server:
    """An HTTP server in a thread. `answer`: from a request's body to status, headers and body of the reply."""

    def __init__(self, answer: Callable[[bytes], tuple[int, dict[str, str], bytes]]) -> None:
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802
                server.headers.append(dict(self.headers))
                status, headers, body = answer(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # the client has stopped waiting
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/encode"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[bytes], tuple[int, dict[str, str], bytes]]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def right(body: bytes) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(averages(json.loads(body))).encode()


def test_url_answers_pictures_with_codes(serve, monkeypatch):
    monkeypatch.setenv(ENCODER_TOKEN, "token-of-a-test")
    server = serve(right)
    encoder = open_black_box(server.url, EncoderConfig(batch_size=4))
    np.testing.assert_allclose(encoder.encode(PIXELS), MEANS, atol=1e-6)
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer token-of-a-test"] * 2
    about = encoder.description()
    assert (about["file"], about["kind"], about["queries"]) == (server.url, "a URL", 7)
    assert "token-of-a-test" not in str(about)
    encoder.close()


def test_busy_url_is_asked_again(serve, monkeypatch):
    monkeypatch.setattr(service, "PAUSE_S", 0.01)
    statuses = iter((503, 429, 200))

    def busy(body: bytes) -> tuple[int, dict[str, str], bytes]:
        status = next(statuses)
        return right(body) if status == 200 else (status, {}, b"busy")

    server = serve(busy)
    np.testing.assert_allclose(open_black_box(server.url, EncoderConfig()).encode(PIXELS), MEANS, atol=1e-6)
    assert len(server.headers) == 3


REPLIES: dict[str, tuple[Callable[[bytes], tuple[int, dict[str, str], bytes]], str]] = {
    "missing page": (lambda body: (404, {}, b"<h1>no\nsuch page"), "answers with status 404 instead of 200 and '<h1>no such page'"),
    "always busy": (lambda body: (503, {}, b""), "answers with status 503"),
    "redirection": (lambda body: (302, {"Location": "http://127.0.0.1:1/"}, b""), "answers with status 302"),
    "a page": (lambda body: (200, {}, b"<html>"), "answers '<html>', which is not JSON"),
    "half a reply": (lambda body: (200, {"Content-Length": "100"}, b'{"codes"'), "does not answer|which is not JSON"),
    "too few rows": (lambda body: (200, {}, b'{"codes": [[1]]}'), r"returns shape \(1, 1\) for 7 pictures"),
}


@pytest.mark.parametrize("case", REPLIES)
def test_url_failing_raises_one_line(case, serve, monkeypatch):
    monkeypatch.setattr(service, "PAUSE_S", 0.01)
    answer, message = REPLIES[case]
    server = serve(answer)
    with pytest.raises(InputError, match=message) as raised:
        open_black_box(server.url, EncoderConfig()).encode(PIXELS)
    assert str(raised.value).startswith(f"encoder {server.url} ")
    assert "\n" not in str(raised.value)


def test_slow_url_raises_one_line(serve, monkeypatch):
    monkeypatch.setattr(service, "RETRIES", 0)

    def slow(body: bytes) -> tuple[int, dict[str, str], bytes]:
        time.sleep(3)
        return right(body)

    server = serve(slow)
    with pytest.raises(InputError, match=r"does not answer \(it took longer than 1 s, see --encoder.timeout-s"):
        open_black_box(server.url, EncoderConfig(timeout_s=1)).encode(PIXELS)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/encode", r"does not answer \(.*refused.*\): start the service, or correct the URL"),
        ("http://", "is not a URL such as http://127.0.0.1:8000/encode"),
        ("http://host:99999/", "is not a URL"),
        ("http://alice:secret-of-alice@127.0.0.1:1/", rf"holds a user or a password: leave them out, and set {ENCODER_TOKEN}"),
    ],
)
def test_bad_url_raises_one_line_without_secrets(url, message, monkeypatch):
    monkeypatch.setattr(service, "PAUSE_S", 0.01)
    with pytest.raises(InputError, match=message) as raised:
        open_black_box(url, EncoderConfig()).encode(PIXELS)
    assert "secret-of-alice" not in str(raised.value)


# ----------------------------------------------------------------------------------------------------------------------- messages


def test_messages_hold_pictures_and_named_outputs():
    request = json.loads(write_pictures(PIXELS.transpose(0, 2, 3, 1)))
    assert request["shape"] == [7, 6, 4, 3]
    np.testing.assert_allclose(averages(request)["codes"], MEANS)
    outputs = read_codes(b'{"codes": {"age": [1, 2], "face": [[[0.5]], [[1.5]]], "male": [true, false]}}')
    assert {name: (values.shape, values.dtype.kind) for name, values in outputs.items()} == {
        "age": ((2,), "i"),
        "face": ((2, 1, 1), "f"),
        "male": ((2,), "b"),
    }


@pytest.mark.parametrize("codes", ["null", '["1"]', "[[1], null]", '{"a": {}}', "[[[1]], [2]]", "[1e999, {}]"])
def test_read_codes_of_anything_else_raises(codes):
    with pytest.raises(BlackBoxError, match="no rows of equally many numbers"):
        read_codes(f'{{"codes": {codes}}}'.encode())

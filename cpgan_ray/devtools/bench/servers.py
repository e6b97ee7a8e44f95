"""The servers that the benchmark compares: the service, its application behind plain uvicorn, and MLflow's server."""

import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import urllib3

from cpgan_ray.common.codec import LevelCodec
from cpgan_ray.deploy.bundle import HEAD, Bundle
from cpgan_ray.deploy.client import ANSWERS
from cpgan_ray.deploy.message import CONTENT_TYPE, write_message
from cpgan_ray.devtools.bench import plain_server
from cpgan_ray.devtools.serving.process import clean_environment, end, last_line, serving
from cpgan_ray.errors import InputError

START_S = 180.0
UNLIMITED = "1e9"
"""Requests a second of a key."""


@dataclass(frozen=True)
class Server:
    """A running server, and what it wants to get."""

    port: int
    path: str
    headers: Mapping[str, str]
    body: Callable[[np.ndarray], bytes]
    """Of a request, for codes z (B, k)."""


@contextmanager
def service(bundle: Bundle, folder: Path, *, processes: int) -> Iterator[Server]:
    """`jobs/serve.py`."""
    place = folder / "service"
    place.mkdir()
    with serving(bundle.path, place, replicas=processes, flags=["--limits.rate", UNLIMITED]) as running:
        yield messages(bundle, running.port, running.key)


@contextmanager
def uvicorn(bundle: Bundle, folder: Path, *, processes: int) -> Iterator[Server]:
    """The service's application behind plain uvicorn, with as many processes."""
    key, port = secrets.token_urlsafe(24), free_port()
    variables = {plain_server.BUNDLE: str(bundle.path.resolve()), plain_server.KEY: key}
    flags = ["--factory", "--workers", str(processes), "--no-access-log", "--log-level", "warning", "--lifespan", "off"]
    command = ["uvicorn", f"{plain_server.__name__}:application", "--port", str(port), *flags]
    with running_process(command, folder / "uvicorn.log", health=f"http://127.0.0.1:{port}/healthz", **variables):
        yield messages(bundle, port, key)


@contextmanager
def mlflow(bundle: Bundle, folder: Path, *, processes: int) -> Iterator[Server]:
    """`mlflow models serve` with the utility head; codes are numbers in JSON."""
    from cpgan_ray.tracking.saved_model import save_onnx

    save_onnx(bundle.files[HEAD], folder / "model", k=bundle.manifest.k, num_logits=bundle.manifest.num_logits)
    port = free_port()
    flags = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", str(processes)]
    command = ["mlflow", "models", "serve", "--model-uri", str(folder / "model"), *flags]

    def body(z: np.ndarray) -> bytes:
        return json.dumps({"inputs": z.tolist()}).encode()

    with running_process(command, folder / "mlflow.log", health=f"http://127.0.0.1:{port}/ping"):
        yield Server(port, "/invocations", {"Content-Type": "application/json"}, body)


SERVERS: Mapping[str, Callable[..., AbstractContextManager[Server]]] = {"service": service, "uvicorn": uvicorn, "mlflow": mlflow}


def messages(bundle: Bundle, port: int, key: str) -> Server:
    """A server that takes messages, in the shorter coding, as the client sends them."""

    def body(z: np.ndarray) -> bytes:
        codec = bundle.codec
        if isinstance(codec, LevelCodec):
            z = codec.codes(codec.levels(z))
        return min((write_message(z, codec, digest=bundle.digest, coding=c) for c in codec.codings), key=len)

    return Server(port, ANSWERS, {"Authorization": f"Bearer {key}", "Content-Type": CONTENT_TYPE}, body)


@contextmanager
def running_process(command: Sequence[str], log: Path, *, health: str, **variables: str) -> Iterator[None]:
    """A program of this environment, as soon as its URL answers 200.

    Raises: InputError with its last line if it ends or does not answer.
    """
    folder = Path(sys.executable).parent
    environment = clean_environment(PATH=f"{folder}:/usr/bin:/bin", MLFLOW_DISABLE_TELEMETRY="true", **variables)
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(folder / command[0]), *command[1:]],
            stdout=output,
            stderr=output,
            text=True,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while not answers(health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise InputError(f"{command[0]} does not start: {last_line(log.read_text(errors='replace'))}")
            time.sleep(0.2)
        yield
    finally:
        end(process)


def answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, timeout=5.0, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]

"""Clients of an HTTP server, in a process of their own: each sends its next request as soon as it has the reply.

    python -m cpgan_ray.devtools.bench.load < ORDER      # prints a JSON object

Each client has one connection. The requests are bytes that are made beforehand, and httptools reads the replies, so that the
clients take little of the CPU time that the server needs.
"""

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httptools
import numpy as np
import uvloop

SETTLE_S = 0.5
"""Replies of the first seconds do not count."""
END_S = 60.0
"""How much longer than its time a load may take, as the last replies come late."""


@dataclass(frozen=True)
class Order:
    """What the clients send, where to and for how long."""

    port: int
    path: str
    headers: dict[str, str]
    bodies: list[str]
    """Hexadecimal; the clients take turns."""
    clients: int
    seconds: float


def measure_load(order: Order) -> dict[str, Any]:
    """Run the clients in a process. Returns `requests_s`, `p50_ms`, `p99_ms`, `load_cpu` (the cores that the clients took) and
    `problem`: None, or the reason why there are no numbers."""
    command = [sys.executable, "-m", "cpgan_ray.devtools.bench.load"]
    done = subprocess.run(
        command, input=json.dumps(asdict(order)), capture_output=True, text=True, timeout=order.seconds + END_S + 60
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"the load ends with status {done.returncode}: {lines[-1] if lines else ''}")
    return json.loads(done.stdout)


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, requests: Sequence[bytes], first: int, settled: float, until: float) -> None:
        self.requests, self.number, self.settled, self.until = requests, first, settled, until
        self.seconds: list[float] = []
        """Of each reply after the settling time."""
        self.finished: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        """None at the end, or what went wrong."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.begun = time.perf_counter()
        self.transport.write(self.requests[self.number % len(self.requests)])
        self.number += 1

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as e:
            self._end(f"the reply is no HTTP ({e})")

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        if (status := self.parser.get_status_code()) != 200:
            self._end(f"status {status}")
            return
        if self.begun >= self.settled:
            self.seconds.append(now - self.begun)
        if now < self.until and self.parser.should_keep_alive():
            self._send()
        else:
            self._end(None if now >= self.until else "the server closes connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection is lost ({exc or 'closed'})")

    def _end(self, problem: str | None) -> None:
        if not self.finished.done():
            self.finished.set_result(problem)
        self.transport.close()


async def run_clients(order: Order) -> dict[str, Any]:
    """Ask for `order.seconds`, and count."""
    requests = [request_of(order, bytes.fromhex(body)) for body in order.bodies]
    loop, begun = asyncio.get_running_loop(), time.perf_counter()
    settled = begun + min(SETTLE_S, order.seconds / 4)
    until = begun + order.seconds
    before = resource.getrusage(resource.RUSAGE_SELF)
    made = [
        loop.create_connection(lambda first=first: Client(requests, first, settled, until), "127.0.0.1", order.port)
        for first in range(order.clients)
    ]
    clients = [protocol for _, protocol in await asyncio.gather(*made)]
    try:
        async with asyncio.timeout(order.seconds + END_S):
            problems = await asyncio.gather(*(client.finished for client in clients))
    except TimeoutError:
        problems = [f"no reply within {END_S:g} s"]
    used = resource.getrusage(resource.RUSAGE_SELF)
    lasted = time.perf_counter() - settled
    seconds = [value for client in clients for value in client.seconds]
    problem = next(filter(None, problems), None) or (None if seconds else "no reply after the settling time")
    if problem:
        return {"requests_s": None, "p50_ms": None, "p99_ms": None, "load_cpu": None, "problem": problem}
    return {
        "requests_s": len(seconds) / lasted,
        "p50_ms": 1e3 * float(np.quantile(seconds, 0.5)),
        "p99_ms": 1e3 * float(np.quantile(seconds, 0.99)),
        "load_cpu": (used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime) / (time.perf_counter() - begun),
        "problem": None,
    }


def request_of(order: Order, body: bytes) -> bytes:
    """The bytes of a POST request."""
    headers = {"Host": "127.0.0.1", **order.headers, "Content-Length": str(len(body))}
    lines = [f"POST {order.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run_clients(Order(**json.load(sys.stdin))))))

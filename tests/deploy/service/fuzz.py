"""Send bad requests to a service, and check that each gets a 4xx reply, or codes by chance an answer; and that it stays healthy.

    python -m tests.deploy.service.fuzz BUNDLE HOST:PORT NUMBER     # the key is in CPGAN_API_KEY

Kinds: random bytes; a message or JSON with changed bytes, cut, or with too much; a body above the limit; a head that is none;
another media type, path or key; and clients that send a byte at a time (slow-loris).
"""

import asyncio
import collections
import contextlib
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cpgan_ray.common.codec import BytesError
from cpgan_ray.deploy.bundle import Bundle, read_bundle
from cpgan_ray.deploy.message import read_message
from tests.deploy.service.requests import as_json, message

CLIENTS, SLOW_CLIENTS = 16, 64
REPLY_S = 60.0


@dataclass
class Outcome:
    """What came back."""

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    """Status -> requests; 0: the connection was closed without a reply."""
    wrong: list[str] = field(default_factory=list)
    """Requests with a reply that no bad request gets."""


class Fuzzer:
    """Makes bad requests, the same ones for a seed."""

    def __init__(self, bundle: Bundle, key: str, *, seed: int) -> None:
        self.bundle, self.key, self.random = bundle, key, random.Random(seed)
        self.messages = [message(bundle, n, coding=coding) for n in (1, 3, 20) for coding in bundle.codec.codings]
        self.json = as_json(bundle, 2)
        self.kinds: list[Callable[[], tuple[bytes, bool]]] = [
            self.random_body, self.mutated, self.mutated, self.truncated, self.extended, self.mutated_json, self.oversized,
            self.other_type, self.other_key, self.other_path, self.broken_head, self.short_body, self.chunked,
        ]  # fmt: skip

    def request(self) -> tuple[bytes, bool]:
        """The bytes of a request, and whether codes in it may be valid by chance."""
        return self.random.choice(self.kinds)()

    def post(self, body: bytes, kind: str = "application/vnd.cpgan.codes", length: int | None = None) -> bytes:
        head = f"POST /v1/answers HTTP/1.1\r\nHost: bob\r\nAuthorization: Bearer {self.key}\r\nContent-Type: {kind}\r\n"
        return (head + f"Content-Length: {len(body) if length is None else length}\r\n\r\n").encode() + body

    def random_body(self) -> tuple[bytes, bool]:
        return self.post(self.random.randbytes(self.random.randrange(300))), True

    def mutated(self) -> tuple[bytes, bool]:
        body = bytearray(self.random.choice(self.messages))
        for _ in range(self.random.randint(1, 4)):
            body[self.random.randrange(len(body))] = self.random.randrange(256)
        return self.post(bytes(body)), True

    def truncated(self) -> tuple[bytes, bool]:
        body = self.random.choice(self.messages)
        return self.post(body[: self.random.randrange(len(body))]), True

    def extended(self) -> tuple[bytes, bool]:
        return self.post(self.random.choice(self.messages) + self.random.randbytes(self.random.randint(1, 50))), True

    def mutated_json(self) -> tuple[bytes, bool]:
        body = bytearray(self.json)
        for _ in range(self.random.randint(1, 4)):
            body[self.random.randrange(len(body))] = self.random.choice(b'{}[]",:0123456789.eE-truefalsn \xff\x00')
        return self.post(bytes(body), "application/json"), True

    def oversized(self) -> tuple[bytes, bool]:
        if self.random.random() < 0.02:
            return self.post(bytes((1 << 20) + 1)), False
        return self.post(b"", length=self.random.choice([(1 << 20) + 1, 1 << 40, 1 << 62])), False

    def other_type(self) -> tuple[bytes, bool]:
        kind = self.random.choice(["image/jpeg", "image/png", "text/html", "multipart/form-data; boundary=x", ""])
        return self.post(self.random.choice(self.messages), kind), False

    def other_key(self) -> tuple[bytes, bool]:
        key = self.random.choice(["", self.key[:-1], self.key + "x", self.key.swapcase(), "x" * 5000])
        return self.post(self.messages[0]).replace(self.key.encode(), key.encode()), False

    def other_path(self) -> tuple[bytes, bool]:
        path = self.random.choice([b"/v1/answers/", b"/v2/answers", b"/%2e%2e/etc/passwd", b"/v1/answers%00", b"/" + b"a" * 4000])
        return self.post(self.messages[0]).replace(b"/v1/answers", path, 1), False

    def broken_head(self) -> tuple[bytes, bool]:
        return self.random.choice(
            [
                self.random.randbytes(40) + b"\r\n\r\n",
                b"GET\r\n\r\n",
                b"POST /v1/answers HTTP/9.9\r\n\r\n",
                b"CONNECT bob:80 HTTP/1.1\r\n\r\n",
                b"POST /v1/answers HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                b"POST /v1/answers HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"GET /v1/spec HTTP/1.1\r\nHost: bob\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
                b"GET /v1/spec HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
            ]
        ), False

    def short_body(self) -> tuple[bytes, bool]:
        """The client stops in the middle of a body."""
        body = self.random.choice(self.messages)
        return self.post(body[: len(body) // 2], length=len(body)), False

    def chunked(self) -> tuple[bytes, bool]:
        body = self.post(self.messages[0]).replace(b"Content-Length: %d" % len(self.messages[0]), b"Transfer-Encoding: chunked")
        head = body[: body.index(b"\r\n\r\n") + 4]
        return head + self.random.choice([b"zz\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n"]), False

    def may_be_answered(self, request: bytes) -> bool:
        """Whether the body is codes after all."""
        body = request.partition(b"\r\n\r\n")[2]
        if b"application/json" in request:
            return True  # a changed digit is another valid level
        try:
            read_message(body, self.bundle.codec, digest=self.bundle.digest, max_codes=256)
        except BytesError:
            return False
        return True


async def status_of(host: str, port: int, request: bytes) -> int:
    """Send a request and half-close the connection. Returns the status of the reply, 0 if there is none."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return -1
    try:
        writer.write(request)
        with contextlib.suppress(OSError):  # the service has refused it by now, and closed the connection
            writer.write_eof()
        async with asyncio.timeout(REPLY_S):
            line = await reader.readline()
        return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
    except ConnectionError:
        return 0
    finally:
        writer.transport.abort()


async def slow_loris(host: str, port: int, fuzzer: Fuzzer, outcome: Outcome, *, pause_s: float) -> None:
    """Send a request a byte at a time, until the service ends the connection."""
    request = fuzzer.post(fuzzer.messages[-1])
    reader, writer = await asyncio.open_connection(host, port)
    status = 0
    try:
        for byte in request:
            writer.write(bytes([byte]))
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    line = await reader.readline()
                status = int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
                break
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    outcome.statuses[status] += 1
    if status not in (0, 408, 503):
        outcome.wrong.append(f"{status} for a slow client")


async def fuzz(
    bundle: Bundle, host: str, port: int, *, key: str, number: int, slow: int = SLOW_CLIENTS, pause_s: float = 0.3, seed: int = 0
) -> Outcome:
    """Send `number` bad requests, and at the same time those of `slow` clients that send a byte every `pause_s` seconds."""
    fuzzer, outcome = Fuzzer(bundle, key, seed=seed), Outcome()
    left = iter(range(number))

    async def client() -> None:
        for _ in left:
            request, by_chance = fuzzer.request()
            status = await status_of(host, port, request)
            outcome.statuses[status] += 1
            valid = status == 200 and by_chance and fuzzer.may_be_answered(request)
            if not (400 <= status < 500 or status == 0 or valid):
                outcome.wrong.append(f"{status} for {request[:400]!r}")

    slow_clients = [slow_loris(host, port, fuzzer, outcome, pause_s=pause_s) for _ in range(slow)]
    await asyncio.gather(*(client() for _ in range(CLIENTS)), *slow_clients)
    return outcome


if __name__ == "__main__":
    address, _, port = sys.argv[2].rpartition(":")
    done = asyncio.run(
        fuzz(read_bundle(Path(sys.argv[1])), address, int(port), key=os.environ["CPGAN_API_KEY"], number=int(sys.argv[3]))
    )
    print(json.dumps({"statuses": dict(sorted(done.statuses.items())), "wrong": done.wrong[:20]}))
    sys.exit(bool(done.wrong))

"""Puts an ASGI application on a port that several processes of one user share, with time limits for slow clients.

Every replica listens on the port of the service itself (SO_REUSEPORT); the system gives each new connection to one of them. The
system lets only processes of the same user share a port. uvicorn's protocol reads the requests; `LimitedProtocol` adds what uvicorn
does not limit: the time and the bytes of a head and a body, the time to fetch a reply, and the number of connections.
"""

import asyncio
import contextlib
import json
import socket
import threading
from asyncio.events import TimerHandle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from cpgan_ray.config.service import ServiceLimits

MAX_HEAD_BYTES = 16 << 10
MAX_FRAMING = 8
"""Bytes on the wire for each byte of the largest body: a chunk of one byte takes six."""
BACKLOG = 1024
HANDSHAKE_S = 10.0
START_S = 30.0


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A request whose head or body comes too slowly gets 408, one with too much of either 431 or 413."""

    limits: ServiceLimits
    timer: TimerHandle | None = None
    reading_head = True
    message_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "too many connections", b"retry-after: 1\r\n")
        else:
            self._limit(self.limits.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unlimit()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.timer is None and self.reading_head:
            self._limit(self.limits.header_s)
        self.message_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.reading_head and self.message_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "the head of the request is too large")
        elif self.message_bytes > MAX_HEAD_BYTES + MAX_FRAMING * self.limits.max_body_bytes:
            self._refuse(413, "the body is too large")

    def on_headers_complete(self) -> None:
        self.reading_head = False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse(431, "the head of the request is too large")
            return
        self._limit(self.limits.body_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.reading_head, self.message_bytes = True, 0
        self._unlimit()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit(self.limits.body_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unlimit()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no HTTP request")

    def _limit(self, seconds: float) -> None:
        """The connection ends unless the next step comes in time."""
        self._unlimit()
        self.timer = self.loop.call_later(seconds, self._too_slow)

    def _unlimit(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _too_slow(self) -> None:
        self.timer = None
        if self.flow.write_paused or (self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete):
            self.transport.abort()
        else:
            self._refuse(408, "the request comes too slowly")

    def _refuse(self, status: int, reason: str, headers: bytes = b"") -> None:
        """Reply unless a reply has begun, and close the connection."""
        self._unlimit()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            content = json.dumps({"error": reason}).encode()
            head = b"content-type: application/json\r\ncache-control: no-store\r\nconnection: close\r\ncontent-length: %d\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(content) + headers + b"\r\n" + content)
        self.transport.close()


def shared_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound to a port which other processes of this user may share; it does not listen yet.

    Raises: OSError if the address is not of this machine, or a process that does not share the port uses it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


class Server:
    """A thread that serves an ASGI application."""

    def __init__(
        self, application: Any, limits: ServiceLimits, *, host: str, port: int, tls: tuple[Path, Path] | None = None
    ) -> None:
        """tls: the files of the certificate and its key.

        Raises: OSError if the port or a file cannot be used.
        """
        self.config = uvicorn.Config(
            application,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # a message may repeat what a client has sent
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=limits.idle_s,  # pyright: ignore[reportArgumentType]
            ssl_certfile=None if tls is None else str(tls[0]),
            ssl_keyfile=None if tls is None else str(tls[1]),
        )
        self.config.load()
        self.state, self.limits = ServerState(), limits
        self.socket = shared_socket(host, port)
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._listening: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    def start(self) -> None:
        """Listen, and serve until `stop`."""
        self._thread.start()
        self._call(self._listen, START_S)

    @property
    def healthy(self) -> bool:
        """Whether the thread answers and still listens."""
        try:
            return self._thread.is_alive() and self._call(self._is_serving, START_S)
        except (TimeoutError, RuntimeError):
            return False

    @property
    def port(self) -> int:
        return self.socket.getsockname()[1]

    def stop(self, *, grace_s: float) -> None:
        """Accept no more connections, finish the requests that have begun, and end the thread."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(TimeoutError, RuntimeError):
            self._call(lambda: self._drain(grace_s), grace_s + 5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _call(self, work: Callable[[], Any], timeout_s: float) -> Any:
        """Run a coroutine function in the server's thread."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(timeout_s)

    def _protocol(self) -> LimitedProtocol:
        protocol = LimitedProtocol(self.config, self.state, {}, _loop=self.loop)
        protocol.limits = self.limits
        return protocol

    async def _listen(self) -> None:
        handshake = None if self.config.ssl is None else HANDSHAKE_S
        self._listening = await self.loop.create_server(
            self._protocol, sock=self.socket, ssl=self.config.ssl, ssl_handshake_timeout=handshake, backlog=BACKLOG
        )

    async def _is_serving(self) -> bool:
        return self._listening is not None and self._listening.is_serving()

    async def _drain(self, grace_s: float) -> None:
        if self._listening is not None:
            self._listening.close()
        for connection in list(self.state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.state.connections:
                    await asyncio.sleep(0.02)
        for connection in list(self.state.connections):
            connection.transport.abort()

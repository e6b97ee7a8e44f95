"""The server on a real port, without Ray: time limits, sizes, connections, TLS, a shared port, bad requests, and its end."""

import asyncio
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cpgan_ray.config.service import ServiceLimits
from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.client import Client
from cpgan_ray.deploy.message import CONTENT_TYPE
from cpgan_ray.deploy.service.server import MAX_HEAD_BYTES, Server
from tests.deploy.bundles import SIDE, smooth_pictures
from tests.deploy.certificates import Certificate
from tests.deploy.service.fuzz import fuzz
from tests.deploy.service.requests import AUTHORIZATION, KEY, application_of, message

QUICK = ServiceLimits(header_s=0.4, body_s=0.4, idle_s=0.4, max_connections=4)
PATIENT = ServiceLimits(header_s=60, body_s=60)
PICTURES = list(smooth_pictures(3, (3, SIDE, SIDE), seed=1))


@contextmanager
def serving(bundle: Bundle, limits: ServiceLimits = PATIENT, **options: object) -> Iterator[Server]:
    server = Server(application_of(bundle, limits=limits), limits, host="127.0.0.1", **({"port": 0} | options))  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop(grace_s=1)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    with serving(bundle) as server:
        yield server


@pytest.fixture(scope="module")
def quick(bundle: Bundle) -> Iterator[Server]:
    with serving(bundle, QUICK) as server:
        yield server


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def reply_to(server: Server, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Everything that comes back until the service closes the connection."""
    with connect(server) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            while more := connection.recv(1 << 16):
                received += more
        except ConnectionError:
            pass
        return received


def head(*, length: int, path: str = "/v1/answers") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: bob", f"Authorization: Bearer {KEY}", f"Content-Type: {CONTENT_TYPE}"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def test_client_gets_answers_over_one_connection(bundle, server):
    with Client(bundle, f"http://127.0.0.1:{server.port}", api_key=KEY) as client:
        assert client.answers(PICTURES) == client.answers(PICTURES)
        assert client.spec()["digest"] == bundle.digest
        assert client.connection is not None
        assert client.connection.retries == 0


def test_replies_have_no_banner_and_no_time(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/v1/spec", headers=AUTHORIZATION)
    reply = connection.getresponse()
    assert reply.status == 200
    assert {"server", "date", "x-powered-by"} & {name.lower() for name, _ in reply.getheaders()} == set()
    connection.close()


@pytest.mark.parametrize(
    "parts",
    [(b"",), (b"POST /v1/ans",), (b"POST /v1/answers HTTP/1.1\r\nX-A: b\r\n",), (head(length=100) + b"\1\0",)],
    ids=["nothing", "a line", "a head", "a body"],
)
def test_slow_client_is_refused_after_the_time_limit(quick, parts):
    begun = time.monotonic()
    assert reply_to(quick, *parts).startswith(b"HTTP/1.1 408 ")
    assert 0.3 < time.monotonic() - begun < 10


def test_client_that_sends_a_byte_at_a_time_is_refused(quick):
    begun = time.monotonic()
    reply_to(quick, *(bytes([byte]) for byte in head(length=10)), pause_s=0.05)
    assert time.monotonic() - begun < 8, "all bytes would take longer"


def test_idle_connection_is_closed(quick):
    assert reply_to(quick, b"GET /healthz HTTP/1.1\r\nHost: bob\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_client_that_does_not_fetch_its_reply_is_cut_off(bundle):
    limits = ServiceLimits(body_s=0.4)
    with serving(bundle, limits) as server, connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = message(bundle, 256)
        connection.sendall((head(length=len(body)) + body) * 200)
        wait_until(lambda: server.state.connections, "the connection is not there")
        wait_until(lambda: not server.state.connections, "the connection stays open")


def test_connections_above_the_limit_get_503_until_others_end(bundle):
    with serving(bundle, ServiceLimits(max_connections=3)) as server:
        open_ones = [connect(server) for _ in range(3)]
        wait_until(lambda: len(server.state.connections) == 3, "the connections are not open")
        reply = reply_to(server)
        assert reply.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in reply
        for connection in open_ones:
            connection.close()
        wait_until(lambda: not server.state.connections, "the connections stay open")
        with Client(bundle, f"http://127.0.0.1:{server.port}", api_key=KEY) as client:
            assert len(client.answers(PICTURES)) == 3


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 2 * MAX_HEAD_BYTES, (431,)),
        (b"GET /" + b"x" * 2 * MAX_HEAD_BYTES, (431,)),
        (b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES, (431,)),
        (b"not HTTP at all\r\n\r\n", (400,)),
        (b"\x16\x03\x01\x02\x00\x01\x00", (400,)),
        (b"CONNECT bob:80 HTTP/1.1\r\n\r\n", (400, 404)),
        (b"GET * HTTP/1.1\r\nConnection: close\r\n\r\n", (400, 404)),
        (head(length=1 << 40), (413,)),
    ],
)
def test_head_that_is_none_or_too_large_is_refused(server, request_bytes, statuses):
    with connect(server) as connection:
        connection.sendall(request_bytes)
        reply = connection.recv(1 << 16)
    assert int(reply.split()[1]) in statuses
    assert b'{"error": ' in reply


def test_trailers_without_end_are_cut_off(bundle):
    with serving(bundle, ServiceLimits(max_body_bytes=64)) as server, connect(server) as connection:
        request = head(length=0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"0\r\n"
        connection.sendall(request)
        with pytest.raises(ConnectionError):
            send_trailers(connection)


def test_websocket_is_refused(server):
    request = b"GET /v1/spec HTTP/1.1\r\nHost: bob\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(request)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 401 ")


def test_two_servers_share_a_port_and_one_answers_after_the_other(bundle, server):
    with serving(bundle, port=server.port) as second:
        assert second.port == server.port
        assert second.healthy
    assert not second.healthy
    for _ in range(5):
        assert reply_to(server, b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_port_of_a_process_that_does_not_share_it_is_refused(bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        Server(application_of(bundle), ServiceLimits(), host="127.0.0.1", port=taken.getsockname()[1])


def test_request_that_has_begun_is_answered_when_the_server_stops(bundle):
    with serving(bundle) as server, connect(server) as connection:
        body = message(bundle)
        connection.sendall(head(length=len(body)) + body[:-1])
        wait_until(lambda: server.state.connections, "the connection is not there")
        thread = threading.Thread(target=server.stop, kwargs={"grace_s": 10})
        thread.start()
        time.sleep(0.2)
        connection.sendall(body[-1:])
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        thread.join()


def test_tls_carries_answers_and_refuses_plain_requests(bundle, certificate: Certificate):
    context = ssl.create_default_context(cafile=certificate[0])
    with serving(bundle, tls=certificate) as server:
        with Client(bundle, f"https://127.0.0.1:{server.port}", api_key=KEY, context=context) as client:
            assert len(client.answers(PICTURES)) == 3
        assert b"200" not in reply_to(server, b"GET /healthz HTTP/1.1\r\n\r\n")


def test_bad_requests_get_4xx_and_the_service_stays_healthy(bundle, server):
    outcome = asyncio.run(fuzz(bundle, "127.0.0.1", server.port, key=KEY, number=1500, slow=0))
    assert outcome.wrong == []
    assert outcome.statuses.total() == 1500
    assert {400, 401, 404, 413, 415, 422, 431} <= outcome.statuses.keys()
    with Client(bundle, f"http://127.0.0.1:{server.port}", api_key=KEY) as client:
        assert len(client.answers(PICTURES)) == 3


def send_trailers(connection: socket.socket) -> None:
    for _ in range(1000):
        connection.sendall(b"X: y\r\n" * 1000)
        time.sleep(0.001)


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)

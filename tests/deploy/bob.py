"""A service for tests of the client: it speaks docs/wire-format.md, answers with the utility head, and fails on request."""

import contextlib
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cpgan_ray.deploy.answers import probabilities
from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.codec import BytesError
from cpgan_ray.deploy.message import read_message
from tests.deploy.bundles import expected_logits

KEY = "the-key-of-this-test"


@dataclass
class Bob:
    """What the service does and has seen."""

    bundle: Bundle
    url: str = ""
    failures: list[int | str] = field(default_factory=list)
    """Replies before the next good one: a status, `drop` (close the connection), `cut` (close it in the middle of the reply) or
    `hang` (send nothing for a while)."""
    bodies: list[bytes] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)
    content_types: set[str | None] = field(default_factory=set)

    def reply(self, body: bytes, key: str | None) -> tuple[int, dict[str, object]]:
        if key != f"Bearer {KEY}":
            return 401, {"error": "no such key"}
        try:
            z = read_message(body, self.bundle.codec, digest=self.bundle.digest, max_codes=256)
        except BytesError as e:
            return 422, {"error": str(e)}
        return 200, {"answers": probabilities(expected_logits(self.bundle, z), self.bundle.manifest.labels)}


@contextmanager
def serve(bundle: Bundle, *, certificate: tuple[Path, Path] | None = None) -> Iterator[Bob]:
    """certificate: the files of a certificate and its key, for TLS."""
    bob, open_connections = Bob(bundle), list[socket.socket]()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            bob.connections.add(self.connection.fileno())
            open_connections.append(self.connection)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bob.bodies.append(body)
            bob.content_types.add(self.headers["Content-Type"])
            failure = bob.failures.pop(0) if bob.failures else None
            if failure == "drop":
                self.close_connection = True
                return
            if failure == "hang":
                time.sleep(1)
                self.close_connection = True
                return
            status, values = (
                (failure, {"error": "busy"}) if isinstance(failure, int) else bob.reply(body, self.headers["Authorization"])
            )
            content = json.dumps(values).encode() if failure != "html" else b"<html>"
            self.send_response(200 if failure == "html" else status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if failure == "cut" else content)
            self.close_connection |= failure == "cut"

        def do_GET(self) -> None:
            content = json.dumps({"digest": bundle.digest, "manifest": dict(bundle.manifest.values)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # a client that breaks off is part of the tests
    bob.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield bob
    finally:
        server.shutdown()
        thread.join()
        for connection in open_connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()

"""A server for tests of the page: it serves the page's files and answers from codes. It records what it is sent."""

import http.server
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.page import HEADERS, PageFile
from tests.deploy.bob import Bob


@dataclass
class Site:
    """What the server has received."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def serve_page(bundles: Sequence[Bundle], files: Mapping[str, PageFile]) -> Iterator[Site]:
    site = Site()
    bobs = {bundle.digest[:8]: Bob(bundle) for bundle in bundles}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            site.paths.append(self.path)
            file = files.get(self.path)
            if file is None:
                self.reply(404, b"{}", "application/json")
            else:
                self.reply(200, file.content, file.media_type)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            site.bodies.append(body)
            bob = bobs.get(body[4:8].hex(), next(iter(bobs.values())))
            status, values = bob.reply(body, self.headers["Authorization"])
            self.reply(status, json.dumps(values).encode(), "application/json")

        def reply(self, status: int, content: bytes, media_type: str) -> None:
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Type": media_type, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

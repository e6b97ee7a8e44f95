"""A web server on this machine with prepared responses."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Response = tuple[int, Mapping[str, str], bytes]


@contextlib.contextmanager
def serving(
    responses: Mapping[str, Response], *, authorization: str | None = None
) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Runs the server; yields its `host:port`, and the path and Authorization header of each request so far.

    With `authorization`, paths below /v2/ require this header. `{address}` in a header's value is replaced by the server's address.
    """
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            seen.append((self.path, given))
            status, headers, body = responses.get(self.path.partition("?")[0], (404, {}, b"not found"))
            if authorization is not None and self.path.startswith("/v2/") and given != authorization:
                status, headers, body = responses["challenge"]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value.replace("{address}", address))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield address, seen
        finally:
            server.shutdown()
            thread.join()

"""An S3 server for tests with the requests that pyarrow needs: its buckets are folders, and it counts reads."""

import contextlib
import email.utils
import hashlib
import io
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ERRORS = {403: "AccessDenied", 404: "NoSuchKey"}


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    """Connections that may wait to be accepted; beyond this number (by default five) clients must connect again."""


class Store:
    """An object store whose objects are the files in `folder`; the first level of subfolders are the buckets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reads: Counter[str] = Counter()
        """Object name -> number of complete or partial reads."""
        self.denied: set[tuple[str, str]] = set()
        """Method and path (or beginning of a path) of requests that are denied."""
        self.keys: set[str] = set()
        """Access keys that were used."""
        self.parts: dict[str, dict[int, bytes]] = {}
        self.server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"store": self}))
        self.port: int = self.server.server_port

    def uri(self, path: str, *, credentials: str = "") -> str:
        return f"s3://{credentials}{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"


def remove_chunks(stream: IO[bytes]) -> bytes:
    content = b""
    while size := int(stream.readline().partition(b";")[0], 16):
        content += stream.read(size)
        stream.readline()
    while stream.readline().strip():  # checksums
        pass
    return content


class Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def respond(self, code: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code: int, *, kind: str = "") -> None:
        self.respond(code, f"<Error><Code>{kind or ERRORS[code]}</Code><Message>no</Message></Error>".encode())

    def body(self) -> bytes:
        """The content of a request, without HTTP chunks and S3 signature chunks."""
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        content = remove_chunks(self.rfile) if chunked else self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return remove_chunks(io.BytesIO(content)) if "aws-chunked" in self.headers.get("Content-Encoding", "") else content

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path).strip("/"), parse_qs(url.query, keep_blank_values=True)
        content = self.body()
        self.store.keys.add(self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0])
        if any(self.command == method and path.startswith(begin) for method, begin in self.store.denied):
            return self.refuse(403)
        bucket, _, key = path.partition("/")
        file = self.store.folder / path
        if not (self.store.folder / bucket).is_dir():
            return self.refuse(404, kind="NoSuchBucket")
        match self.command:
            case "GET" if not key:
                return self.list_objects(bucket, query.get("prefix", [""])[0], delimited="delimiter" in query)
            case "GET" | "HEAD":
                return self.get(path, file) if key else self.respond(200)
            case "PUT":
                return self.put(file, content, query)
            case "POST":
                return self.multipart(file, query)
        return self.refuse(403)

    do_GET = do_HEAD = do_PUT = do_POST = handle_any

    def get(self, path: str, file: Path) -> None:
        if not file.is_file():
            return self.refuse(404)
        content, changed = file.read_bytes(), email.utils.formatdate(file.stat().st_mtime, usegmt=True)
        if self.command == "HEAD":
            return self.respond(200, Content_Length=str(len(content)), Last_Modified=changed)
        self.store.reads[path] += 1
        if range_header := self.headers.get("Range"):
            first, last = (int(edge) for edge in range_header.removeprefix("bytes=").split("-"))
            content = content[first : last + 1]
        return self.respond(206 if range_header else 200, content, Last_Modified=changed)

    def list_objects(self, bucket: str, prefix: str, *, delimited: bool) -> None:
        root = self.store.folder / bucket
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        names = [name for name in names if name.startswith(prefix)]
        folders = {prefix + name[len(prefix) :].partition("/")[0] + "/" for name in names if "/" in name[len(prefix) :]}
        keys = [name for name in names if not (delimited and "/" in name[len(prefix) :])]
        entries = [
            f"<Contents><Key>{escape(name)}</Key><Size>{(root / name).stat().st_size}</Size><LastModified>"
            f"{email.utils.parsedate_to_datetime(email.utils.formatdate((root / name).stat().st_mtime)):%Y-%m-%dT%H:%M:%S.000Z}"
            "</LastModified></Contents>"
            for name in keys
        ]
        entries += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders) if delimited]
        counted = f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>false</IsTruncated>"
        self.respond(200, f"<ListBucketResult><Name>{bucket}</Name>{counted}{''.join(entries)}</ListBucketResult>".encode())

    def put(self, path: Path, content: bytes, query: dict[str, list[str]]) -> None:
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        if "uploadId" in query:
            self.store.parts[query["uploadId"][0]][int(query["partNumber"][0])] = content
        else:
            self.write(path, content)
        self.respond(200, ETag=tag)

    def multipart(self, path: Path, query: dict[str, list[str]]) -> None:
        if "uploads" in query:
            name = str(len(self.store.parts))
            self.store.parts[name] = {}
            response = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
        else:
            parts = self.store.parts[query["uploadId"][0]]
            self.write(path, b"".join(parts[number] for number in sorted(parts)))
            response = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        self.respond(200, response.encode())

    def write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Store]:
    store = Store(folder)
    thread = threading.Thread(target=store.server.serve_forever)
    thread.start()
    try:
        yield store
    finally:
        store.server.shutdown()
        store.server.server_close()
        thread.join()

"""Eve on the wire: a proxy between client and service that records every byte, and what she reads in the record."""

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httptools
import numpy as np

from tests.common.test_codec import Spelled


@dataclass
class Connection:
    """The bytes of one connection, in both directions."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


@dataclass
class Record:
    """All connections through the proxy."""

    port: int
    connections: list[Connection] = field(default_factory=list)

    @property
    def sent(self) -> list[bytes]:
        """What clients have sent, a connection each."""
        return [bytes(connection.sent) for connection in self.connections]

    @property
    def everything(self) -> bytes:
        return b"".join(bytes(part) for c in self.connections for part in (c.sent, c.received))


@contextmanager
def wiretap(port: int) -> Iterator[Record]:
    """A port that leads to another port of this machine; whatever goes through is recorded."""
    listener = socket.create_server(("127.0.0.1", 0))
    record, sockets, threads = Record(listener.getsockname()[1]), [listener], list[threading.Thread]()

    def start(work: object, *args: object) -> None:
        threads.append(threading.Thread(target=work, args=args))  # type: ignore[arg-type]
        threads[-1].start()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                service = socket.create_connection(("127.0.0.1", port))
                sockets.extend((client, service))
                record.connections.append(one := Connection())
                start(pump, client, service, one.sent)
                start(pump, service, client, one.received)

    def pump(source: socket.socket, target: socket.socket, copy: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                copy.extend(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    start(accept)
    try:
        yield record
    finally:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in threads:
            thread.join()


@dataclass
class Request:
    """A recorded HTTP request."""

    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def read_requests(sent: bytes) -> list[Request]:
    """The requests in the bytes that a client has sent over one connection. Fails if there is anything else."""
    requests: list[Request] = []

    class Reader:
        def on_message_begin(self) -> None:
            requests.append(Request())

        def on_url(self, url: bytes) -> None:
            requests[-1].path += url.decode()

        def on_header(self, name: bytes, value: bytes) -> None:
            requests[-1].headers[name.decode().lower()] = value.decode()

        def on_body(self, body: bytes) -> None:
            requests[-1].body += body

    httptools.HttpRequestParser(Reader()).feed_data(sent)
    return requests


def read_levels(message: bytes, codec: dict) -> np.ndarray:
    """The levels (B, k) of a message, by the words of docs/wire-format.md only: codec is the content of `codec.json`."""
    assert message[0] == 1
    coding, count = message[1], int.from_bytes(message[2:4], "little")
    k, num_levels = codec["k"], codec["highest"] - codec["lowest"] + 1
    if coding == 1:
        words = np.frombuffer(message[8:], "<u4").tolist()
        symbols = Spelled(tuple(codec["frequencies"])).decode(words, count * k)
        return np.array(symbols).reshape(count, k) + codec["lowest"]
    bits = math.ceil(math.log2(num_levels))
    size = math.ceil(k * bits / 8)
    assert len(message) == 8 + count * size
    rows = []
    for start in range(8, len(message), size):
        text = "".join(f"{byte:08b}" for byte in message[start : start + size])
        rows.append([int(text[i * bits : (i + 1) * bits], 2) for i in range(k)])
    return np.array(rows) + codec["lowest"]

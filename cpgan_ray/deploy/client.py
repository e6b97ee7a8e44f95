"""The client: turns pictures into codes on this machine, sends only the codes, and returns the answers.

    from cpgan_ray.deploy.client import Client

    client = Client("bundle", "https://bob.example", api_key="...")
    client.answers(["a.jpg", "b.jpg"])     # [{"Male": 0.93, "Smiling": 0.08}, {...}]
    client.encode(["a.jpg"])               # the bytes that would be sent

    python -m cpgan_ray.deploy.client BUNDLE URL PICTURE...     # prints a table; the key is in CPGAN_API_KEY

It imports only the standard library, numpy, Pillow and onnxruntime, and for the entropy-coded form constriction: neither torch nor
Ray has to be installed.
"""

import argparse
import contextlib
import json
import os
import ssl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.common.codec import PLAIN, RANGE, BytesError, LevelCodec
from cpgan_ray.common.noise import draw_noise
from cpgan_ray.deploy.answers import Answer, is_answer
from cpgan_ray.deploy.bundle import PRIVATIZER, Bundle, read_bundle
from cpgan_ray.deploy.connection import Connection, ServiceError
from cpgan_ray.deploy.manifest import Label
from cpgan_ray.deploy.message import CONTENT_TYPE, write_message
from cpgan_ray.deploy.preprocessing import Picture, prepare
from cpgan_ray.deploy.sessions import open_session
from cpgan_ray.errors import InputError, printable

ANSWERS, SPEC = "/v1/answers", "/v1/spec"
MAX_CODES = 256
"""Codes in a request."""
MAX_PICTURES = 32
"""Pictures that are encoded at a time: more take memory and save no time."""
API_KEY = "CPGAN_API_KEY"
"""Environment variable with the key of the service."""


class Client:
    """A privatizer on this machine, and a connection to the service that answers from its codes. Threads may share a client."""

    def __init__(
        self,
        bundle: str | Path | Bundle,
        url: str | None = None,
        *,
        api_key: str | None = None,
        coding: str | None = None,
        digest: str | None = None,
        timeout_s: float = 10.0,
        attempts: int = 6,
        threads: int = 1,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            bundle: folder or zip archive that `jobs/export.py` has written.
            url: of the service; None for a client that only encodes.
            api_key: of the service.
            coding: `range` (entropy-coded; its size depends on the codes) or `plain` (fixed size). Default: the shorter one of each
                message.
            digest: of the bundle that is expected, at least the first 8 hexadecimal digits.
            timeout_s, attempts, context: see `Connection`.
            threads: CPU threads of the privatizer.

        Raises: InputError if the bundle is damaged or another one than expected, or an argument cannot be used.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
        if digest is not None and (len(digest) < 8 or not self.bundle.digest.startswith(digest.lower())):
            raise InputError(f"bundle {self.bundle.path} has digest {self.bundle.digest}, not {digest}: get the expected bundle")
        codings = self.bundle.codec.codings
        self.codings = (coding,) if coding else codings
        if not set(self.codings) <= set(codings):
            raise InputError(f"coding is {coding!r}; bundle {self.bundle.path} has {' and '.join(codings)}")
        self.session = open_session(self.bundle, PRIVATIZER, threads=threads)
        self.connection = (
            None if url is None else Connection(url, api_key=api_key, timeout_s=timeout_s, attempts=attempts, context=context)
        )

    def codes(self, pictures: Sequence[Picture]) -> np.ndarray:
        """The codes z (B, k) float32 of pictures: paths, bytes of files, opened pictures or arrays (see `preprocessing.prepare`).

        Raises: InputError that names the picture if one of them cannot be used.
        """
        parts = [self._codes(part) for part in blocks(pictures, MAX_PICTURES)]
        return np.concatenate(parts) if parts else np.empty((0, self.bundle.manifest.k), np.float32)

    def encode(self, pictures: Sequence[Picture]) -> bytes:
        """The message that carries the codes of 1 to 65,535 pictures: docs/wire-format.md.

        Raises: InputError that names the picture if one of them cannot be used, or if there are none or too many.
        """
        return self._message(self.codes(pictures))

    def answers(self, pictures: Sequence[Picture]) -> list[Answer]:
        """The service's answer for each picture: `{label: probability}`. Only codes are sent, at most 256 in a request.

        Raises: InputError that names the picture if one of them cannot be used; ServiceError if the service refuses the request, or
        does not answer after several attempts.
        """
        if self.connection is None:
            raise InputError("this client has no URL: give the address of the service")
        answers: list[Answer] = []
        for part in blocks(pictures, MAX_CODES):
            body = self._message(self.codes(part))
            reply = self.connection.request("POST", ANSWERS, body, {"Content-Type": CONTENT_TYPE, "Accept": "application/json"})
            answers += self._read(reply, len(part))
        return answers

    def spec(self) -> dict[str, Any]:
        """What the service states about itself: `digest` of its bundle, its `manifest` and its limits.

        Raises: ServiceError if it does not answer.
        """
        if self.connection is None:
            raise InputError("this client has no URL: give the address of the service")
        values = _json(self.connection.request("GET", SPEC))
        if not isinstance(values, dict):
            raise ServiceError("the service sends no JSON object as its specification")
        return values

    def close(self) -> None:
        """Close the connection. A later request opens a new one."""
        if self.connection is not None:
            self.connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _codes(self, pictures: Sequence[Picture]) -> np.ndarray:
        inputs = prepare(list(pictures), self.bundle.manifest.preprocessing)
        (z,) = self.session.run(None, {self.session.get_inputs()[0].name: inputs})
        return self._released(np.asarray(z))

    def _released(self, z: np.ndarray) -> np.ndarray:
        """The codes that are sent, from those of the privatizer: with the noise of the manifest, then rounded. The generator is
        seeded by the operating system for each call, so that no two encodings of a picture have the same noise."""
        if (noise := self.bundle.manifest.noise) is None:
            return z
        rng = np.random.default_rng(int.from_bytes(os.urandom(32)))
        z = z.clip(-noise.clip, noise.clip) + draw_noise(z.shape, noise=noise.std, rng=rng)
        codec = self.bundle.codec
        return codec.codes(codec.levels(z)) if isinstance(codec, LevelCodec) else z

    def _message(self, z: np.ndarray) -> bytes:
        try:
            messages = [write_message(z, self.bundle.codec, digest=self.bundle.digest, coding=c) for c in self.codings]
            return min(messages, key=len)
        except BytesError as e:
            raise InputError(f"bundle {self.bundle.path} cannot encode this: {e}") from e

    def _read(self, reply: bytes, count: int) -> list[Answer]:
        values = _json(reply)
        rows = values.get("answers") if isinstance(values, dict) else None
        labels = self.bundle.manifest.labels
        if not isinstance(rows, list) or len(rows) != count or not all(is_answer(row, labels) for row in rows):
            raise ServiceError(f"the service does not send {count} answers to the labels of the bundle")
        return rows


def blocks(pictures: Sequence[Picture], size: int) -> Iterator[Sequence[Picture]]:
    """At most `size` pictures at a time."""
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as e:
        raise ServiceError("the service sends a reply that is not JSON") from e


def table(names: Sequence[str], answers: Sequence[Answer], labels: Sequence[Label]) -> str:
    """A row for each picture and label: the label, the more probable value, and its probability."""
    rows = [("picture", "label", "answer", "probability")]
    for name, answer in zip(names, answers, strict=True):
        for label in labels:
            value = answer[label.name]
            values = ("no", "yes") if label.values == ("0", "1") else label.values
            shares = value if isinstance(value, dict) else dict(zip(values, (1 - value, value), strict=True))
            best = max(shares, key=shares.__getitem__)
            rows.append((name, label.name, best, f"{shares[best]:.3f}"))
    shown = [[printable(" ".join(cell.split())) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, 2 after one line for bad input, 1 after one line if the service fails."""
    parser = argparse.ArgumentParser(
        prog="python -m cpgan_ray.deploy.client",
        description="Ask the service about pictures. Only codes are sent, never a picture.",
        epilog=f"The key of the service is read from {API_KEY}.",
    )
    parser.add_argument("bundle", help="folder or zip archive that jobs/export.py has written")
    parser.add_argument("url", help="address of the service: https://host, or http://127.0.0.1:8000")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files")
    parser.add_argument("--coding", choices=(RANGE, PLAIN), help="entropy-coded, or of fixed size (default: the shorter one)")
    parser.add_argument("--ca", metavar="FILE", help="certificate authority that signs the certificate of the service (PEM)")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="time limit of a connection and of each wait (default: 10)")
    given = parser.parse_args(arguments)
    try:
        context = None
        if given.ca:
            try:
                context = ssl.create_default_context(cafile=given.ca)
            except OSError as e:
                raise InputError(f"--ca {given.ca} cannot be read ({e.strerror or e}): give a file of PEM certificates") from e
        key = os.environ.get(API_KEY) or None
        options = {"api_key": key, "coding": given.coding, "timeout_s": given.timeout_s, "context": context}
        with Client(given.bundle, given.url, **options) as client:
            print(table(given.pictures, client.answers(given.pictures), client.bundle.manifest.labels))
    except InputError as e:
        print(" ".join(str(e).split()), file=sys.stderr)
        return 2
    except ServiceError as e:
        print(" ".join(str(e).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())

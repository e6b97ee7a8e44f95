"""One connection to the service for many requests, with time limits, TLS and retries."""

import contextlib
import http.client
import random
import ssl
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from cpgan_ray.errors import InputError, printable

RETRIED = (429, 500, 502, 503, 504)
"""Status codes after which the same request may succeed."""
MAX_REPLY_BYTES = 64 << 20
MAX_PAUSE_S = 10.0


class ServiceError(RuntimeError):
    """The service refuses a request, or does not answer. `status` is the HTTP status; None if there was no reply."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(printable(message))
        self.status = status


class Connection:
    """Requests to one service. The connection stays open between requests; threads take turns.

    `retries`: the number of requests so far that were sent again.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        attempts: int = 6,
        pause_s: float = 0.1,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            url: of the service, https://host:port/path. http is for this machine only.
            api_key: sent as a bearer token.
            timeout_s: how long connecting, or each wait for bytes, may take.
            attempts: largest number of times that a request is sent.
            pause_s: before the second attempt; it doubles with each further one, up to 10 s, and varies by chance.
            context: of TLS, for example with a private certificate authority.

        Raises: InputError if the URL cannot be used, or would carry codes or the key over a network in the clear.
        """
        try:
            parts = urlsplit(url)
            self.port, self.host = parts.port, parts.hostname or ""
        except ValueError as e:
            raise InputError(f"URL {url!r} is not valid ({e}): give http://127.0.0.1:8000, or https://host") from e
        if parts.scheme not in ("http", "https") or not self.host or parts.query or parts.fragment:
            raise InputError(f"URL {url!r} is not http://host:port or https://host: give the address of the service")
        if parts.username or parts.password:
            raise InputError("the URL contains a user or a password: give the key as api_key, or in CPGAN_API_KEY")
        if parts.scheme == "http" and not is_loopback(self.host):
            raise InputError(f"URL {url!r} would send codes and the key unencrypted over the network: use https")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
            raise InputError("the API key has characters that no key has: give one line of ASCII letters and digits")
        if not timeout_s > 0 or attempts < 1 or pause_s < 0:
            raise InputError(f"timeout_s {timeout_s}, attempts {attempts}, pause_s {pause_s}: they must be positive")
        self.secure, self.path, self.timeout_s, self.context = parts.scheme == "https", parts.path.rstrip("/"), timeout_s, context
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.attempts, self.pause_s, self.retries = attempts, pause_s, 0
        self._lock = threading.Lock()
        self._http: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of the reply. A request that fails because of the connection, the time limit or the load of the service is sent
        again, after a pause that grows.

        Raises: ServiceError if the service refuses it, or the last attempt fails.
        """
        for attempt in range(1, self.attempts + 1):
            wanted_s = 0.0
            try:
                with self._lock:
                    status, content, wanted_s = self._send(method, path, body, headers or {})
                error = ServiceError(f"{self.host} answers {status} to {method} {path}: {reason(content)}", status)
                if status == 200:
                    return content
                if status not in RETRIED:
                    raise error
            except ssl.SSLCertVerificationError as e:
                raise ServiceError(f"{self.host} has a certificate that is not trusted ({e.verify_message})") from e
            except (OSError, http.client.HTTPException) as e:
                error = ServiceError(f"{self.host} does not answer {method} {path} ({e or type(e).__name__})")
                error.__cause__ = e
            if attempt == self.attempts:
                raise error
            self.retries += 1
            pause_s = min(MAX_PAUSE_S, self.pause_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
            time.sleep(max(pause_s, min(wanted_s, MAX_PAUSE_S)))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes, float]:
        """Status and body of the reply, and how many seconds the service wants the next attempt to wait."""
        if self._http is None:
            self._http = (
                http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout_s, context=self.context)
                if self.secure
                else http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
            )
        try:
            self._http.request(method, self.path + path, body, {**self.headers, **headers})
            reply = self._http.getresponse()
            content = reply.read(MAX_REPLY_BYTES + 1)
            if len(content) > MAX_REPLY_BYTES:
                raise http.client.HTTPException(f"reply of more than {MAX_REPLY_BYTES} bytes")
            if reply.length:  # `read` with a limit returns what has come before the connection was lost
                raise http.client.IncompleteRead(content, reply.length)
            if reply.will_close:
                self._close()
            after = reply.headers.get("Retry-After", "")
            return reply.status, content, float(after) if after.isdecimal() and len(after) < 6 else 0.0
        except BaseException:
            self._close()  # its state is unknown
            raise

    def _close(self) -> None:
        if self._http is not None:
            with contextlib.suppress(OSError):
                self._http.close()
        self._http = None

    def close(self) -> None:
        with self._lock:
            self._close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant. A name other than localhost may be resolved to any address."""
    return host == "localhost" or host == "::1" or (host.startswith("127.") and host.replace(".", "").isdecimal())


def reason(content: bytes) -> str:
    """The beginning of an error's body, on one line."""
    return " ".join(content[:300].decode(errors="replace").split()) or "no reason given"

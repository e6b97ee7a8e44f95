"""The service as an ASGI application: the path of a request from its head to its reply. Needs neither Ray nor a network."""

import json
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cpgan_ray.config.service import ServiceLimits
from cpgan_ray.deploy.client import ANSWERS, SPEC
from cpgan_ray.deploy.message import CONTENT_TYPE
from cpgan_ray.deploy.service.content import JSON_TYPE, media_type, read_codes
from cpgan_ray.deploy.service.keys import Keys
from cpgan_ray.deploy.service.metrics import MEDIA_TYPE, Metrics
from cpgan_ray.deploy.service.rate import TokenBuckets
from cpgan_ray.deploy.service.refusal import RefusedError
from cpgan_ray.deploy.service.served import Catalogue

logger = logging.getLogger(__name__)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

HEALTH, RAY_HEALTH, METRICS = "/healthz", "/-/healthz", "/metrics"
METHODS = {
    ANSWERS: ("POST",),
    SPEC: ("GET", "HEAD"),
    HEALTH: ("GET", "HEAD"),
    RAY_HEALTH: ("GET", "HEAD"),
    METRICS: ("GET", "HEAD"),
}
"""Path -> methods. A file of the page has GET and HEAD."""
QUERY = re.compile(rb"digest=([0-9a-f]{8,64})")
"""The query of `GET /v1/spec`, if it has one."""
PIECE_BYTES = 256 << 10
"""A reply is sent in pieces, so that the time to fetch it is limited for each piece."""
BUNDLE = "CPGAN-Bundle"
"""Header of every answer: the digest of the newest bundle. A client whose bundle has another digest should get the new one."""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every reply; a file of the page may replace some of them."""


class File(Protocol):
    """A file of the page."""

    @property
    def content(self) -> bytes: ...
    @property
    def media_type(self) -> str: ...


@dataclass(frozen=True, eq=False)
class ServiceState:
    """What a reload changes."""

    catalogue: Catalogue
    keys: Keys
    files: Mapping[str, File] = field(default_factory=dict)
    """URL path -> file of the page, which needs no key."""
    file_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    status: int
    content: bytes
    media_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)


class DisconnectedError(Exception):
    """The client has gone before its request was complete."""


class Application:
    """An ASGI application. `state` may be replaced at any time: a request uses the state of its beginning."""

    def __init__(self, state: ServiceState, limits: ServiceLimits, metrics: Metrics) -> None:
        self.state, self.limits, self.metrics = state, limits, metrics
        self._buckets = TokenBuckets(limits.rate)

    def change(self, state: ServiceState) -> None:
        """Answer from another state from the next request on."""
        self._buckets = TokenBuckets(self.limits.rate)  # keys are counted by their number, which the change may move
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        try:
            reply = await self._reply(scope, receive)
        except RefusedError as e:
            reply = Reply(e.status, as_json({"error": e.reason}), headers=e.headers)
        except DisconnectedError:
            return
        except Exception as e:  # the type and the line only: a message may have numbers of a code
            last = traceback.extract_tb(e.__traceback__)[-1]
            logger.error(f"a request failed with {type(e).__name__} at {last.filename}:{last.lineno}")
            reply = Reply(500, as_json({"error": "internal error"}))
        self.metrics.count(reply.status, time.perf_counter() - begun)
        headers = {**HEADERS, **reply.headers, "Content-Type": reply.media_type, "Content-Length": str(len(reply.content))}
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
        content = b"" if scope["method"] == "HEAD" else reply.content
        for start in range(0, max(1, len(content)), PIECE_BYTES):
            piece = content[start : start + PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": start + len(piece) < len(content)})

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        state, path, method = self.state, scope["path"], scope["method"]
        methods = ("GET", "HEAD") if path in state.files else METHODS.get(path)
        if methods is None:
            raise RefusedError(404, f"there is no such path: {', '.join(METHODS)}")
        if method not in methods:
            raise RefusedError(405, f"{path} has {' and '.join(methods)}", headers={"Allow": ", ".join(methods)})
        if path in state.files:
            file = state.files[path]
            return Reply(200, file.content, file.media_type, state.file_headers)
        if path == HEALTH:
            return Reply(200, as_json({"status": "ok"}))
        if path == RAY_HEALTH:  # Ray's operator on Kubernetes looks for this word
            return Reply(200, b"success", "text/plain; charset=utf-8")
        headers = Headers(scope["headers"])
        self._authorize(state.keys, headers)
        if path == METRICS:
            return Reply(200, self.metrics.text(), MEDIA_TYPE)
        if path == SPEC:
            return self._spec(state, scope["query_string"])
        return await self._answers(state, headers, receive)

    def _authorize(self, keys: Keys, headers: "Headers") -> None:
        """Raises: RefusedError with 401 without a valid key, with 429 if the key has no more requests for now."""
        key = keys.find(headers.one(b"authorization"))
        if key is None:
            raise RefusedError(401, "no valid key: send Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"})
        if wait_s := self._buckets.wait_s(key):
            raise RefusedError(429, "too many requests with this key", headers={"Retry-After": str(wait_s)})

    def _spec(self, state: ServiceState, query: bytes) -> Reply:
        """The newest bundle, or the one that `?digest=` names."""
        one = state.catalogue.newest
        if query:
            if (match := QUERY.fullmatch(query)) is None:
                raise RefusedError(400, "the query is not digest=, followed by 8 to 64 hexadecimal digits")
            try:
                one = state.catalogue.find(match[1].decode())
            except RefusedError as e:
                raise RefusedError(404, "this service has no bundle with this digest") from e
        return Reply(200, as_json(spec_of(state.catalogue, one.bundle, self.limits, until=one.until)))

    async def _answers(self, state: ServiceState, headers: "Headers", receive: Receive) -> Reply:
        kind = media_type(headers.one(b"content-type"))
        if (headers.one(b"content-encoding") or b"identity").lower() != b"identity":
            raise RefusedError(415, "the body is compressed: send it as it is")
        body = await read_body(receive, headers.one(b"content-length"), max_bytes=self.limits.max_body_bytes)
        one, z = read_codes(body, kind, state.catalogue, max_codes=self.limits.max_codes)
        content = one.answers(z)
        self.metrics.count_codes(one.bundle.digest, len(z))
        return Reply(200, content, headers={BUNDLE: state.catalogue.newest.bundle.digest})


class Headers:
    """The headers of a request."""

    def __init__(self, pairs: Any) -> None:
        self._pairs = pairs

    def one(self, name: bytes) -> bytes | None:
        """The value of a header; None if it is absent.

        Raises: RefusedError if it occurs twice: two readers could take different ones.
        """
        values = [value for key, value in self._pairs if key == name]
        if len(values) > 1:
            raise RefusedError(400, f"the header {name.decode()} occurs twice")
        return values[0] if values else None


async def read_body(receive: Receive, declared: bytes | None, *, max_bytes: int) -> bytes:
    """The body of a request.

    Raises: RefusedError with 413 as soon as it is too large; DisconnectedError if the client has gone.
    """
    too_large = RefusedError(413, f"the body has more than {max_bytes} bytes")
    if declared is not None and (not declared.isdigit() or len(declared) > 18 or int(declared) > max_bytes):
        raise too_large
    parts, size, more = [], 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise DisconnectedError
        parts.append(event.get("body", b""))
        size, more = size + len(parts[-1]), event.get("more_body", False)
        if size > max_bytes:
            raise too_large
    return b"".join(parts)


def spec_of(catalogue: Catalogue, bundle: Any, limits: ServiceLimits, *, until: float | None) -> dict[str, Any]:
    """What the service states about itself and one of its bundles."""
    return {
        "digest": bundle.digest,
        "manifest": dict(bundle.manifest.values),
        "until": until,
        "bundles": [{"digest": one.bundle.digest, "until": one.until} for one in catalogue.present()],
        "media_types": [CONTENT_TYPE, JSON_TYPE],
        "limits": {"body_bytes": limits.max_body_bytes, "codes": limits.max_codes, "requests_per_second": limits.rate},
    }


def as_json(values: Any) -> bytes:
    return json.dumps(values, allow_nan=False).encode()

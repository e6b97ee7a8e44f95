"""Requests to the application in this process, without a network."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpgan_ray.common.codec import LevelCodec
from cpgan_ray.config.service import ServiceLimits
from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.message import CONTENT_TYPE, write_message
from cpgan_ray.deploy.service.application import Application, ServiceState
from cpgan_ray.deploy.service.keys import Keys
from cpgan_ray.deploy.service.metrics import Metrics
from cpgan_ray.deploy.service.served import Catalogue, served

KEY = "the-key-of-these-tests"
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def values(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        assert self.headers["content-type"] == "application/json"
        return self.values["error"]


def application_of(*bundles: Bundle, limits: ServiceLimits | None = None, **state: Any) -> Application:
    catalogue = Catalogue([served(bundle) for bundle in bundles])
    return Application(ServiceState(catalogue, Keys([KEY]), **state), limits or ServiceLimits(), Metrics())


def ask(
    application: Application,
    method: str,
    path: str,
    *parts: bytes,
    headers: dict[str, str] | Sequence[tuple[str, str]] = (),
    query: str = "",
    gone: bool = False,
) -> Reply:
    """Send one request, whose body comes in parts; gone: the client leaves after them."""
    pairs = list(headers.items()) if isinstance(headers, dict) else list(headers)
    events = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    events.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    scope["headers"] = [(name.lower().encode(), value.encode()) for name, value in pairs]
    asyncio.run(application(scope, receive, send))
    if not sent:
        return Reply(0, {}, b"")
    start, *pieces = sent
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    content = b"".join(piece["body"] for piece in pieces)
    return Reply(start["status"], {n.decode(): v.decode() for n, v in start["headers"]}, content)


def post(application: Application, *parts: bytes, kind: str = CONTENT_TYPE, **headers: str) -> Reply:
    """Ask for answers with a valid key."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(application, "POST", "/v1/answers", *parts, headers={**AUTHORIZATION, "Content-Type": kind} | more)


def codes(bundle: Bundle, count: int, *, seed: int = 0) -> np.ndarray:
    """Random codes z (count, k) float32 that the bundle's codec can have."""
    codec = bundle.codec
    assert isinstance(codec, LevelCodec)
    return codec.codes(np.random.default_rng(seed).integers(codec.lowest, codec.highest + 1, (count, codec.k)))


def message(bundle: Bundle, count: int = 3, *, coding: str = "range", seed: int = 0) -> bytes:
    return write_message(codes(bundle, count, seed=seed), bundle.codec, digest=bundle.digest, coding=coding)


def as_json(bundle: Bundle, count: int = 3, **changes: Any) -> bytes:
    """The same codes as JSON; changes: fields."""
    codec = bundle.codec
    assert isinstance(codec, LevelCodec)
    levels = codec.levels(codes(bundle, count)).tolist()
    return json.dumps({"version": 1, "digest": bundle.digest, "levels": levels} | changes).encode()

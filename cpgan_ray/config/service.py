"""What the service of `jobs/serve.py` can be set to."""

from dataclasses import field
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from cpgan_ray.config.constraints import Positive, PositiveInt, config_class
from cpgan_ray.config.runtime import RuntimeConfig
from cpgan_ray.errors import InputError

MAX_BODY_BYTES = 64 << 20


@config_class("limits")
class ServiceLimits:
    """What one request, one key and one client may use. Each replica counts on its own."""

    max_body_bytes: Annotated[int, Field(ge=64, le=MAX_BODY_BYTES)] = 1 << 20
    """Largest body of a request, in bytes."""
    max_codes: Annotated[int, Field(ge=1, le=65_535)] = 256
    """Most codes in a request."""
    rate: Positive = 5000.0
    """Requests a second that a replica answers to one key on average; as many may come at once."""
    max_connections: PositiveInt = 512
    """Most open connections of a replica; a further one is closed with status 503."""
    header_s: Positive = 10.0
    """How long a client may take to send the head of a request, in seconds."""
    body_s: Positive = 20.0
    """How long a client may take to send the body of a request, or to fetch its reply, in seconds."""
    idle_s: Positive = 60.0
    """How long a connection stays open between two requests, in seconds."""


@config_class()
class ServeJob:
    """The settings of `jobs/serve.py`."""

    bundles: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="BUNDLE...")]] = ()
    """Folders or zip archives that `jobs/export.py` has written, or `models:/NAME@ALIAS`. The first one is the one that
    `GET /v1/spec` describes."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than a loopback address needs keys, and `--tls-cert` or `--behind-proxy`."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port to listen on; 0: a free one, which is printed."""
    replicas: Annotated[int, Field(ge=1, le=64)] = 2
    """Number of processes that answer. With two or more, the loss of one interrupts nothing."""
    keys_file: Path | None = None
    """File with one API key a line, read again at a reload. Default: the keys in CPGAN_API_KEY, separated by blanks or commas."""
    tls_cert: Path | None = None
    """Certificate of the service and its chain (PEM)."""
    tls_key: Path | None = None
    """Private key of the certificate (PEM)."""
    behind_proxy: bool = False
    """A proxy in front of the service has TLS: plain HTTP on `--host` is allowed."""
    retire_s: Annotated[float, Field(ge=0, le=30 * 86400)] = 3600.0
    """How long codes of the previous bundle are still answered after a reload, in seconds."""
    demo: bool = True
    """Serve the page of the demonstration at `/`."""
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_cert", "tls_key") if self.tls_key is None else ("tls_key", "tls_cert")
            raise InputError(f"{given} is {getattr(self, given)}, but {missing} is not set: give both files of the certificate")

"""What the service refuses to start with: an open host without protection, a bad certificate, a port in use."""

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

from cpgan_ray.config import ServeJob
from cpgan_ray.deploy.connection import is_loopback
from cpgan_ray.deploy.service.keys import API_KEY, Keys
from cpgan_ray.deploy.service.server import shared_socket
from cpgan_ray.errors import InputError


def ensure_protected(job: ServeJob, *, keys: Sequence[str]) -> None:
    """Raises: InputError if the keys cannot be used, or others could reach the service without a key or without TLS."""
    if keys or job.keys_file is not None:
        Keys(keys)
    if is_loopback(job.host):
        return
    if not keys:
        raise InputError(
            f"host is {job.host!r}, which other machines reach, but there is no API key: set {API_KEY}, or give --keys-file FILE"
        )
    if job.tls_cert is None and not job.behind_proxy:
        raise InputError(
            f"host is {job.host!r}, which other machines reach, but there is no TLS: give --tls-cert and --tls-key, or "
            "--behind-proxy if a proxy in front of the service has it"
        )


def certificate_of(job: ServeJob) -> tuple[Path, Path] | None:
    """The files of the certificate and its key; None without TLS.

    Raises: InputError if they cannot be used.
    """
    if job.tls_cert is None or job.tls_key is None:
        return None
    files = job.tls_cert.expanduser().resolve(), job.tls_key.expanduser().resolve()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files, password=lambda: "")
    except (OSError, ValueError) as e:
        reason = e.strerror or getattr(e, "reason", None) if isinstance(e, OSError) else e
        raise InputError(
            f"tls_cert {files[0]} and tls_key {files[1]} cannot be used ({reason or type(e).__name__}): give a certificate and its "
            "key without a password, as PEM files"
        ) from e
    return files


@contextlib.contextmanager
def reserved_port(job: ServeJob) -> Iterator[int]:
    """The port of the service. While the block runs, the system gives it to no process that asks for any free port.

    Raises: InputError if another process uses it, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            job.host, job.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as alone:  # a port that is shared already is in use, too
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                alone.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            alone.bind(address)
            alone.listen(1)
            port = alone.getsockname()[1]
        held = shared_socket(job.host, port)
    except (OSError, UnicodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise InputError(
            f"the service cannot listen on host {job.host!r}, port {job.port} ({reason}): give another --port, or as --host an "
            "address of this machine"
        ) from e
    with held:
        yield port

"""Serve bundles until the process is asked to stop: check everything first, then start the replicas, and reload on SIGUSR1."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cpgan_ray.config import ServeJob
from cpgan_ray.deploy.bundle import MANIFEST, Bundle, read_bundle
from cpgan_ray.deploy.connection import is_loopback
from cpgan_ray.deploy.service.keys import API_KEY, Keys, keys_of
from cpgan_ray.deploy.service.launch import RELOAD_S, Service, running
from cpgan_ray.deploy.service.metrics import FOLDER
from cpgan_ray.deploy.service.served import Catalogue, served
from cpgan_ray.deploy.service.server import shared_socket
from cpgan_ray.deploy.service.settings import BundleEntry, ReplicaSettings
from cpgan_ray.deploy.writing import write_zip
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

RELOAD = signal.SIGUSR1
REGISTERED = "models:/"
LOOK_EVERY_S = 2.0
MANUAL_KEY_BYTES = 24


def serve_bundles(job: ServeJob, *, fetch: Callable[[str], Path], ready: Callable[[dict[str, Any]], None]) -> None:
    """Serve until SIGINT or SIGTERM, which are raised as usual.

    fetch: downloads the bundle of a registered version into a folder, by `models:/NAME@ALIAS`. ready: gets the summary as soon as
    all replicas answer.

    Raises: InputError for anything the user can fix, before anything listens.
    """
    ensure_protected(job, keys=keys_of(os.environ, job.keys_file))
    tls = certificate_of(job)
    with reserved_port(job) as port, tempfile.TemporaryDirectory(prefix="cpgan-serve-") as name:
        folder = Path(name)
        shelf = Shelf(job, folder, fetch=fetch)
        printed_key = write_keys(job, folder)
        os.environ.pop(API_KEY, None)  # Ray's processes inherit the environment
        os.environ.pop(FOLDER, None)
        user_config = shelf.user_config()
        settings = ReplicaSettings(
            host=job.host,
            port=port,
            tls_cert=tls and str(tls[0]),
            tls_key=tls and str(tls[1]),
            keys_file=str(folder / "keys"),
            demo=job.demo,
            limits=job.limits,
        )
        (folder / "metrics").mkdir()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        reloads = threading.Event()
        before = signal.signal(RELOAD, lambda number, frame: reloads.set())
        try:
            with running(
                settings, user_config, replicas=job.replicas, metrics_folder=str(folder / "metrics"), runtime=job.runtime
            ) as service:
                ready(summary_of(job, port, shelf, key=printed_key))
                wait(service, reloads, lambda: reload(service, shelf, job, folder))
        finally:
            signal.signal(RELOAD, before)


def wait(service: Service, reloads: threading.Event, reload: Callable[[], None]) -> None:
    """Wait for a signal to stop, reload at each signal for it, and log a change of the replicas' health."""
    last, looked = "RUNNING", time.monotonic()
    while True:
        if reloads.wait(0.2):
            reloads.clear()
            reload()
        if time.monotonic() - looked >= LOOK_EVERY_S:
            looked = time.monotonic()
            status, _ = service.status()
            if status != last:
                logger.warning(f"the service is {status}, it was {last}")
                last = status


def reload(service: Service, shelf: "Shelf", job: ServeJob, folder: Path) -> None:
    """Read keys and bundles again. If one of them cannot be used, the service stays as it is."""
    try:
        changed = shelf.refresh()
        if job.keys_file is not None:
            write_keys(job, folder)
        service.deploy(shelf.user_config(), timeout_s=RELOAD_S)
        what = f"now answers for bundle {shelf.newest.digest}" if changed else "has read its keys again; no bundle has changed"
        logger.info(f"the service {what}")
    except InputError as e:
        logger.error(f"nothing is reloaded: {' '.join(str(e).split())}")


class Shelf:
    """The bundles that are served: copies in a private folder, so what was checked is what the replicas read."""

    def __init__(self, job: ServeJob, folder: Path, *, fetch: Callable[[str], Path]) -> None:
        """Raises: InputError if a bundle cannot be used."""
        self.job, self.folder, self.fetch = job, folder, fetch
        self.present: list[Bundle] = self._read()
        self.retired: dict[str, float] = {}
        """Digest -> Unix time at which it ends."""
        self.revision = 0
        self._keep()

    @property
    def newest(self) -> Bundle:
        return self.present[0]

    def refresh(self) -> bool:
        """Read all bundles again; those that are no longer there are answered for a while. Returns whether anything changed.

        Raises: InputError if a bundle cannot be used; then nothing has changed.
        """
        now, before = time.time(), [bundle.digest for bundle in self.present]
        self.present = self._read()
        after = [bundle.digest for bundle in self.present]
        self._keep()
        self.retired = {digest: until for digest, until in self.retired.items() if until > now and digest not in after}
        if self.job.retire_s:
            self.retired |= {digest: now + self.job.retire_s for digest in before if digest not in after}
        self.revision += 1
        return before != after

    def user_config(self) -> dict[str, Any]:
        """The configuration of the replicas. Each one differs from the last one, so that Serve hands it on."""
        entries = [BundleEntry(str(self._path(bundle.digest)), bundle.digest) for bundle in self.present]
        entries += [BundleEntry(str(self._path(digest)), digest, until) for digest, until in self.retired.items()]
        return {"bundles": [entry.as_json() for entry in entries], "revision": self.revision}

    def _read(self) -> list[Bundle]:
        names = self.job.bundles
        bundles = [read_bundle(self.fetch(name) if name.startswith(REGISTERED) else name) for name in names]
        Catalogue([served(bundle) for bundle in unique(bundles)])
        return unique(bundles)

    def _keep(self) -> None:
        for bundle in self.present:
            if not (path := self._path(bundle.digest)).exists():
                write_zip(path, {MANIFEST: bundle.text, **bundle.files})

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.zip"


def unique(bundles: Sequence[Bundle]) -> list[Bundle]:
    """The bundles, each once."""
    return list({bundle.digest: bundle for bundle in bundles}.values())


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
    """The port of the service, which stays this user's while the block runs, even if no replica listens for a moment.

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


def write_keys(job: ServeJob, folder: Path) -> str | None:
    """Write the keys into the private folder, for the replicas. Without any, make one and return it.

    Raises: InputError if the keys cannot be used.
    """
    keys, made = keys_of(os.environ, job.keys_file), None
    if not keys and job.keys_file is None:
        made = secrets.token_urlsafe(MANUAL_KEY_BYTES)
        keys = [made]
    Keys(keys)
    path = folder / "keys"
    handle = os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write("\n".join(keys) + "\n")
    path.with_suffix(".new").replace(path)
    return made


def summary_of(job: ServeJob, port: int, shelf: Shelf, *, key: str | None) -> dict[str, Any]:
    """What the job prints as soon as the service answers."""
    host = f"[{job.host}]" if ":" in job.host else job.host
    url = f"{'http' if job.tls_cert is None else 'https'}://{host}:{port}"
    return {
        "url": url,
        "page": None if not job.demo else f"{url}/" + (f"#key={key}" if key else ""),
        "key": key,
        "digests": [bundle.digest for bundle in shelf.present],
        "replicas": job.replicas,
        "process": os.getpid(),
    }

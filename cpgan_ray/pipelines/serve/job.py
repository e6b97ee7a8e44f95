"""Serve bundles until the process is asked to stop: check everything first, then start the replicas, and reload on SIGUSR1."""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpgan_ray.config import ServeJob
from cpgan_ray.deploy.service.keys import API_KEY, keys_of
from cpgan_ray.deploy.service.launch import RELOAD_S, Service, running
from cpgan_ray.deploy.service.metrics import FOLDER
from cpgan_ray.deploy.service.replica import find_page
from cpgan_ray.deploy.service.settings import ReplicaSettings
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.serve.checks import certificate_of, ensure_protected, reserved_port
from cpgan_ray.pipelines.serve.shelf import Shelf, write_keys

logger = logging.getLogger(__name__)

RELOAD = signal.SIGUSR1
LOOK_EVERY_S = 2.0


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
        ensure_page(job, shelf)
        settings = ReplicaSettings(
            host=job.host,
            port=port,
            tls_cert=tls and str(tls[0]),
            tls_key=tls and str(tls[1]),
            keys_file=str(folder / "keys"),
            behind_proxy=job.behind_proxy,
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


def ensure_page(job: ServeJob, shelf: Shelf) -> None:
    """Make the page of the demonstration once, before the replicas do.

    Raises: InputError if it cannot be made.
    """
    if job.demo and (page := find_page()) is not None:
        page(shelf.present)


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


def reload(service: Service, shelf: Shelf, job: ServeJob, folder: Path) -> None:
    """Read keys and bundles again. If one of them cannot be used, the service stays as it is."""
    try:
        changed = shelf.refresh()
        ensure_page(job, shelf)
        if job.keys_file is not None:
            write_keys(job, folder)
        service.deploy(shelf.user_config(), timeout_s=RELOAD_S)
        what = f"now answers for bundle {shelf.newest.digest}" if changed else "has read its keys again; no bundle has changed"
        logger.info(f"the service {what}")
    except InputError as e:
        logger.error(f"nothing is reloaded: {' '.join(str(e).split())}")


def summary_of(job: ServeJob, port: int, shelf: Shelf, *, key: str | None) -> dict[str, Any]:
    """What the job prints as soon as the service answers."""
    host = f"[{job.host}]" if ":" in job.host else job.host
    url = f"{'http' if job.tls_cert is None else 'https'}://{host}:{port}"
    return {
        "url": url,
        "page": f"{url}/" + (f"#key={key}" if key else "") if job.demo and find_page() is not None else None,
        "key": key,
        "digests": [bundle.digest for bundle in shelf.present],
        "replicas": job.replicas,
        "process": os.getpid(),
    }

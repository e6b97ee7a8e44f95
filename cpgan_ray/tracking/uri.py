"""Checks whether a tracking store can be used, before a job does anything else: first its URI, then the store itself.

Every problem is reported in one line with the remedy, within `CONNECT_TIMEOUT_S` if nothing responds.
"""

import ipaddress
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import requests
import sqlalchemy
import sqlalchemy.exc
from mlflow.tracking._tracking_service.utils import _tracking_store_registry
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from cpgan_ray.common.credentials import redacted
from cpgan_ray.config import TrackingConfig
from cpgan_ray.errors import InputError

CONNECT_TIMEOUT_S = 2.5
"""How long a server may take to accept a connection."""
RESPONSE_TIMEOUT_S = 10.0
"""How long a server may take to respond after it has accepted the connection."""
PACKAGES = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient"}
"""Module of a database driver -> its package, if the names differ."""
NO_PROXY_NAMES = "no_proxy and NO_PROXY"
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
T = TypeVar("T")


def option_name(tracking: TrackingConfig) -> str:
    """The flag or variable that sets the tracking store, for messages."""
    return (
        "tracking.uri" if tracking.uri else "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "the tracking store"
    )


def ensure_store(uri: str, *, option: str) -> None:
    """Raises: InputError if the URI is wrong, nothing responds there, or it is not an MLflow server that accepts this user."""
    subject = f"{option} is {redacted(uri, whole=True)}"
    check_form(uri, subject)
    scheme = urlsplit(uri).scheme.lower()
    if scheme in ("http", "https"):
        bypass_proxy(uri)
        check_server(uri, subject)
    elif scheme.partition("+")[0] in PORTS:
        check_database(uri, subject)
    elif scheme == "sqlite":
        check_file(uri, subject)


def check_form(uri: str, subject: str) -> None:
    """Raises: InputError if the form of the URI is wrong."""
    server = "http://HOST:PORT for a server, or sqlite:////ABSOLUTE/PATH.db for a file"
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as e:
        raise InputError(f"{subject}, which is not a URI ({e}): give {server}") from e
    scheme = parts.scheme.lower()
    if "://" not in uri and not uri.lower().startswith(("sqlite:", "databricks", "file:")):
        if re.fullmatch(r"([^@/]*@)?(localhost|[\w-]+(\.[\w-]+)+|[\w-]+:\d+|\[[0-9a-fA-F:]+\])(:\d+)?(/\S*)?", uri):
            shown = redacted(f"http://{uri}", whole=True)
            option = subject.partition(" is ")[0]
            raise InputError(f"{option} is {shown.removeprefix('http://')}, without http:// at the beginning: write {shown}")
        raise InputError(f"{subject}, which is not a URI: give {server}")
    if scheme == "file":
        raise InputError(f"{subject}, a file store, which MLflow no longer supports: give {server}")
    if scheme == "sqlite":
        if host or not uri.lower().startswith("sqlite:///") or len(uri) <= len("sqlite:///"):
            path = re.sub(r"^sqlite:/*", "", uri, flags=re.IGNORECASE) or "mlflow.db"
            raise InputError(
                f"{subject}, with too few slashes or no file: write sqlite:///{path} for a file in the current folder, or "
                f"sqlite:////{path.lstrip('/')} for an absolute path"
            )
        return
    if uri.startswith("databricks"):
        return
    if scheme not in _tracking_store_registry._registry and scheme.partition("+")[0] not in PORTS:
        raise InputError(f"{subject}, a scheme that MLflow does not know: give {server}")
    if scheme in ("http", "https") and not host:
        raise InputError(f"{subject}, without a host: give {server}")


def check_file(uri: str, subject: str) -> None:
    """Raises: InputError if the file of an SQLite store is not a database, or cannot be created."""
    path = database_file(uri)
    try:
        if path.is_dir():
            raise InputError(f"{subject}, which is a folder: give a file in it, such as {redacted(uri).rstrip('/')}/mlflow.db")
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise InputError(f"{subject}, which is not an SQLite database: give another file, or remove this one")
        parent = next((folder for folder in path.absolute().parents if folder.exists()), None)
    except OSError as e:
        raise InputError(f"{subject}, which cannot be read ({e.strerror}): give another file") from e
    if parent is not None and not parent.is_dir():
        raise InputError(f"{subject}, but {parent} is a file: give another path")
    if not path.exists() and parent is not None and not os.access(parent, os.W_OK):
        raise InputError(f"{subject}, but {parent} is not writable: give another --output or --tracking.uri")


def database_file(uri: str) -> Path:
    """The absolute path of an SQLite store's file."""
    return Path(uri[len("sqlite:///") :].partition("?")[0]).absolute()


def check_database(uri: str, subject: str) -> None:
    """Raises: InputError if the database's driver is not installed, or nothing listens at its address."""
    parts = urlsplit(uri)
    try:
        sqlalchemy.make_url(uri).get_dialect().import_dbapi()
    except ImportError as e:
        module = e.name or "of that name"
        package = PACKAGES.get(module, module)
        raise InputError(f"{subject}, but the database driver {module} is not installed: pip install '{package}'") from e
    except sqlalchemy.exc.SQLAlchemyError as e:
        raise InputError(
            f"{subject}, which SQLAlchemy does not accept ({short_message(e)}): check the scheme and the driver"
        ) from e
    if parts.hostname:
        ensure_listening(parts.hostname, parts.port or PORTS[parts.scheme.lower().partition("+")[0]], subject)


def check_server(uri: str, subject: str) -> None:
    """Raises: InputError if no MLflow server responds at an http(s) URI, or it does not accept this user."""
    parts = urlsplit(uri)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme.lower() == "https" else 80)
    proxy = None if proxy_bypass(host) else getproxies().get(parts.scheme.lower())
    if not proxy:
        ensure_listening(host, port, subject)
    via_proxy = f" through the proxy {redacted(proxy, whole=True)}" if proxy else ""
    try:
        creds = get_default_host_creds(uri)
        options: dict[str, Any] = {
            "max_retries": 0,
            "timeout": RESPONSE_TIMEOUT_S,
            "raise_on_status": False,
            "allow_redirects": False,
        }
        response: requests.Response | None = http_request(
            creds, "/api/2.0/mlflow/experiments/search", "GET", params={"max_results": 1}, **options
        )
    except requests.exceptions.SSLError as e:
        raise InputError(
            f"{subject}, whose TLS certificate is not accepted ({short_message(e)}): set MLFLOW_TRACKING_SERVER_CERT_PATH"
        ) from e
    except Exception as e:  # MLflow replaces the errors of requests by its own
        if proxy:
            raise InputError(
                f"{subject}, but nothing responds{via_proxy}: add {host} to {NO_PROXY_NAMES}, or repair the proxy"
            ) from e
        raise InputError(
            f"{subject}, which does not respond like an MLflow server ({short_message(e)}): check host, port and scheme"
        ) from e
    assert response is not None  # None only with Databricks' own client
    if response.status_code in (401, 403):
        raise InputError(
            f"{subject}, which refuses this user or host name (status {response.status_code}{quoted_text(response)}): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or start the server with --allowed-hosts for this name"
        )
    if response.is_redirect:
        location = redacted(response.headers.get("Location", ""), whole=True)[:200]
        raise InputError(f"{subject}, which redirects to {location}: give the address of the MLflow server itself")
    try:
        values = response.json()
    except (ValueError, RecursionError):
        values = None
    if response.status_code != 200 or not isinstance(values, dict) or not values.keys() <= {"experiments", "next_page_token"}:
        remedy = f": add {host} to {NO_PROXY_NAMES}" if proxy else ": check host, port and path"
        raise InputError(f"{subject}, but the response{via_proxy} is not from MLflow (status {response.status_code}){remedy}")


def quoted_text(response: requests.Response) -> str:
    """The beginning of a plain-text response in quotes, for messages."""
    text = " ".join(response.text[:100].split()) if "text/plain" in response.headers.get("Content-Type", "") else ""
    return f", {redacted(text)!r}" if text else ""


def ensure_listening(host: str, port: int, subject: str) -> None:
    """Raises: InputError if nothing accepts a connection at this address."""

    def connect() -> None:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()

    try:
        call_with_timeout(CONNECT_TIMEOUT_S, connect)
    except (OSError, ValueError) as e:
        reason = "no such host" if isinstance(e, socket.gaierror) else (getattr(e, "strerror", None) or str(e) or type(e).__name__)
        raise InputError(
            f"{subject}, but the connection failed ({reason}): start the server, or give another --tracking.uri"
        ) from e


def call_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that may block and has no timeout of its own, such as the look-up of a host name.

    Raises: TimeoutError if it takes longer than `seconds`; the call's own error.
    """
    results: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as e:
            raised.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not results:
        raise TimeoutError(f"no response within {seconds:g} s")
    return results[0]


def bypass_proxy(uri: str) -> None:
    """Excludes a loopback address from the proxy, which cannot reach this machine's loopback addresses."""
    host = urlsplit(uri).hostname or ""
    if not getproxies() or not is_loopback(host) or proxy_bypass(host):
        return
    for name in ("no_proxy", "NO_PROXY"):
        before = os.environ.get(name) or os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        os.environ[name] = ",".join(filter(None, [before, host]))


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address of this machine."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ensure_same_host(artifact_uri: str | None, uri: str, *, of: str) -> None:
    """Refuses artifacts on another web server, which would receive the tracking server's credentials.

    The experiments of a store define the location of artifacts, and anybody who can write to the store can change it.

    Raises: InputError if artifacts are on another web server.
    """
    if not artifact_uri:
        return
    artifacts, tracking = urlsplit(artifact_uri), urlsplit(uri)
    scheme = artifacts.scheme.lower()
    allowed = scheme in ("", "file", "dbfs", "s3", "s3a", "r2", "gs", "wasbs", "abfs", "abfss", "hdfs", "viewfs", "b2")
    if scheme == "mlflow-artifacts":
        allowed = not artifacts.hostname or artifacts.hostname == tracking.hostname
    elif scheme in ("http", "https"):
        allowed = (scheme, artifacts.hostname, artifacts.port) == (tracking.scheme.lower(), tracking.hostname, tracking.port)
    if not allowed:
        shown = redacted(artifact_uri, whole=True)
        raise InputError(f"{of} keeps its artifacts at {shown}, not at the tracking server: your credentials are not sent there")


def short_message(error: BaseException) -> str:
    """The message of an error, in at most 200 characters on one line."""
    return redacted(" ".join(str(error).split()) or type(error).__name__)[:200]

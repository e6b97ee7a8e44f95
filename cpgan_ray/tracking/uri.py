"""Whether a tracking store can be used, found out before a job does anything else: its URI is checked, and the store is asked.

What is wrong is said in one line with the remedy, within `CONNECT_S` where nothing answers.
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

CONNECT_S = 2.5
"""How long a server may take to accept a connection, in seconds."""
ANSWER_S = 10.0
"""How long one that has accepted it may take to answer, in seconds."""
PACKAGES = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient"}
"""Modules of database drivers whose package has another name."""
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
T = TypeVar("T")


def option_of(tracking: TrackingConfig) -> str:
    """What names the tracking store, for messages."""
    return (
        "tracking.uri" if tracking.uri else "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "the tracking store"
    )


def ensure_store(uri: str, *, option: str) -> None:
    """Raises: InputError if the URI is wrong, nothing answers there, or what answers is no MLflow server that lets this user in."""
    told = f"{option} is {redacted(uri, whole=True)}"
    check_form(uri, told)
    scheme = urlsplit(uri).scheme.lower()
    if scheme in ("http", "https"):
        bypass_proxy(uri)
        ask_server(uri, told)
    elif scheme.partition("+")[0] in PORTS:
        check_database(uri, told)
    elif scheme == "sqlite":
        check_file(uri, told)


def check_form(uri: str, told: str) -> None:
    """Raises: InputError if this can be no tracking URI, whatever answers there."""
    server = "http://HOST:PORT for a server, or sqlite:////ABSOLUTE/PATH.db for a file"
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as e:
        raise InputError(f"{told}, which is no URI ({e}): give {server}") from e
    scheme = parts.scheme.lower()
    if "://" not in uri and not uri.lower().startswith(("sqlite:", "databricks", "file:")):
        if re.fullmatch(r"([^@/]*@)?(localhost|[\w-]+(\.[\w-]+)+|[\w-]+:\d+|\[[0-9a-fA-F:]+\])(:\d+)?(/\S*)?", uri):
            shown = redacted(f"http://{uri}", whole=True)
            option = told.partition(" is ")[0]
            raise InputError(f"{option} is {shown.removeprefix('http://')}, without http:// in front: write {shown}")
        raise InputError(f"{told}, which is no URI: give {server}")
    if scheme == "file":
        raise InputError(f"{told}, a store of files, which MLflow no longer supports: give {server}")
    if scheme == "sqlite":
        if host or not uri.lower().startswith("sqlite:///") or len(uri) <= len("sqlite:///"):
            path = re.sub(r"^sqlite:/*", "", uri, flags=re.IGNORECASE) or "mlflow.db"
            raise InputError(
                f"{told}, with too few slashes or no file: write sqlite:///{path} for a file in the current folder, or "
                f"sqlite:////{path.lstrip('/')} for an absolute path"
            )
        return
    if uri.startswith("databricks"):
        return
    if scheme not in _tracking_store_registry._registry and scheme.partition("+")[0] not in PORTS:
        raise InputError(f"{told}, a scheme that MLflow does not know: give {server}")
    if scheme in ("http", "https") and not host:
        raise InputError(f"{told}, without a host: give {server}")


def check_file(uri: str, told: str) -> None:
    """Raises: InputError if the file of an SQLite store is none, or there can be none."""
    path = database_file(uri)
    try:
        if path.is_dir():
            raise InputError(f"{told}, which is a folder: name a file in it, such as {redacted(uri).rstrip('/')}/mlflow.db")
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise InputError(f"{told}, which is no SQLite database: name another file, or remove that one")
        there = next((parent for parent in path.absolute().parents if parent.exists()), None)
    except OSError as e:
        raise InputError(f"{told}, which cannot be read ({e.strerror}): name another file") from e
    if there is not None and not there.is_dir():
        raise InputError(f"{told}, but {there} is a file: name another one")
    if not path.exists() and there is not None and not os.access(there, os.W_OK):
        raise InputError(f"{told}, but {there} cannot be written to: give another --output or --tracking.uri")


def database_file(uri: str) -> Path:
    """The file of an SQLite store, absolute."""
    return Path(uri[len("sqlite:///") :].partition("?")[0]).absolute()


def check_database(uri: str, told: str) -> None:
    """Raises: InputError if the database's driver is not installed, or nothing answers at its address."""
    parts = urlsplit(uri)
    try:
        sqlalchemy.make_url(uri).get_dialect().import_dbapi()
    except ImportError as e:
        module = e.name or "of that name"
        package = PACKAGES.get(module, module)
        raise InputError(f"{told}, but the database driver {module} is not installed here: pip install '{package}'") from e
    except sqlalchemy.exc.SQLAlchemyError as e:
        raise InputError(f"{told}, which SQLAlchemy does not accept ({short(e)}): check the scheme and the driver") from e
    if parts.hostname:
        knock(parts.hostname, parts.port or PORTS[parts.scheme.lower().partition("+")[0]], told)


def ask_server(uri: str, told: str) -> None:
    """Raises: InputError if no MLflow server answers at an http(s) URI, or it does not let this user in."""
    parts = urlsplit(uri)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme.lower() == "https" else 80)
    proxy = None if proxy_bypass(host) else getproxies().get(parts.scheme.lower())
    if not proxy:
        knock(host, port, told)
    through = f" through the proxy {redacted(proxy, whole=True)}" if proxy else ""
    names = "no_proxy and NO_PROXY" if proxy else ""
    try:
        creds = get_default_host_creds(uri)
        how: dict[str, Any] = {"max_retries": 0, "timeout": ANSWER_S, "raise_on_status": False, "allow_redirects": False}
        answer: requests.Response | None = http_request(
            creds, "/api/2.0/mlflow/experiments/search", "GET", params={"max_results": 1}, **how
        )
    except requests.exceptions.SSLError as e:
        raise InputError(f"{told}, whose TLS certificate is not accepted ({short(e)}): set MLFLOW_TRACKING_SERVER_CERT_PATH") from e
    except Exception as e:  # MLflow raises its own in the place of those of requests
        if proxy:
            raise InputError(f"{told}, and nothing answers there{through}: add {host} to {names}, or mend the proxy") from e
        raise InputError(f"{told}, which does not answer like an MLflow server ({short(e)}): check host, port and scheme") from e
    assert answer is not None  # it is with Databricks' own client
    if answer.status_code in (401, 403):
        raise InputError(
            f"{told}, which refuses this user or host name (status {answer.status_code}{quoted(answer)}): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or have the server started with --allowed-hosts for this name"
        )
    if answer.is_redirect:
        where = redacted(answer.headers.get("Location", ""), whole=True)[:200]
        raise InputError(f"{told}, which redirects to {where}: give the address of the MLflow server itself")
    try:
        values = answer.json()
    except (ValueError, RecursionError):
        values = None
    if answer.status_code != 200 or not isinstance(values, dict) or not values.keys() <= {"experiments", "next_page_token"}:
        also = f": add {host} to {names}" if proxy else ": check host, port and path"
        raise InputError(f"{told}, where something answers{through} that is not MLflow (status {answer.status_code}){also}")


def quoted(answer: requests.Response) -> str:
    """The beginning of a short plain answer, for messages."""
    text = " ".join(answer.text[:100].split()) if "text/plain" in answer.headers.get("Content-Type", "") else ""
    return f", {redacted(text)!r}" if text else ""


def knock(host: str, port: int, told: str) -> None:
    """Raises: InputError if nothing accepts a connection."""

    def connect() -> None:
        socket.create_connection((host, port), timeout=CONNECT_S).close()

    try:
        within(CONNECT_S, connect)
    except (OSError, ValueError) as e:
        reason = "no such host" if isinstance(e, socket.gaierror) else (getattr(e, "strerror", None) or str(e) or type(e).__name__)
        raise InputError(f"{told}, and nothing answers there ({reason}): start the server, or give another --tracking.uri") from e


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that may hang where no time limit reaches it, such as in a look-up of a name.

    Raises: TimeoutError if it takes longer; what the call raises.
    """
    found: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as e:
            raised.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return found[0]


def bypass_proxy(uri: str) -> None:
    """No proxy reaches this machine's own loopback addresses: they are taken out of its hands."""
    host = urlsplit(uri).hostname or ""
    if not getproxies() or not is_loopback(host) or proxy_bypass(host):
        return
    for name in ("no_proxy", "NO_PROXY"):
        before = os.environ.get(name) or os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        os.environ[name] = ",".join(filter(None, [before, host]))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its loopback addresses."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ensure_same_host(artifact_uri: str | None, uri: str, *, of: str) -> None:
    """Artifacts of a store go where its experiments say, and whoever may write to a store can make one say anything. A web server
    other than the tracking server would get the tracking server's credentials.

    Raises: InputError if artifacts lie on another web server.
    """
    if not artifact_uri:
        return
    there, here = urlsplit(artifact_uri), urlsplit(uri)
    scheme = there.scheme.lower()
    allowed = scheme in ("", "file", "dbfs", "s3", "s3a", "r2", "gs", "wasbs", "abfs", "abfss", "hdfs", "viewfs", "b2")
    if scheme == "mlflow-artifacts":
        allowed = not there.hostname or there.hostname == here.hostname
    elif scheme in ("http", "https"):
        allowed = (scheme, there.hostname, there.port) == (here.scheme.lower(), here.hostname, here.port)
    if not allowed:
        shown = redacted(artifact_uri, whole=True)
        raise InputError(f"{of} keeps its artifacts at {shown}, not at the tracking server: your credentials are not sent there")


def short(error: BaseException) -> str:
    """What an error says, in at most 200 characters on one line."""
    return redacted(" ".join(str(error).split()) or type(error).__name__)[:200]

"""A black box that is a URL: it gets requests by POST and returns replies (messages.py).

A busy or broken connection is tried again, with growing pauses. Redirections are not followed: the pictures go only to the URL that
the user has given.
"""

import os
from urllib.parse import urlsplit

import numpy as np
import urllib3

from cpgan_ray.common.credentials import ENCODER_TOKEN
from cpgan_ray.evaluation.encoders.messages import MAX_REPLY, BlackBoxError, read_codes, write_pictures
from cpgan_ray.evaluation.encoders.sandbox import Arrays, one_line

CONNECT_S = 10.0
RETRIES = 4
"""How often a request is sent again; the pauses are 0, 1, 2 and 4 seconds."""
PAUSE_S = 0.5
AGAIN = (429, 502, 503, 504)
"""Statuses of a service that is busy or starting."""


class Service:
    """A service at a URL."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Raises: BlackBoxError if the URL is not one of a service."""
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid, parts = False, urlsplit("")
        if not valid:
            raise BlackBoxError("is not a URL such as http://127.0.0.1:8000/encode")
        if parts.username or parts.password:
            raise BlackBoxError(f"holds a user or a password: leave them out, and set {ENCODER_TOKEN} to a token")
        self.url, self.timeout_s = url, timeout_s
        again = urllib3.Retry(
            RETRIES, redirect=False, backoff_factor=PAUSE_S, status_forcelist=AGAIN, allowed_methods=None, raise_on_status=False
        )
        self.pool = urllib3.PoolManager(1, retries=again, timeout=urllib3.Timeout(connect=CONNECT_S, read=timeout_s))
        token = os.environ.get(ENCODER_TOKEN)
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def encode(self, pictures: np.ndarray) -> Arrays:
        """Pictures (B, H, W, C) uint8 -> outputs by name.

        Raises: BlackBoxError if the service does not answer, or answers something else.
        """
        try:
            response = self.pool.request(
                "POST", self.url, body=write_pictures(pictures), headers=self.headers, preload_content=False, redirect=False
            )
            try:
                content = response.read(MAX_REPLY + 1)
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as e:
            raise BlackBoxError(f"does not answer ({self._reason(e)}): start the service, or correct the URL") from e
        if response.status != 200:
            said = one_line(content[:200].decode(errors="replace"), 200)
            raise BlackBoxError(f"answers with status {response.status} instead of 200{f' and {said!r}' if said else ''}")
        if len(content) > MAX_REPLY:
            raise BlackBoxError(f"answers with more than {MAX_REPLY >> 20} MB: lower --encoder.batch-size")
        return read_codes(content)

    def _reason(self, error: Exception) -> str:
        """The cause of an error in a few words."""
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, urllib3.exceptions.ReadTimeoutError):
            return f"it took longer than {self.timeout_s:g} s, see --encoder.timeout-s and --encoder.batch-size"
        refused = isinstance(cause, urllib3.exceptions.NewConnectionError)
        if isinstance(cause, urllib3.exceptions.ConnectTimeoutError) and not refused:
            return f"no connection within {CONNECT_S:g} s"
        return one_line(str(cause).rpartition(": ")[2] or type(cause).__name__, 120)

    def close(self) -> None:
        """Close its connections."""
        self.pool.clear()

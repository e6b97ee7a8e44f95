"""Credentials in URIs, kept out of all that is written and printed.

Without this module, a user and a password in a URI would end up in `config.json`, in messages and in MLflow. Libraries read the
same two from environment variables: `move_to_env` moves them there as soon as a URI is read. What has to stay in a URI (the
password of a database, the key of a signed address) is replaced by stars wherever the URI is written or printed: `redacted` finds
URIs in any text, `redacted_values` in nested values. A secret that was seen once is replaced wherever else it appears, as in the
error of a library.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

from cpgan_ray.common.ownership import KEY_VARIABLE

MLFLOW, S3 = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
VARIABLES = {"http": MLFLOW, "https": MLFLOW, "s3": S3}
"""Scheme -> where its user and password belong."""
PLACE = ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
EXPORTED = (*MLFLOW, *S3, *PLACE, "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI", "CPGAN_LOG_LEVEL", KEY_VARIABLE)
"""What a process on another machine needs to reach the same stores, and to know this user's files."""
SECRET_VARIABLES = (MLFLOW[1], S3[1], "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", KEY_VARIABLE)
"""Variables whose whole value is a secret."""
STARS = "***"
SHORTEST = 8
"""Secrets of fewer characters are replaced in URIs only: elsewhere such a string may be an ordinary word."""

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}:(?://|\\/\\/)")
"""The beginning of a URI; also as some JSON writers escape it."""
ENCODED_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}(?:%3A|:)(?:%2F){2}", re.IGNORECASE)
"""The beginning of a URI that is percent-encoded as a whole, such as a parameter of another one."""
PARAMETER = re.compile(r"(?<=[?&#;])([^=&#;?\s\"'<>]{1,200})=")
"""The name of a parameter in a URI's query or fragment."""
HEADER = re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer|token)\s+)[^\s\"',;]+", re.IGNORECASE)
SECRET_NAME = re.compile(r"secret|passw|passphrase|pwd|token|key|sig|credential|auth", re.IGNORECASE)
"""Parameters whose values are secrets: `sig`, `X-Amz-Signature`, `client_secret`, `access_token`, `sslpassword`, ..."""
QUOTES = "\"'`"
BEHIND_QUOTE = ",:;)]}>"
"""What may follow the quotation mark that ends a URI in a text; in front of anything else the mark is part of the URI."""
BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "wasb", "wasbs", "hf")
"""Schemes whose URIs have no port: what follows a colon is a secret, even if it begins with digits."""

_seen: set[str] = set()
"""Secrets that this process has met in URIs."""


def move_to_env(text: str) -> str:
    """The text without the user and password of the URIs in it that have a known scheme; those are in the environment then.

    The text is one value, such as a setting or a command-line argument, and may hold blanks and quotation marks.
    """
    done, at = "", 0
    while found := SCHEME.search(text, at):
        scheme = found.group().partition(":")[0].lower()
        start, end = found.end(), _end_of_uri(text, found.start(), whole=True)
        middle = _userinfo_end(text, start, end, scheme)
        kept = middle
        if middle > start and scheme in VARIABLES:
            user, _, password = text[start : middle - 1].partition(":")
            pair = zip(VARIABLES[scheme], (user, password), strict=True)
            os.environ.update({name: unquote(value) for name, value in pair if value and "\0" not in unquote(value)})
            _remember(password or user)
            kept = start
        done += text[at:kept]
        at = middle
    return done + text[at:]


def redacted(text: str, *, whole: bool = False) -> str:
    """The text with stars in place of all credentials: users and passwords in the URIs in it, their secret parameters, and secrets
    that have been met before.

    whole: the text is one value, of which no URI ends at a blank or quotation mark.
    """
    if "%" in text:
        text = _outside(ENCODED_SCHEME, text, _redacted_encoded, whole)
    if "=" in text:
        text = _without_parameters(text, whole=whole)
    text = HEADER.sub(rf"\1{STARS}", _without_userinfo(text, whole=whole))
    for secret in sorted(_known(), key=len, reverse=True):
        text = text.replace(secret, STARS)
    return text


def redacted_values(value: Any) -> Any:
    """Nested mappings and lists with every text in them redacted."""
    if isinstance(value, Mapping):
        return {redacted_values(name): redacted_values(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(inner) for inner in value]
    return redacted(value, whole=SCHEME.match(value) is not None) if isinstance(value, str) else value


def remember(uri: str) -> None:
    """Have the secrets of a URI replaced wherever they turn up, such as in an error of the library that is given the URI."""
    _without_userinfo(_without_parameters(uri, whole=True), whole=True)


def has_stars(value: Any) -> bool:
    """Whether a value has stars in place of a secret: it was read from a file that was written without."""
    return STARS in str(value)


def export_env() -> dict[str, str]:
    """The variables of this process by which another one reaches the same stores."""
    return {name: os.environ[name] for name in EXPORTED if name in os.environ}


def import_env(environment: Mapping[str, str]) -> None:
    """What another process has `export_env`, where this one has none of its own."""
    os.environ.update({name: value for name, value in environment.items() if name not in os.environ})


def _without_userinfo(text: str, *, whole: bool) -> str:
    done, at = "", 0
    while found := SCHEME.search(text, at):
        scheme = found.group().partition(":")[0].lower()
        start, end = found.end(), _end_of_uri(text, found.start(), whole=whole)
        middle = _userinfo_end(text, start, end, scheme)
        done += text[at:start]
        if middle > start:
            user, _, password = text[start : middle - 1].partition(":")
            _remember(password or user)
            done += f"{STARS}@"
        at = middle
    return done + text[at:]


def _without_parameters(text: str, *, whole: bool) -> str:
    done, at = "", 0
    while found := PARAMETER.search(text, at):
        start = found.end()
        end = min((i for i in (text.find(c, start) for c in "&#") if i >= 0), default=len(text))
        if not whole:
            last = _end_of_uri(text, _start_of_uri(text, found.start()), whole=False, behind=start)
            quoted = start < last and text[start] in QUOTES and text.find(text[start], start + 1, end)
            end = quoted + 1 if quoted and quoted > 0 else min(end, last)
        value = text[start:end]
        if SECRET_NAME.search(unquote_plus(found.group(1))):
            _remember(value)
            value = STARS if value else value
        done += text[at:start] + value
        at = end
    return done + text[at:]


def _outside(pattern: re.Pattern[str], text: str, change: Any, whole: bool) -> str:
    done, at = "", 0
    while found := pattern.search(text, at):
        end = min((i for i in (text.find(c, found.end()) for c in "&#") if i >= 0), default=len(text))
        if not whole:
            end = min(end, _end_of_uri(text, found.start(), whole=False, behind=found.end()))
        done += text[at : found.start()] + change(text[found.start() : end])
        at = end
    return done + text[at:]


def _redacted_encoded(uri: str) -> str:
    plain = unquote(uri)
    shown = redacted(plain, whole=True)
    return uri if shown == plain else quote(shown, safe="*")


def _start_of_uri(text: str, at: int) -> int:
    """Where the last URI before a place begins; the place itself if there is none."""
    starts = [found.start() for found in SCHEME.finditer(text, max(0, at - 5000), at)]
    return starts[-1] if starts else at


def _end_of_uri(text: str, start: int, *, whole: bool, behind: int | None = None) -> int:
    """Where the URI ends that begins at `start`: in a text at a blank, or at a quotation mark that closes a quotation."""
    if whole:
        return len(text)
    i = start if behind is None else behind
    escaped = start > 1 and text[start - 2] == "\\"  # the quotation that the URI is in is itself part of one
    while i < len(text):
        c = text[i]
        if c.isspace() or c < " ":
            return i
        if c in QUOTES and (text[i - 1] == "\\") == (escaped and c == text[start - 1]):
            following = text[i + 1] if i + 1 < len(text) else " "
            if following.isspace() or following in BEHIND_QUOTE:
                return i - escaped
        i += 1
    return i


def _userinfo_end(text: str, start: int, end: int, scheme: str) -> int:
    """Behind the `@` that ends user and password of a URI whose authority begins at `start`; `start` if it has none.

    Secret keys may hold a slash that is not percent-encoded: then what follows the colon is no port, and an `@` follows later.
    """
    authority = min((i for i in (text.find(c, start, end) for c in "/?#\\") if i >= 0), default=end)
    if (at := text.rfind("@", start, authority)) >= 0:
        return at + 1
    _, colon, port = text[start:authority].partition(":")
    bracketed = re.fullmatch(r"\[[0-9A-Fa-f:.]*\](:[0-9]*)?", text[start:authority])
    if not colon or bracketed or re.fullmatch("[0-9]*", port) and scheme not in BUCKETS:
        return start
    return text.rfind("@", start, end) + 1 or start


def _remember(secret: str) -> None:
    for form in (secret, unquote(secret)):
        if len(form) >= SHORTEST and form.strip("*") and "\0" not in form:
            _seen.add(form)


def _known() -> set[str]:
    there = {os.environ.get(name, "") for name in SECRET_VARIABLES}
    return {secret for secret in there | _seen if len(secret) >= SHORTEST}

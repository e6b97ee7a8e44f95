"""Keeps credentials in URIs out of everything that is written, logged or printed.

Without this module, a user name and a password in a URI would end up in `config.json`, in messages and in MLflow. Libraries also
read both from environment variables: `move_to_env` moves them there as soon as a URI is read. Secrets that must stay in a URI (the
password of a database, the key of a signed address) are replaced by stars wherever the URI is written or printed: `redacted` finds
URIs in any text, `redacted_values` in nested values. A secret that was seen once is also replaced in any other text, such as the
error message of a library.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

from cpgan_ray.common.ownership import KEY_VARIABLE

MLFLOW, S3 = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
VARIABLES = {"http": MLFLOW, "https": MLFLOW, "s3": S3}
"""Scheme of a URI -> the variables for its user and password."""
S3_SETTINGS = ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
EXPORTED = (*MLFLOW, *S3, *S3_SETTINGS, "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI", "CPGAN_LOG_LEVEL", KEY_VARIABLE)
"""Variables that a process on another machine needs to reach the same stores and to recognise this user's files."""
ENCODER_TOKEN = "CPGAN_ENCODER_TOKEN"
"""Environment variable with the token that is sent to an encoder at a URL."""
SECRET_VARIABLES = (MLFLOW[1], S3[1], "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", ENCODER_TOKEN, KEY_VARIABLE)
"""Variables whose whole value is a secret."""
STARS = "***"
MIN_SECRET_LENGTH = 8
"""Secrets with fewer characters are replaced only in URIs: in other texts such a string may be an ordinary word."""

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}:(?://|\\/\\/)")
"""The beginning of a URI, with or without the escaped slashes of some JSON writers."""
ENCODED_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}(?:%3A|:)(?:%2F){2}", re.IGNORECASE)
"""The beginning of a URI that is percent-encoded as a whole, such as a parameter of another URI."""
PARAMETER = re.compile(r"(?<=[?&#;])([^=&#;?\s\"'<>]{1,200})=")
"""The name of a parameter in a URI's query or fragment."""
HEADER = re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer|token)\s+)[^\s\"',;]+", re.IGNORECASE)
SECRET_NAME = re.compile(r"secret|passw|passphrase|pwd|token|key|sig|credential|auth", re.IGNORECASE)
"""Parameters whose values are secrets: `sig`, `X-Amz-Signature`, `client_secret`, `access_token`, `sslpassword`, ..."""
QUOTES = "\"'`"
BEHIND_QUOTE = ",:;)]}>"
"""Characters that may follow the quotation mark that ends a URI. Before any other character the mark is part of the URI."""
BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "wasb", "wasbs", "hf")
"""Schemes whose URIs have no port: the text after a colon is a secret, even if it begins with digits."""

_seen: set[str] = set()
"""Secrets that this process has seen in URIs."""


def move_to_env(text: str) -> str:
    """Moves user and password of the URIs in a text to environment variables; returns the text without them.

    Only URIs with a scheme in VARIABLES are changed. The text is one value, such as a setting or a command-line argument, and may
    contain blanks and quotation marks.
    """
    done, at = "", 0
    while match := SCHEME.search(text, at):
        scheme = match.group().partition(":")[0].lower()
        start, end = match.end(), _end_of_uri(text, match.start(), whole=True)
        middle = _userinfo_end(text, start, end, scheme)
        keep_from = middle
        if middle > start and scheme in VARIABLES:
            user, _, password = text[start : middle - 1].partition(":")
            pair = zip(VARIABLES[scheme], (user, password), strict=True)
            os.environ.update({name: unquote(value) for name, value in pair if value and "\0" not in unquote(value)})
            _remember(password or user)
            keep_from = start
        done += text[at:keep_from]
        at = middle
    return done + text[at:]


def redacted(text: str, *, whole: bool = False) -> str:
    """The text with stars in place of all credentials: users, passwords and secret parameters of the URIs in it, and secrets that
    this process has seen before.

    whole: the text is one value: no URI in it ends at a blank or quotation mark.
    """
    if "%" in text:
        text = _replace_encoded(ENCODED_SCHEME, text, _redacted_encoded, whole)
    if "=" in text:
        text = _without_parameters(text, whole=whole)
    text = HEADER.sub(rf"\1{STARS}", _without_userinfo(text, whole=whole))
    for secret in sorted(_known_secrets(), key=len, reverse=True):
        text = text.replace(secret, STARS)
    return text


def redacted_values(value: Any) -> Any:
    """Nested mappings and lists with every string in them redacted."""
    if isinstance(value, Mapping):
        return {redacted_values(name): redacted_values(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(inner) for inner in value]
    return redacted(value, whole=SCHEME.match(value) is not None) if isinstance(value, str) else value


def remember(uri: str) -> None:
    """Redact the secrets of this URI in all later texts, such as the error message of a library that opens the URI."""
    _without_userinfo(_without_parameters(uri, whole=True), whole=True)


def is_redacted(value: Any) -> bool:
    """Whether a value has stars in place of a secret, because it was read from a redacted file."""
    return STARS in str(value)


def export_env() -> dict[str, str]:
    """The environment variables that another process needs to reach the same stores as this one."""
    return {name: os.environ[name] for name in EXPORTED if name in os.environ}


def import_env(environment: Mapping[str, str]) -> None:
    """Sets the exported variables of another process, except those that this process has already set."""
    os.environ.update({name: value for name, value in environment.items() if name not in os.environ})


def _without_userinfo(text: str, *, whole: bool) -> str:
    done, at = "", 0
    while match := SCHEME.search(text, at):
        scheme = match.group().partition(":")[0].lower()
        start, end = match.end(), _end_of_uri(text, match.start(), whole=whole)
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
    while match := PARAMETER.search(text, at):
        start = match.end()
        end = min((i for i in (text.find(c, start) for c in "&#") if i >= 0), default=len(text))
        if not whole:
            last = _end_of_uri(text, _start_of_uri(text, match.start()), whole=False, behind=start)
            quoted = start < last and text[start] in QUOTES and text.find(text[start], start + 1, end)
            end = quoted + 1 if quoted and quoted > 0 else min(end, last)
        value = text[start:end]
        if SECRET_NAME.search(unquote_plus(match.group(1))):
            _remember(value)
            value = STARS if value else value
        done += text[at:start] + value
        at = end
    return done + text[at:]


def _replace_encoded(pattern: re.Pattern[str], text: str, change: Any, whole: bool) -> str:
    done, at = "", 0
    while match := pattern.search(text, at):
        end = min((i for i in (text.find(c, match.end()) for c in "&#") if i >= 0), default=len(text))
        if not whole:
            end = min(end, _end_of_uri(text, match.start(), whole=False, behind=match.end()))
        done += text[at : match.start()] + change(text[match.start() : end])
        at = end
    return done + text[at:]


def _redacted_encoded(uri: str) -> str:
    plain = unquote(uri)
    shown = redacted(plain, whole=True)
    return uri if shown == plain else quote(shown, safe="*")


def _start_of_uri(text: str, at: int) -> int:
    """Where the last URI before position `at` begins; `at` itself if there is none."""
    starts = [match.start() for match in SCHEME.finditer(text, max(0, at - 5000), at)]
    return starts[-1] if starts else at


def _end_of_uri(text: str, start: int, *, whole: bool, behind: int | None = None) -> int:
    """Where the URI that begins at `start` ends. In a text it ends at a blank or at a closing quotation mark."""
    if whole:
        return len(text)
    i = start if behind is None else behind
    escaped = start > 1 and text[start - 2] == "\\"  # the quoted URI is itself inside a quotation
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
    """Position after the `@` that ends user and password of a URI whose authority begins at `start`; `start` if it has neither.

    Secret keys may contain a slash that is not percent-encoded: then the text after the colon is not a port, and an `@` follows.
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
        if len(form) >= MIN_SECRET_LENGTH and form.strip("*") and "\0" not in form:
            _seen.add(form)


def _known_secrets() -> set[str]:
    in_env = {os.environ.get(name, "") for name in SECRET_VARIABLES}
    return {secret for secret in in_env | _seen if len(secret) >= MIN_SECRET_LENGTH}

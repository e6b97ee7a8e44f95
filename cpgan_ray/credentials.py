"""Credentials in URIs, kept out of all that is written and said.

A user and a password in a URI would end up in `config.json`, in messages and in MLflow. Libraries take the same two from variables
of the environment: that is where they go as soon as they come in.
"""

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote

USERINFO = re.compile(r"""\b([a-z][a-z0-9+.-]*)://([^/\s"'@:]*):?([^/\s"']*)@""")
QUERY = re.compile(r"""([?&][\w-]*(?:secret|password|token|key|sig)[\w-]*=)[^&\s"']+""", re.IGNORECASE)
MLFLOW, S3 = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
VARIABLES = {"http": MLFLOW, "https": MLFLOW, "s3": S3}
"""Scheme -> where its user and password belong."""
PLACE = ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
PASSED = (*MLFLOW, *S3, *PLACE, "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI")
"""What a process on another machine needs to reach the same stores."""


def taken(text: str) -> str:
    """The text without the credentials of the URIs in it that have a known scheme; those are in the environment then."""

    def move(match: re.Match[str]) -> str:
        scheme, *both = match.groups()
        if scheme not in VARIABLES:
            return match.group()
        os.environ.update({name: unquote(value) for name, value in zip(VARIABLES[scheme], both, strict=True) if value})
        return f"{scheme}://"

    return USERINFO.sub(move, text)


def redacted(text: str) -> str:
    """The text with stars for the credentials of all URIs in it: of a kind that `taken` leaves where they are, or in an error."""
    return QUERY.sub(r"\1***", USERINFO.sub(r"\1://***@", text))


def passed() -> dict[str, str]:
    """The variables of this process by which another one reaches the same stores."""
    return {name: os.environ[name] for name in PASSED if name in os.environ}


def received(environment: Mapping[str, str]) -> None:
    """What another process has `passed`, where this one has none of its own."""
    os.environ.update({name: value for name, value in environment.items() if name not in os.environ})

"""Writes JSON files, and reads those that may come from another user, within limits and with one type of error."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from cpgan_ray.common.atomic_io import write_text

MAX_BYTES = 64 << 20
"""Larger JSON files are not read. The report of the largest run has about a thousandth of this size."""


def write_json(path: Path, values: Any) -> None:
    """Replaces `path` by a JSON file with these values, readable by people."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises: ValueError with a short message if the file is not a regular file, too large, not UTF-8, not JSON, nested too deeply or
    has numbers with too many digits; OSError if it cannot be read.
    """
    return parse_json(read_limited(path, max_bytes=max_bytes))


def read_limited(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a file.

    Raises: ValueError if it is not a regular file (a named pipe would block) or too large; OSError if it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    return content


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises: ValueError if it is not JSON or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None

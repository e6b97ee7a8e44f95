"""JSON files that may come from elsewhere: read within limits, with one kind of error."""

import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
"""No JSON file is read that is larger; a report of the largest run has about a thousandth of it."""


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises: ValueError, in a few words, if it is no regular file, too large, not UTF-8 or not JSON, nested too deeply or has numbers
    of too many digits; OSError if it cannot be read.
    """
    return parse_json(read_limited(path, max_bytes=max_bytes))


def read_limited(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a file.

    Raises: ValueError if it is no regular file (a named pipe would block) or too large; OSError if it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    return content


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises: ValueError if it is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None

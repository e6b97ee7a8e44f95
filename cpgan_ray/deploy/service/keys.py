"""API keys: where they come from, and how a request's key is compared with them."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cpgan_ray.common.json_files import read_limited
from cpgan_ray.errors import InputError

API_KEY = "CPGAN_API_KEY"
"""Environment variable with the keys, separated by blanks or commas."""
MIN_LENGTH, MAX_LENGTH, MAX_KEYS = 16, 512, 1000
MAX_FILE_BYTES = 1 << 20
KEY = re.compile(r"[\x21-\x7e]+")
"""What a client can send: ASCII without blanks."""
BEARER = b"bearer "


class Keys:
    """The valid keys. Only their digests are kept, so a key is in no dump of this object."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises: InputError if there is none, or one of them is too short or cannot be sent. The message has no key."""
        distinct = dict.fromkeys(keys)
        if not distinct:
            raise InputError(f"there is no API key: set {API_KEY} to at least {MIN_LENGTH} characters")
        if len(distinct) > MAX_KEYS:
            raise InputError(f"there are {len(distinct)} API keys: give at most {MAX_KEYS}")
        for number, key in enumerate(distinct, 1):
            if not KEY.fullmatch(key):
                raise InputError(f"API key {number} has characters that no key has: use ASCII letters and digits")
            if not MIN_LENGTH <= len(key) <= MAX_LENGTH:
                raise InputError(
                    f"API key {number} has {len(key)} characters: give {MIN_LENGTH} to {MAX_LENGTH}, for example of "
                    "`openssl rand -hex 32`"
                )
        self._digests = tuple(_digest(key.encode()) for key in distinct)

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, authorization: bytes | None) -> int | None:
        """The number of the key in a header `Authorization: Bearer KEY`; None if it is no valid key.

        Every key is compared, and digests instead of keys: the time depends on none of them.
        """
        if authorization is None or authorization[: len(BEARER)].lower() != BEARER:
            return None
        digest, number = _digest(authorization[len(BEARER) :].strip()), None
        for i, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                number = i
        return number


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def keys_of(environment: Mapping[str, str], file: Path | None) -> list[str]:
    """The keys in a file (one a line; lines that begin with # are comments), else those in CPGAN_API_KEY; empty if there are none.

    Raises: InputError if the file cannot be read.
    """
    if file is None:
        return [key for key in re.split(r"[\s,]+", environment.get(API_KEY, "")) if key]
    try:
        lines = read_limited(file, max_bytes=MAX_FILE_BYTES).decode("ascii").splitlines()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not a small file of ASCII lines"
        raise InputError(f"keys file {file} cannot be read ({reason}): give a file with one API key a line") from e
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

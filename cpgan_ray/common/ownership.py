"""Which files this user's own runs have written, and which came from elsewhere.

A run folder or a prepared store can be copied from anywhere, with checksums that fit. What a user's own run has written therefore
carries a keyed checksum (HMAC-SHA256) in a file next to it, `<name>.owner`. The key is random, is created on first use, and never
leaves the user's machines: it is in CPGAN_OWNER_KEY, or in `$XDG_STATE_HOME/cpgan_ray/owner.key` (`~/.local/state` by default),
readable for the user only. Without a key nothing counts as the user's own, and `--trust` has to say so.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from cpgan_ray.common.atomic_io import write_text

KEY_VARIABLE = "CPGAN_OWNER_KEY"
"""Environment variable with the key, 64 hexadecimal digits; passed on to a job's actors on other machines."""
SUFFIX = ".owner"
KEY = re.compile("[0-9a-f]{64}")


def sign(path: Path) -> None:
    """Marks a file's present content as written by this user. Does nothing without a key, or if the folder cannot be written to."""
    if (key := owner_key()) is not None:
        with contextlib.suppress(OSError):
            write_text(path.with_name(path.name + SUFFIX), signature(path, key) + "\n")


def is_own(path: Path, content: bytes | None = None) -> bool:
    """Whether the present content of a file was signed by this user. `content`: what was read from it, so that the answer is about
    that even if the file changes meanwhile."""
    key, beside = owner_key(create=False), path.with_name(path.name + SUFFIX)
    if key is None:
        return False
    try:
        with beside.open() as file:
            found = file.read(200).strip()
        return found.isascii() and hmac.compare_digest(found, signature(path, key, content))
    except (OSError, ValueError):
        return False


def signature(path: Path, key: bytes, content: bytes | None = None) -> str:
    """HMAC-SHA256 over a file's name and content, in hexadecimal digits."""
    content = path.read_bytes() if content is None else content
    return hmac.new(key, path.name.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def owner_key(*, create: bool = True) -> bytes | None:
    """The key of this user, or None if there is none and none can be kept."""
    if KEY.fullmatch(named := os.environ.get(KEY_VARIABLE, "")):
        return bytes.fromhex(named)
    folder = state_folder()
    return None if folder is None else _stored_key(folder / "owner.key", create)


def state_folder() -> Path | None:
    """Where the key is kept, or None for a user without a home folder."""
    if (named := os.environ.get("XDG_STATE_HOME")) and Path(named).is_absolute():
        return Path(named) / "cpgan_ray"
    try:
        return Path.home() / ".local" / "state" / "cpgan_ray"
    except RuntimeError:
        return None


def _stored_key(path: Path, create: bool) -> bytes | None:
    key = _read_key(path)
    if key is None and create:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another process was faster: its key counts
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with os.fdopen(handle, "w") as file:
                    file.write(secrets.token_hex(32) + "\n")
            key = _read_key(path)
    return key


def _read_key(path: Path) -> bytes | None:
    try:
        text = path.read_text().strip()
    except (OSError, ValueError):
        return None
    return bytes.fromhex(text) if KEY.fullmatch(text) else None

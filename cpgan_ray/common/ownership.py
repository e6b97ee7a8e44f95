"""Distinguishes files that this user's own runs have written from files of other users.

A run folder or a prepared store can be copied from anywhere, with matching checksums. Files that a user's own run has written
therefore carry a keyed checksum (HMAC-SHA256) in a file next to them, `<name>.owner`. The key is random, is created on first use,
and never leaves the user's machines: it is in CPGAN_OWNER_KEY, or in `$XDG_STATE_HOME/cpgan_ray/owner.key` (`~/.local/state` by
default), readable only for the user. Without a key no file counts as the user's own, and the user has to pass `--trust`.
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
"""Environment variable with the key (64 hexadecimal digits). It is passed to a job's actors on other machines."""
SUFFIX = ".owner"
KEY = re.compile("[0-9a-f]{64}")


def sign(path: Path) -> None:
    """Marks the present content of a file as written by this user. Does nothing without a key or if the folder is not writable."""
    if (key := owner_key()) is not None:
        with contextlib.suppress(OSError):
            write_text(path.with_name(path.name + SUFFIX), signature(path, key) + "\n")


def is_own(path: Path, content: bytes | None = None) -> bool:
    """Whether this user has signed the present content of a file.

    content: the bytes already read from the file, to be checked even if the file changes meanwhile.
    """
    key, signature_file = owner_key(create=False), path.with_name(path.name + SUFFIX)
    if key is None:
        return False
    try:
        with signature_file.open() as file:
            stored = file.read(200).strip()
        return stored.isascii() and hmac.compare_digest(stored, signature(path, key, content))
    except (OSError, ValueError):
        return False


def signature(path: Path, key: bytes, content: bytes | None = None) -> str:
    """HMAC-SHA256 of a file's name and content, as hexadecimal digits."""
    content = path.read_bytes() if content is None else content
    return hmac.new(key, path.name.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def owner_key(*, create: bool = True) -> bytes | None:
    """The key of this user. None if there is none and none can be stored."""
    if KEY.fullmatch(key := os.environ.get(KEY_VARIABLE, "")):
        return bytes.fromhex(key)
    folder = state_folder()
    return None if folder is None else _stored_key(folder / "owner.key", create)


def state_folder() -> Path | None:
    """The folder of the key. None if the user has no home folder."""
    if (state_home := os.environ.get("XDG_STATE_HOME")) and Path(state_home).is_absolute():
        return Path(state_home) / "cpgan_ray"
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

"""The manifest of a store (`manifest.json`): the positions of all columns in its files, so that no file needs to be parsed.

A store may have come with data from an untrusted source. Its Arrow files are therefore not parsed when it is opened, because their
metadata could be malicious (lengths beyond the file, overlapping buffers, compressed buffers that fill the memory). The manifest
holds the positions as plain numbers, and every process checks them against the size of the file when it opens it
(`dataset.open_split`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from cpgan_ray.data.store.info import DatasetInfo
from cpgan_ray.errors import InputError

MANIFEST, CHECKSUM = "manifest.json", "checksum"
MAX_JSON_BYTES = 64 << 20
"""Larger JSON files are not read. The manifest of 200,000 pictures with 40 labels has 130 kB."""
FORMAT = 5
"""Version of the file format; part of every digest, so that a new version never reads old files."""
K = TypeVar("K")


@dataclass(frozen=True)
class SplitFile:
    """The manifest's entry for one file."""

    rows: int
    bytes: int
    sha256: str
    batches: tuple[tuple[int, ...], ...]
    """For each record batch: its number of rows, then the byte positions of its pictures, its identities and each label."""


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    format: Literal[FORMAT]  # pyright: ignore[reportInvalidTypeForm]
    digest: str
    source: dict[str, Any]
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    dtype: Literal["uint8", "float32"]
    info: DatasetInfo
    splits: dict[Literal["train", "val", "test", "final"], SplitFile]
    skipped: tuple[str, ...]
    remarks: dict[str, int]
    """Remarks on pictures that are not skipped: kind (`decoding.REMARKS`) to number of pictures."""
    checksum: str
    """SHA-256 of all fields above, see `manifest_text`."""


def manifest_text(values: Mapping[str, Any]) -> str:
    """The text of a manifest: its values and their checksum, which detects changes."""
    return json.dumps({**values, CHECKSUM: _checksum(values)}) + "\n"


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a store.

    Raises:
        InputError: the manifest is missing or damaged.
    """
    content = _read(folder, MANIFEST)
    manifest = _validated(folder, MANIFEST, content, Manifest)
    values = json.loads(content)
    if values.pop(CHECKSUM) != _checksum(values):
        raise damaged_store(folder, f"{MANIFEST} is damaged (checksum mismatch)")
    return manifest


def read_json(folder: Path, name: str, *, kind: type[K]) -> K:
    """Read a JSON file of a prepared folder into the dataclass `kind`, whose types are checked.

    Raises:
        InputError: the file is missing, or its content does not match `kind`.
    """
    return _validated(folder, name, _read(folder, name), kind)


def _read(folder: Path, name: str) -> bytes:
    try:
        if not (folder / name).is_file():
            raise damaged_store(folder, f"{name} is missing")
        with (folder / name).open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as e:
        raise damaged_store(folder, f"{name} cannot be read ({e.strerror})") from e
    if len(content) > MAX_JSON_BYTES:
        raise damaged_store(folder, f"{name} has more than {MAX_JSON_BYTES} bytes")
    return content


def _validated(folder: Path, name: str, content: bytes, kind: type[K]) -> K:
    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as e:
        first = e.errors()[0]
        if first["loc"] == ("format",) and first["type"] == "literal_error":
            raise damaged_store(folder, f"{name} has format {first['input']!r:.40}, this version reads {FORMAT}") from e
        where = " ".join(repr(part)[:40] for part in first["loc"])
        raise damaged_store(folder, f"{name} cannot be read ({where}{': ' if where else ''}{first['msg']})") from e


class DamagedStoreError(InputError):
    """A prepared folder has been changed since it was written."""

    reason: str = ""
    """The message without the folder and the remedy."""


def damaged_store(folder: Path, reason: str) -> DamagedStoreError:
    error = DamagedStoreError(f"prepared store {folder}: {reason}: delete this folder, it will be prepared again")
    error.reason = reason
    return error

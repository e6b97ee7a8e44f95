"""What `manifest.json` says of a store: where in its files everything is, so that no file is parsed to find out.

A store may have come with somebody's data: its Arrow files are not parsed when it is opened, since their metadata could lie
(lengths beyond the file, buffers on top of each other, compressed buffers that fill the memory). The positions are in the
manifest instead, plain numbers, which `dataset.open_split` checks against the size of the file at every opening, in every
process.
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
"""No description of a store is read that is larger; that of 200,000 pictures with 40 labels has 130 kB."""
FORMAT = 4
"""Version of the files; part of every digest, so that a new version never reads old files."""
K = TypeVar("K")


@dataclass(frozen=True)
class SplitFile:
    """What a manifest says of one file."""

    rows: int
    bytes: int
    sha256: str
    batches: tuple[tuple[int, ...], ...]
    """Of each record batch: its rows, then the positions in the file, in bytes, of its pictures, its identities and each label."""


@dataclass(frozen=True)
class Manifest:
    """The fields of `manifest.json` that are read."""

    format: Literal[FORMAT]  # pyright: ignore[reportInvalidTypeForm]
    digest: str
    source: dict[str, Any]
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    dtype: Literal["uint8", "float32"]
    info: DatasetInfo
    splits: dict[Literal["train", "val", "test"], SplitFile]
    skipped: tuple[str, ...]
    remarks: dict[str, int]
    """What was to be said of pictures that are not skipped: kind (`decoding.REMARKS`) to number of pictures."""
    checksum: str
    """SHA-256 of all of the above, see `sealed`."""


def sealed(values: Mapping[str, Any]) -> str:
    """The content of a manifest: its values, and their checksum, by which an altered one is noticed."""
    return json.dumps({**values, CHECKSUM: _checksum(values)}) + "\n"


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Raises: InputError where the manifest is missing or damaged."""
    content = _read(folder, MANIFEST)
    manifest = _validated(folder, MANIFEST, content, Manifest)
    values = json.loads(content)
    if values.pop(CHECKSUM) != _checksum(values):
        raise damaged(folder, f"{MANIFEST} is damaged, its checksum is another one")
    return manifest


def read_json(folder: Path, name: str, *, kind: type[K]) -> K:
    """A JSON file of a prepared folder, whose values must be of the types that `kind` says.

    Raises: InputError where the file is missing, or holds something else.
    """
    return _validated(folder, name, _read(folder, name), kind)


def _read(folder: Path, name: str) -> bytes:
    try:
        if not (folder / name).is_file():
            raise damaged(folder, f"{name} is missing")
        with (folder / name).open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as e:
        raise damaged(folder, f"{name} cannot be read ({e.strerror})") from e
    if len(content) > MAX_JSON_BYTES:
        raise damaged(folder, f"{name} has more than {MAX_JSON_BYTES} bytes")
    return content


def _validated(folder: Path, name: str, content: bytes, kind: type[K]) -> K:
    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as e:
        first = e.errors()[0]
        if first["loc"] == ("format",) and first["type"] == "literal_error":
            raise damaged(folder, f"{name} has format {first['input']!r:.40}, this version reads {FORMAT}") from e
        where = " ".join(repr(part)[:40] for part in first["loc"])
        raise damaged(folder, f"{name} cannot be read ({where}{': ' if where else ''}{first['msg']})") from e


class Damaged(InputError):
    """A prepared folder is not what was written."""

    what: str = ""


def damaged(folder: Path, what: str) -> Damaged:
    error = Damaged(f"prepared store {folder}: {what}: delete this folder, it is prepared again")
    error.what = what
    return error

"""Opening a store: its manifest, and the check that its files are those that were written."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from cpgan_ray.data.store.dataset import SPLITS, Dataset, Nature, open_split
from cpgan_ray.data.store.files import checksum, locked, replacing
from cpgan_ray.errors import InputError

MANIFEST = "manifest.json"
FORMAT = 2
"""Version of the files; part of every digest, so that a new version never reads old files."""
VERIFIED = "verified.json"
"""What `verify` remembers: the state of each file when its checksum was right."""
K = TypeVar("K")


@dataclass(frozen=True)
class SplitFile:
    """What a manifest says of one file."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The fields of `manifest.json` that are read."""

    format: Literal[FORMAT]  # pyright: ignore[reportInvalidTypeForm]
    digest: str
    source: dict[str, Any]
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    nature: Nature
    splits: dict[Literal["train", "val", "test"], SplitFile]
    skipped: tuple[str, ...]


def open_store(folder: Path) -> Dataset:
    """The store in `folder`, memory-mapped, after a check of its files against its manifest.

    Raises:
        InputError: the store or one of its files is missing, truncated or damaged.
    """
    folder = folder.absolute()
    manifest = read_json(folder, MANIFEST, kind=Manifest)
    for name in SPLITS:
        path, told = folder / f"{name}.arrow", manifest.splits.get(name)
        if told is None or not path.is_file():
            raise damaged(folder, f"{path.name} is missing")
        if path.stat().st_size != told.bytes:
            raise damaged(folder, f"{path.name} has {path.stat().st_size} bytes instead of {told.bytes}")
    verify(folder, checksums(folder))
    splits = {}
    for name in SPLITS:
        path = folder / f"{name}.arrow"
        try:
            split = open_split(path)
        except Exception as e:  # whatever its content leads to
            raise damaged(folder, f"{path.name} cannot be read ({' '.join(str(e).split())[:200]})") from e
        told = (manifest.splits[name].rows, manifest.label_names, manifest.image_shape)
        if (len(split), split.label_names, split.image_shape) != told:
            raise damaged(folder, f"{path.name} does not hold what manifest.json says")
        splits[name] = split
    return Dataset(
        folder=folder,
        digest=manifest.digest,
        label_names=manifest.label_names,
        image_shape=manifest.image_shape,
        nature=manifest.nature,
        skipped=manifest.skipped,
        **splits,
    )


def checksums(folder: Path) -> dict[str, str]:
    """What the manifest in a folder tells of each file of the store: its SHA-256.

    Raises: InputError where the manifest is missing or damaged.
    """
    return {f"{name}.arrow": told.sha256 for name, told in read_json(folder, MANIFEST, kind=Manifest).splits.items()}


def read_json(folder: Path, name: str, *, kind: type[K]) -> K:
    """A JSON file of a prepared folder, whose values must be of the types that `kind` says.

    Raises: InputError where the file is missing, or holds something else.
    """
    try:
        if not (folder / name).is_file():
            raise damaged(folder, f"{name} is missing")
        return TypeAdapter(kind).validate_json((folder / name).read_bytes(), strict=True)
    except OSError as e:
        raise damaged(folder, f"{name} cannot be read ({e.strerror})") from e
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


def verify(folder: Path, expected: Mapping[str, str]) -> None:
    """Make sure that the files in `folder` are those that were written, by their SHA-256.

    Each node does that once: hashing 7.5 GB (200,000 pictures of 112 x 112) takes 7 s of a core, too much for every actor. What was
    found right is remembered beside the files with their size, inode and times of change, of which whatever writes to a file
    alters one; for the next one that opens them that is 0.1 ms. Where nothing can be written, each process hashes. Nobody parses a
    file before: Arrow ends the process over some damaged ones.

    Raises: InputError naming the file that is another one.
    """
    if is_verified(folder, expected):
        return
    with locked(folder) if os.access(folder.parent, os.W_OK) else contextlib.nullcontext():
        if is_verified(folder, expected):  # by whoever held the lock
            return
        try:
            before = states(folder, expected)
            wrong = next((name for name, told in expected.items() if checksum(folder / name) != told), None)
        except OSError as e:
            raise damaged(folder, f"{Path(e.filename).name} cannot be read ({e.strerror})") from e
        if wrong is not None:
            raise damaged(folder, f"{wrong} is damaged, its checksum is another one")
        with contextlib.suppress(OSError):
            remember(folder, before)


def states(folder: Path, checksums: Mapping[str, str]) -> list[list[str | int]]:
    stats = {name: (folder / name).stat() for name in checksums}
    return [[name, checksums[name], s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats.items()]


def is_verified(folder: Path, checksums: Mapping[str, str]) -> bool:
    path = folder / VERIFIED
    try:
        return path.is_file() and json.loads(path.read_bytes()) == states(folder, checksums)
    except (OSError, ValueError, RecursionError):
        return False


def remember(folder: Path, states: Sequence[object]) -> None:
    with replacing(folder / VERIFIED) as beside:
        beside.write_text(json.dumps(states))

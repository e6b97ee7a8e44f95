"""Opening a store: its manifest, and the check that its files are those that were written."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpgan_ray.common.atomic_io import write_text
from cpgan_ray.data.store.dataset import SPLITS, Dataset, map_split
from cpgan_ray.data.store.files import checksum, locked
from cpgan_ray.data.store.manifest import damaged, read_manifest

VERIFIED = "verified.json"
"""What `verify` remembers: the state of each file when its checksum was right."""


def open_store(folder: Path) -> Dataset:
    """The store in `folder`, memory-mapped, after a check of its files against its manifest.

    Raises:
        InputError: the store or one of its files is missing, truncated or damaged.
    """
    folder = folder.absolute()
    manifest = read_manifest(folder)
    for name in SPLITS:
        path, told = folder / f"{name}.arrow", manifest.splits.get(name)
        if told is None or not path.is_file():
            raise damaged(folder, f"{path.name} is missing")
        if path.stat().st_size != told.bytes:
            raise damaged(folder, f"{path.name} has {path.stat().st_size} bytes instead of {told.bytes}")
    verify(folder, {f"{name}.arrow": told.sha256 for name, told in manifest.splits.items()})
    train, val, test = (map_split(folder / f"{name}.arrow", manifest) for name in SPLITS)
    return Dataset(
        folder=folder,
        digest=manifest.digest,
        label_names=manifest.label_names,
        image_shape=manifest.image_shape,
        info=manifest.info,
        skipped=manifest.skipped,
        train=train,
        val=val,
        test=test,
    )


def checksums(folder: Path) -> dict[str, str]:
    """What the manifest in a folder tells of each file of the store: its SHA-256.

    Raises: InputError where the manifest is missing or damaged.
    """
    return {f"{name}.arrow": told.sha256 for name, told in read_manifest(folder).splits.items()}


def verify(folder: Path, expected: Mapping[str, str]) -> None:
    """Make sure that the files in `folder` are those that were written, by their SHA-256.

    Each node does that once: hashing 7.5 GB (200,000 pictures of 112 x 112) takes 7 s of a core, too much for every actor. What was
    found right is remembered beside the files with their size, inode and times of change, of which whatever writes to a file
    alters one; for the next one that opens them that is 0.1 ms. Where nothing can be written, each process hashes.

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
    write_text(folder / VERIFIED, json.dumps(states))

"""Open a store: read its manifest and check that its files are unchanged."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpgan_ray.common.atomic_io import write_text
from cpgan_ray.data.store.dataset import FILES, Dataset, map_split
from cpgan_ray.data.store.files import checksum, folder_lock
from cpgan_ray.data.store.manifest import damaged_store, read_manifest

VERIFIED = "verified.json"
"""Where `verify` records the state of each file at the time when its checksum was right."""


def open_store(folder: Path) -> Dataset:
    """Check the files of the store in `folder` against its manifest and memory-map them.

    Raises:
        InputError: the store or one of its files is missing, truncated or damaged.
    """
    folder = folder.absolute()
    manifest = read_manifest(folder)
    for name in FILES:
        path, entry = folder / f"{name}.arrow", manifest.splits.get(name)
        if entry is None or not path.is_file():
            raise damaged_store(folder, f"{path.name} is missing")
        if path.stat().st_size != entry.bytes:
            raise damaged_store(folder, f"{path.name} has {path.stat().st_size} bytes instead of {entry.bytes}")
    verify(folder, {f"{name}.arrow": entry.sha256 for name, entry in manifest.splits.items()})
    train, val, test, final = (map_split(folder / f"{name}.arrow", manifest) for name in FILES)
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
        final=final,
    )


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a store, from its manifest.

    Raises:
        InputError: the manifest is missing or damaged.
    """
    return {f"{name}.arrow": entry.sha256 for name, entry in read_manifest(folder).splits.items()}


def verify(folder: Path, expected: Mapping[str, str]) -> None:
    """Check the SHA-256 of the files in `folder`.

    Each node does this once, because hashing 7.5 GB (200,000 pictures of 112 x 112) takes 7 s on one core, too long for every
    actor. The result is recorded next to the files with their size, inode and times of change (any write to a file changes one of
    them), so the next process needs only 0.1 ms. If the folder is not writable, each process computes the hashes.

    Raises:
        InputError: a checksum does not match; names the file.
    """
    if is_verified(folder, expected):
        return
    with folder_lock(folder) if os.access(folder.parent, os.W_OK) else contextlib.nullcontext():
        if is_verified(folder, expected):  # by the process that held the lock
            return
        try:
            before = file_states(folder, expected)
            wrong = next((name for name, sha256 in expected.items() if checksum(folder / name) != sha256), None)
        except OSError as e:
            raise damaged_store(folder, f"{Path(e.filename).name} cannot be read ({e.strerror})") from e
        if wrong is not None:
            raise damaged_store(folder, f"{wrong} is damaged (checksum mismatch)")
        with contextlib.suppress(OSError):
            record_verified(folder, before)


def file_states(folder: Path, checksums: Mapping[str, str]) -> list[list[str | int]]:
    """For each file: name, expected SHA-256, size, inode, time of modification, time of change."""
    stats = {name: (folder / name).stat() for name in checksums}
    return [[name, checksums[name], s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats.items()]


def is_verified(folder: Path, checksums: Mapping[str, str]) -> bool:
    path = folder / VERIFIED
    try:
        return path.is_file() and json.loads(path.read_bytes()) == file_states(folder, checksums)
    except (OSError, ValueError, RecursionError):
        return False


def record_verified(folder: Path, states: Sequence[object]) -> None:
    write_text(folder / VERIFIED, json.dumps(states))

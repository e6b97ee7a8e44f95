"""Prepared stores that nodes share, in a folder or an object store (`--shared-cache`).

    <digest>/manifest.json                        written last: without it there is no store
    <digest>/<SHA-256>-train.arrow ...            the files that the manifest tells the SHA-256 of
    <digest>/projection-256-<SHA-256>/...         principal components of the store with that train.arrow, likewise
    sources/<SHA-256>.json                        which store the files behind a URI make, see `fingerprint`

Files are called by their content, so that two nodes which put a store there at once do not spoil each other's: whichever manifest
stays, all that it names is there, whole. What is taken is checked as every prepared store is, before it gets its name.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpgan_ray.common.atomic_io import make_folder, write_bytes
from cpgan_ray.common.ownership import sign
from cpgan_ray.config import Config
from cpgan_ray.data import store
from cpgan_ray.data.sync.remote_files import File, RemoteFolder, fetch_all
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

Checksums = Callable[[Path], Mapping[str, str]]
"""A folder that has its manifest to the SHA-256 of each further file."""


class SharedCache:
    """Where nodes share prepared stores."""

    def __init__(self, where: str | Path) -> None:
        """Raises: InputError where no file system answers to the URI."""
        self.place = RemoteFolder(where, option="shared_cache")

    def take(self, name: str, folder: Path, *, manifest: str, checksums: Checksums, progress: bool = True) -> bool:
        """Fetch `name` into `folder`, which must not exist; the caller holds `store.locked(folder)`. False where it is not there.

        Raises: InputError where the place does not answer, or what it has is damaged or another store than its name says.
        """
        if self.place.find(f"{name}/{manifest}") is None:
            self.place.ensure_bucket()
            return False
        beside, content = folder.with_name(folder.name + ".fetched"), self.place.read(f"{name}/{manifest}")
        if beside.is_dir() and not ((beside / manifest).is_file() and (beside / manifest).read_bytes() == content):
            shutil.rmtree(beside)  # of another one
        beside.parent.mkdir(parents=True, exist_ok=True)
        make_folder(beside)
        write_bytes(beside / manifest, content)
        try:
            expected = checksums(beside)
            missing: dict[File, Path] = {}
            for file, sha in expected.items():
                if not (beside / file).is_file():  # since an interrupted call: what has its name is whole
                    found = self.place.find(stored_as(name, file, sha))
                    if found is None:
                        raise store.damaged(beside, f"{file} is missing")
                    missing[found] = beside / file
            fetch_all(self.place, missing, progress=progress)
            store.verify(beside, expected)
        except store.Damaged as e:
            shutil.rmtree(beside)
            raise InputError(f"shared store {self.place.where}/{name}: {e.what}: delete this folder, it is put there again") from e
        sign(beside / manifest)
        beside.rename(folder)
        if progress:
            logger.info(f"fetched {name} from {self.place.where}")
        return True

    def put(self, name: str, folder: Path, *, manifest: str, checksums: Checksums, progress: bool = True) -> None:
        """Put `folder` there as `name`, unless it is there. A place that does not take it is told: the run goes on.

        Raises: InputError where the folder is damaged.
        """
        expected = checksums(folder)
        store.verify(folder, expected)
        try:
            if self.place.find(f"{name}/{manifest}") is not None:
                return
            for file, sha in expected.items():
                there = self.place.find(stored := stored_as(name, file, sha))
                if there is None or there.size != (folder / file).stat().st_size:
                    self.place.write(folder / file, stored)
            self.place.write((folder / manifest).read_bytes(), f"{name}/{manifest}")
        except InputError as e:
            logger.warning(f"{name} is not shared: {e}")
            return
        if progress:
            logger.info(f"put {name} into {self.place.where}")

    def known(self, source: str) -> str | None:
        """The digest of the store that a source makes, by its `fingerprint`; None where nobody has told.

        Raises: InputError where the place does not answer, or what it has is damaged.
        """
        name = f"sources/{source}.json"
        if self.place.find(name) is None:
            return None
        try:
            digest = json.loads(self.place.read(name))["digest"]
            if re.fullmatch("[0-9a-f]{16}", digest):
                return digest
        except (ValueError, KeyError, TypeError):
            pass
        raise InputError(f"shared store {self.place.where}/{name} is damaged: delete this file, it is put there again")

    def tell(self, source: str, digest: str) -> None:
        """The inverse of `known`. A place that does not take it goes without."""
        try:
            self.place.write((json.dumps({"digest": digest}) + "\n").encode(), f"sources/{source}.json")
        except InputError as e:
            logger.warning(f"the source of {digest} is not told: {e}")


def stored_as(name: str, file: str, sha: str) -> str:
    return f"{name}/{sha}-{file}"


def fingerprint(files: Sequence[File], settings: Mapping[str, Any]) -> str:
    """What stands for the files behind a URI, unread: their names, sizes and times of change, and how they are treated.

    A store's digest is of its source's contents, which for a URI means to fetch them. With the fingerprint a node that has never
    seen the source learns the digest from one that has. The price: a file that is replaced by another of the same size within a
    tick of the store's clock (S3: a second), or with its time set back, is not noticed; and a source that is copied elsewhere is
    fetched once more, as its times are others. Who will not pay it names the store itself (`--data.digest`).
    """
    told = [store.FORMAT, dict(settings), [[file.name, file.size, file.changed_ns] for file in files]]
    return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogateescape")).hexdigest()


def shared_cache(config: Config) -> SharedCache | None:
    return None if config.shared_cache is None else SharedCache(config.shared_cache)

"""Prepared stores that nodes share, in a folder or an object store (`--shared-cache`).

    <digest>/manifest.json                        written last: without it there is no store
    <digest>/<SHA-256>-train.arrow ...            the files whose SHA-256 the manifest lists
    <digest>/projection-256-<SHA-256>/...         principal components of the store with that train.arrow, in the same format
    sources/<SHA-256>.json                        which store the files behind a URI make, see `fingerprint`

File names contain the hash of the content, so two nodes that add the same store at the same time do no harm: whichever manifest
stays, all files that it lists are there and complete. A fetched store is checked like every prepared store before it gets its name.
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
from cpgan_ray.data.sync.remote_files import RemoteFile, RemoteFolder, fetch_all
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

Checksums = Callable[[Path], Mapping[str, str]]
"""Folder with a manifest -> the SHA-256 of each further file."""


class SharedCache:
    """The folder or object store in which nodes share prepared stores."""

    def __init__(self, address: str | Path) -> None:
        """Open the shared cache at a path or URI.

        Raises:
            InputError: no file system supports the URI.
        """
        self.remote = RemoteFolder(address, option="shared_cache")

    def take(self, name: str, folder: Path, *, manifest: str, checksums: Checksums, progress: bool = True) -> bool:
        """Fetch `name` into `folder`, which must not exist; the caller holds `store.folder_lock(folder)`. Returns False if the
        cache does not have it.

        Raises:
            InputError: the file system does not respond, or the shared store is damaged or does not match its name.
        """
        if self.remote.find(f"{name}/{manifest}") is None:
            self.remote.ensure_bucket()
            return False
        temporary, content = folder.with_name(folder.name + ".fetched"), self.remote.read(f"{name}/{manifest}")
        if temporary.is_dir() and not ((temporary / manifest).is_file() and (temporary / manifest).read_bytes() == content):
            shutil.rmtree(temporary)  # left by an interrupted call for another version
        temporary.parent.mkdir(parents=True, exist_ok=True)
        make_folder(temporary)
        write_bytes(temporary / manifest, content)
        try:
            expected = checksums(temporary)
            missing: dict[RemoteFile, Path] = {}
            for file, sha in expected.items():
                if not (temporary / file).is_file():  # files of an interrupted call are complete if they have their final name
                    remote_file = self.remote.find(shared_name(name, file, sha))
                    if remote_file is None:
                        raise store.damaged_store(temporary, f"{file} is missing")
                    missing[remote_file] = temporary / file
            fetch_all(self.remote, missing, progress=progress)
            store.verify(temporary, expected)
        except store.DamagedStoreError as e:
            shutil.rmtree(temporary)
            raise InputError(
                f"shared store {self.remote.address}/{name}: {e.reason}: delete this folder, it will be added again"
            ) from e
        sign(temporary / manifest)
        temporary.rename(folder)
        if progress:
            logger.info(f"fetched {name} from {self.remote.address}")
        return True

    def put(self, name: str, folder: Path, *, manifest: str, checksums: Checksums, progress: bool = True) -> None:
        """Add `folder` to the cache as `name`, unless it exists. If it cannot be written, only a warning is logged.

        Raises:
            InputError: the folder is damaged.
        """
        expected = checksums(folder)
        store.verify(folder, expected)
        try:
            if self.remote.find(f"{name}/{manifest}") is not None:
                return
            for file, sha in expected.items():
                existing = self.remote.find(target := shared_name(name, file, sha))
                if existing is None or existing.size != (folder / file).stat().st_size:
                    self.remote.write(folder / file, target)
            self.remote.write((folder / manifest).read_bytes(), f"{name}/{manifest}")
        except InputError as e:
            logger.warning(f"{name} is not shared: {e}")
            return
        if progress:
            logger.info(f"added {name} to {self.remote.address}")

    def lookup_digest(self, source: str) -> str | None:
        """The digest of the store that a source makes, by its `fingerprint`; None if it is not recorded.

        Raises:
            InputError: the file system does not respond, or the record is damaged.
        """
        name = f"sources/{source}.json"
        if self.remote.find(name) is None:
            return None
        try:
            digest = json.loads(self.remote.read(name))["digest"]
            if re.fullmatch("[0-9a-f]{16}", digest):
                return digest
        except (ValueError, KeyError, TypeError):
            pass
        raise InputError(f"shared store {self.remote.address}/{name} is damaged: delete this file, it will be added again")

    def record_digest(self, source: str, digest: str) -> None:
        """Record the digest for `lookup_digest`. If it cannot be written, only a warning is logged."""
        try:
            self.remote.write((json.dumps({"digest": digest}) + "\n").encode(), f"sources/{source}.json")
        except InputError as e:
            logger.warning(f"the source of {digest} is not recorded: {e}")


def shared_name(name: str, file: str, sha: str) -> str:
    """The name under which a file of a store is shared."""
    return f"{name}/{sha}-{file}"


def fingerprint(files: Sequence[RemoteFile], settings: Mapping[str, Any]) -> str:
    """A hash that identifies the files behind a URI without reading them: their names, sizes, times of change, and the settings.

    The digest of a store depends on the content of the source files, so computing it for a URI means fetching them. With the
    fingerprint a node that has never fetched the source gets the digest from a node that has. Limits: a file that is replaced by
    one of the same size within one tick of the store's clock (S3: 1 s), or with the old time of change, is not noticed; a source
    that is copied to another address is fetched again, because its times differ. To avoid both, give the digest itself
    (`--data.digest`).
    """
    described = [store.FORMAT, dict(settings), [[file.name, file.size, file.changed_ns] for file in files]]
    return hashlib.sha256(json.dumps(described).encode("utf-8", "surrogateescape")).hexdigest()


def shared_cache(config: Config) -> SharedCache | None:
    return None if config.shared_cache is None else SharedCache(config.shared_cache)

"""The bundles and keys of a service, as copies in a private folder: what was checked is what the replicas read."""

import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cpgan_ray.common.atomic_io import atomic_path
from cpgan_ray.config import ServeJob
from cpgan_ray.deploy.bundle import MANIFEST, Bundle, read_bundle
from cpgan_ray.deploy.service.keys import Keys, keys_of
from cpgan_ray.deploy.service.served import Catalogue, served
from cpgan_ray.deploy.service.settings import BundleEntry
from cpgan_ray.deploy.writing import write_zip

REGISTERED = "models:/"
KEY_BYTES = 24
"""Random bytes of a key that is made."""


class Shelf:
    """The bundles that are served, and those that they have replaced."""

    def __init__(self, job: ServeJob, folder: Path, *, fetch: Callable[[str], Path]) -> None:
        """Raises: InputError if a bundle cannot be used."""
        self.job, self.folder, self.fetch = job, folder, fetch
        self.present: list[Bundle] = self._read()
        self.retired: dict[str, float] = {}
        """Digest -> Unix time at which it ends."""
        self.revision = 0
        self._keep()

    @property
    def newest(self) -> Bundle:
        return self.present[0]

    def refresh(self) -> bool:
        """Read all bundles again; those that are no longer there are answered for a while. Returns whether anything changed.

        Raises: InputError if a bundle cannot be used; then nothing has changed.
        """
        now, before = time.time(), [bundle.digest for bundle in self.present]
        self.present = self._read()
        after = [bundle.digest for bundle in self.present]
        self._keep()
        self.retired = {digest: until for digest, until in self.retired.items() if until > now and digest not in after}
        if self.job.retire_s:
            self.retired |= {digest: now + self.job.retire_s for digest in before if digest not in after}
        self.revision += 1
        return before != after

    def user_config(self) -> dict[str, Any]:
        """The configuration of the replicas. Each one differs from the last one, so that Serve hands it on."""
        entries = [BundleEntry(str(self._path(bundle.digest)), bundle.digest) for bundle in self.present]
        entries += [BundleEntry(str(self._path(digest)), digest, until) for digest, until in self.retired.items()]
        return {"bundles": [entry.as_json() for entry in entries], "revision": self.revision}

    def _read(self) -> list[Bundle]:
        names = self.job.bundles
        bundles = [read_bundle(self.fetch(name) if name.startswith(REGISTERED) else name) for name in names]
        Catalogue([served(bundle) for bundle in unique(bundles)])
        return unique(bundles)

    def _keep(self) -> None:
        for bundle in self.present:
            if not (path := self._path(bundle.digest)).exists():
                write_zip(path, {MANIFEST: bundle.text, **bundle.files})

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.zip"


def unique(bundles: Sequence[Bundle]) -> list[Bundle]:
    """The bundles, each once."""
    return list({bundle.digest: bundle for bundle in bundles}.values())


def write_keys(job: ServeJob, folder: Path) -> str | None:
    """Write the keys into the private folder, for the replicas. Without any, make one and return it.

    Raises: InputError if the keys cannot be used.
    """
    keys, made = keys_of(os.environ, job.keys_file), None
    if not keys and job.keys_file is None:
        made = secrets.token_urlsafe(KEY_BYTES)
        keys = [made]
    Keys(keys)
    with atomic_path(folder / "keys", mode=0o600) as path:
        path.write_text("\n".join(keys) + "\n")
    return made

"""Write a bundle: a folder, and on request a zip archive with the same files."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpgan_ray.common.atomic_io import atomic_path, make_folder, write_bytes
from cpgan_ray.deploy.bundle import MANIFEST, ensure_known

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of all files in an archive, so that equal files give equal archives."""


def as_bytes(values: Any) -> bytes:
    """JSON, readable by people."""
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def with_manifest(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a bundle with its manifest, which gets the size and SHA-256 of each."""
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in sorted(files.items())
    }
    for name in files:
        ensure_known(name)
    return {MANIFEST: as_bytes({**manifest, "files": listed}), **files}


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write all files of a bundle, `manifest.json` last: without it the folder is no bundle."""
    for name in sorted(contents, key=lambda name: name == MANIFEST):
        path = folder / name
        make_folder(path.parent)
        write_bytes(path, contents[name])


def write_zip(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write all files of a bundle as a zip archive."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(contents.items()):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)

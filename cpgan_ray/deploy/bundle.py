"""Read a bundle, a folder or a zip archive that may come from anybody, and check everything in it before it is used.

A bundle has `manifest.json`, which names every other file with its size and SHA-256. docs/wire-format.md describes the files. All
files are read into memory once: what is checked is what is used. No ONNX model is loaded here.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cpgan_ray.common.codec import Codec, codec_from_json
from cpgan_ray.common.json_files import parse_json, read_limited
from cpgan_ray.deploy.manifest import Manifest, manifest_of
from cpgan_ray.errors import InputError

MANIFEST, CODEC = "manifest.json", "codec.json"
PRIVATIZER, HEAD, EVE = "privatizer.onnx", "utility_head.onnx", "eve.onnx"
TWIN_PRIVATIZER, TWIN_EVE = "twin_privatizer.onnx", "twin_eve.onnx"
RUN_REPORT, BUNDLE_REPORT = "report/run.json", "report/bundle.json"
REQUIRED = (CODEC, PRIVATIZER, HEAD)
MAX_BYTES = {
    MANIFEST: 4 << 20,
    CODEC: 1 << 20,
    PRIVATIZER: 512 << 20,
    HEAD: 512 << 20,
    EVE: 512 << 20,
    TWIN_PRIVATIZER: 512 << 20,
    TWIN_EVE: 512 << 20,
    RUN_REPORT: 64 << 20,
    BUNDLE_REPORT: 64 << 20,
}
"""All files that a bundle may have, and the largest size of each."""
MAX_PACKING_RATIO, FREE_UNPACKED_BYTES = 20, 8 << 20
"""Weights hardly compress: a file in an archive may unpack to 20 times its packed size and 8 MB more."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle in memory, checked."""

    path: Path
    digest: str
    """SHA-256 of `manifest.json`, hexadecimal: it names the bundle with all its files."""
    manifest: Manifest
    files: Mapping[str, bytes]
    """Name -> content, without `manifest.json`."""
    text: bytes
    """The content of `manifest.json`."""

    @cached_property
    def codec(self) -> Codec:
        return codec_from_json(json.loads(self.files[CODEC]))


def is_bundle(path: Path) -> bool:
    """Whether a path is to be read as a bundle: a folder with a manifest and a privatizer, or any zip archive."""
    return path.is_file() if path.suffix == ".zip" else (path / MANIFEST).is_file() and (path / PRIVATIZER).is_file()


def read_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle.

    Raises: InputError with the bundle, the file and the reason if it is missing, incomplete, damaged, or not a bundle.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"bundle {path} does not exist: give the folder or the zip archive that jobs/export.py has written")
    try:
        contents = _read_folder(path) if path.is_dir() else _read_zip(path)
        return _checked(path, contents)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else " ".join(str(e).split())[:200]
        raise InputError(f"bundle {path}: {reason or type(e).__name__}: export it again, or get it from its author again") from e


def _read_folder(folder: Path) -> dict[str, bytes]:
    """Name -> content. A file of unknown name ends the reading, so a folder with a million files takes no time."""
    contents: dict[str, bytes] = {}
    for where, prefix in ((folder, ""), (folder / "report", "report/")):
        if not where.is_dir():
            continue
        for entry in where.iterdir():
            name = prefix + entry.name
            if name == "report" and entry.is_dir() and not entry.is_symlink():
                continue
            contents[name] = b""
            ensure_known(name)
            if entry.is_symlink():
                raise ValueError(f"{name} is a symbolic link")
            try:
                contents[name] = read_limited(entry, max_bytes=MAX_BYTES[name])
            except ValueError as e:
                raise ValueError(f"{name}: {e}") from e
    return contents


def _read_zip(path: Path) -> dict[str, bytes]:
    """Name -> content. No file is unpacked to the disk, and none to more bytes than its limit."""
    contents: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename
            if name == "report/":
                continue
            ensure_known(name)
            if name in contents:
                raise ValueError(f"{name} occurs twice")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
                raise ValueError(f"{name} is encrypted, or its compression method is not deflate")
            if member.file_size > MAX_BYTES[name]:
                raise ValueError(f"{name} has {member.file_size} bytes; at most {MAX_BYTES[name]} are read")
            if member.file_size > FREE_UNPACKED_BYTES + MAX_PACKING_RATIO * member.compress_size:
                raise ValueError(f"{name} would unpack from {member.compress_size} to {member.file_size} bytes, a zip bomb")
            with archive.open(member) as file:
                contents[name] = file.read(MAX_BYTES[name] + 1)
            if len(contents[name]) != member.file_size:
                raise ValueError(f"{name} does not have the size that the archive declares")
    return contents


def ensure_known(name: str) -> None:
    """Raises: ValueError if a bundle has no file of this name; so no name can lead out of the folder."""
    if name not in MAX_BYTES:
        raise ValueError(f"it has a file {name[:200]!r}, which no bundle has")


def _checked(path: Path, contents: dict[str, bytes]) -> Bundle:
    """Raises: ValueError with the file and the reason."""
    if (text := contents.pop(MANIFEST, None)) is None:
        raise ValueError(f"{MANIFEST} is missing")
    try:
        manifest = manifest_of(parse_json(text))
    except ValueError as e:
        raise ValueError(f"{MANIFEST}: {e}") from e
    for name in (*REQUIRED, *manifest.files):
        if name not in manifest.files:
            raise ValueError(f"{MANIFEST} does not name {name}")
        ensure_known(name)
        if name not in contents:
            raise ValueError(f"{name} is missing")
    for name, content in contents.items():
        if name not in manifest.files:
            raise ValueError(f"{MANIFEST} does not name {name}")
        size, sha256 = manifest.files[name]
        if len(content) != size:
            raise ValueError(f"{name} has {len(content)} bytes, {MANIFEST} says {size}")
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{name} has another SHA-256 than {MANIFEST} says")
    bundle = Bundle(path, hashlib.sha256(text).hexdigest(), manifest, contents, text)
    try:
        if bundle.codec.k != manifest.k:
            raise ValueError(f"its k is {bundle.codec.k}, that of {MANIFEST} is {manifest.k}")
    except ValueError as e:
        raise ValueError(f"{CODEC}: {e}") from e
    return bundle

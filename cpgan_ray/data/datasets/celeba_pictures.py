"""The picture files of the official CelebA layout, and which of them an annotation means."""

import os
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpgan_ray.data.datasets.celeba_tables import named
from cpgan_ray.errors import InputError

PICTURES = "img_align_celeba"
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "avif")
"""One that a name in the lists has may be another one, or in capitals, on the disk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The picture files of a data set."""

    path: Path
    stamps: dict[str, int]
    """Path below, with slashes, to size in bytes (folder) or CRC (zip): what the digest knows of a picture."""
    members: dict[str, zipfile.ZipInfo] | None = None
    """Path to member, for a zip."""


def find_pictures(source: Path) -> Pictures:
    """The folder of pictures with its subfolders (Kaggle's copy has one of the same name), or the zip."""
    for path in (source / PICTURES, source / "Img" / PICTURES):
        if path.is_dir():
            return Pictures(path=path, stamps=dict(_sizes(path)))
    for path in (source / f"{PICTURES}.zip", source / "Img" / f"{PICTURES}.zip"):
        if path.is_file():
            return _zipped(path)
    raise InputError(f"{source} holds neither {PICTURES}/ nor {PICTURES}.zip (nor does Img/): put the pictures there")


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """All files below by their path with slashes, and their sizes. Links to folders are not followed: they may lead anywhere."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{below}{entry.name}/")
                    elif (size := _size(entry)) is not None:
                        yield below + entry.name, size
        except OSError as e:
            raise InputError(f"{folder / below} cannot be read ({e.strerror}): mend the folder or its permissions") from e


def _size(entry: os.DirEntry[str]) -> int | None:
    """None where it is no regular file, nor a link to one: opening it might never end."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:  # a link to itself
        return None


def _zipped(path: Path) -> Pictures:
    members: dict[str, zipfile.ZipInfo] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as e:  # zipfile raises whatever the damaged part leads to
        raise InputError(f"{path} is not a whole zip file ({' '.join(str(e).split())}): download it again") from e
    for entry in entries:
        parts = entry.filename.split("/")
        if entry.is_dir() or {"", ".", ".."} & {*parts} or (len(parts) > 1 and parts[0] != PICTURES):
            continue
        name = entry.filename.removeprefix(f"{PICTURES}/")
        if name in members:
            raise InputError(f"{path} holds two pictures named {named(name)}: keep one")
        members[name] = entry
    return Pictures(path=path, stamps={name: entry.CRC for name, entry in members.items()}, members=members)


def match(pictures: Pictures, names: Sequence[str]) -> list[str | None]:
    """For each name of the lists the path of its picture, None where there is none.

    A picture may lie in a subfolder. If none has exactly that name, one counts that differs only in its Unicode form (macOS
    decomposes accents) or in its extension.

    Raises: InputError where two pictures have the name.
    """
    exact, loose = _by(pictures, lambda path: path), None
    found: list[str | None] = []
    for name in names:
        candidates = exact.get(name, [])
        if not candidates:
            loose = loose or _by(pictures, _loosely)
            candidates = loose.get(_loosely(name), [])
        if len(candidates) > 1:
            one, other = (named(path) for path in sorted(candidates)[:2])
            raise InputError(f"{pictures.path} holds two pictures named {named(name)} ({one} and {other}): keep one")
        found.append(candidates[0] if candidates else None)
    return found


def _by(pictures: Pictures, key: Callable[[str], str]) -> Mapping[str, list[str]]:
    """Pictures by (the key of) their path, and those in subfolders by their name too."""
    found: dict[str, list[str]] = {}
    for path in pictures.stamps:
        for name in {key(path), key(path.rpartition("/")[2])}:
            found.setdefault(name, []).append(path)
    return found


def _loosely(path: str) -> str:
    stem, dot, extension = path.rpartition(".")
    return unicodedata.normalize("NFC", stem if dot and extension.lower() in EXTENSIONS else path)

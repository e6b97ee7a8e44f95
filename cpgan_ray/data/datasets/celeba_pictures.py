"""Find the picture files of the official CelebA layout, and match them with the names in the tables."""

import os
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpgan_ray.data.datasets.celeba_rows import display_name
from cpgan_ray.errors import InputError

PICTURES = "img_align_celeba"
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "avif")
"""Extensions of picture files. The file on disk may have another of these (or capitals) than the name in the tables."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The picture files of a data set."""

    path: Path
    stamps: dict[str, int]
    """Relative path, with slashes, to size in bytes (folder) or CRC (zip). The digest includes these values."""
    members: dict[str, zipfile.ZipInfo] | None = None
    """Relative path to member of the zip; None for a folder."""


def find_pictures(source: Path) -> Pictures:
    """The pictures in a folder and its subfolders (Kaggle's copy has a subfolder of the same name), or in a zip."""
    for path in (source / PICTURES, source / "Img" / PICTURES):
        if path.is_dir():
            return Pictures(path=path, stamps=dict(file_sizes(path)))
    for path in (source / f"{PICTURES}.zip", source / "Img" / f"{PICTURES}.zip"):
        if path.is_file():
            return _read_zip(path)
    raise InputError(f"{source} holds neither {PICTURES}/ nor {PICTURES}.zip, and neither does Img/: put the pictures there")


def file_sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative path (with slashes) and size of all files in a folder and its subfolders. Links to folders are not followed, because
    they may lead anywhere."""
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
            raise InputError(f"{folder / below} cannot be read ({e.strerror}): repair the folder or its permissions") from e


def _size(entry: os.DirEntry[str]) -> int | None:
    """Size of a regular file, or of the file that a link leads to; None for anything else, because opening it might block."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:  # a link to itself
        return None


def _read_zip(path: Path) -> Pictures:
    members: dict[str, zipfile.ZipInfo] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as e:  # zipfile may raise any error for a damaged file
        raise InputError(f"{path} is not a complete zip file ({' '.join(str(e).split())}): download it again") from e
    for entry in entries:
        parts = entry.filename.split("/")
        if entry.is_dir() or {"", ".", ".."} & {*parts} or (len(parts) > 1 and parts[0] != PICTURES):
            continue
        name = entry.filename.removeprefix(f"{PICTURES}/")
        if name in members:
            raise InputError(f"{path} holds two pictures named {display_name(name)}: keep one")
        members[name] = entry
    return Pictures(path=path, stamps={name: entry.CRC for name, entry in members.items()}, members=members)


def match(pictures: Pictures, names: Sequence[str]) -> list[str | None]:
    """For each name in the tables the path of its picture, None if absent.

    A picture may be in a subfolder. If no picture has exactly that name, a name that differs only in its Unicode form (macOS
    decomposes accents) or in its extension is accepted.

    Raises:
        InputError: two pictures have the same name.
    """
    exact, loose = _group_paths(pictures, lambda path: path), None
    paths: list[str | None] = []
    for name in names:
        candidates = exact.get(name, [])
        if not candidates:
            loose = loose or _group_paths(pictures, _loose_key)
            candidates = loose.get(_loose_key(name), [])
        if len(candidates) > 1:
            first, second = (display_name(path) for path in sorted(candidates)[:2])
            raise InputError(f"{pictures.path} holds two pictures named {display_name(name)} ({first} and {second}): keep one")
        paths.append(candidates[0] if candidates else None)
    return paths


def _group_paths(pictures: Pictures, key: Callable[[str], str]) -> Mapping[str, list[str]]:
    """Paths of the pictures by the key of their path, and for pictures in subfolders also by the key of their file name."""
    paths: dict[str, list[str]] = {}
    for path in pictures.stamps:
        for name in {key(path), key(path.rpartition("/")[2])}:
            paths.setdefault(name, []).append(path)
    return paths


def _loose_key(path: str) -> str:
    stem, dot, extension = path.rpartition(".")
    return unicodedata.normalize("NFC", stem if dot and extension.lower() in EXTENSIONS else path)

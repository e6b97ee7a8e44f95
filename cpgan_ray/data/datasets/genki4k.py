"""Read GENKI-4K: 4,000 faces from the web, smiling or not. Two layouts:

    train/0/*.jpg  train/1/*.jpg  test/0/*.jpg  test/1/*.jpg     crops sorted by class (1: smiling), as published by CPGAN's authors
    files/file0001.jpg ...  labels.txt                           the original download (genki4k.tar): a line per picture, in
                                                                 order: 1 (smiling) or 0, then the angles of the head

In the original download, the last 600 pictures of each class are the test split, as in the authors' crops. Its pictures have
several sizes; the centred square of each is used, which shows more around the face than the crops. Validation: a tenth of each
class of the training pictures, chosen by a hash of their names. The identities are unknown, so each row has its own identity.
"""

import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from cpgan_ray.data.decoding import Decoded, decode_block
from cpgan_ray.data.samples import Samples, read_bytes, validate_samples
from cpgan_ray.errors import InputError

FOLDERS = ("train/0", "train/1", "test/0", "test/1")
PICTURES, LABELS = "files", "labels.txt"
CLASSES = ("not smiling", "smiling")
SUFFIXES = (".jpg", ".jpeg", ".png")
NUM_TEST = 600
"""Test pictures of each class in the original layout; at most a third of the class."""
MAX_LABEL_BYTES = 16 << 20


def files(source: Path) -> list[Path]:
    """All pictures; in the original layout labels.txt first, then all pictures.

    Raises:
        InputError: the folder has neither layout; a folder has no pictures; a picture is missing or has no line in labels.txt.
    """
    if (source / FOLDERS[0]).is_dir():
        return [path for name in FOLDERS for path in _pictures(source / name)]
    for folder in (source, source / "genki4k"):
        if (folder / LABELS).is_file():
            paths = [folder / PICTURES / f"file{i + 1:04d}.jpg" for i in range(len(_read_labels(folder / LABELS)))]
            existing = set(_pictures(folder / PICTURES))
            if missing := [path for path in paths if path not in existing]:
                raise InputError(f"{missing[0]} is missing, but {LABELS} has a line for it: unpack genki4k.tar again")
            if extra := sorted(path for path in existing - set(paths) if re.fullmatch(r"file\d+\.jpg", path.name)):
                raise InputError(f"{extra[0]} has no line in {LABELS}, which has {len(paths)} lines: unpack genki4k.tar again")
            return [folder / LABELS, *paths]
    raise InputError(
        f"{source} holds neither {', '.join(f'{name}/' for name in FOLDERS)} nor {PICTURES}/ and {LABELS}: give the folder"
        " of CPGAN's GENKI-4K crops, or download https://inc.ucsd.edu/mplab/398/media/genki4k.tar and unpack it"
    )


def read(source: Path, *, image_size: int = 64, image_width: int = 0) -> Samples:
    """All pictures, (N, image_size, image_width or image_size, 3), in the order of `files`.

    Raises:
        InputError: see `files`; or a picture cannot be decoded, or a line of labels.txt does not begin with 0 or 1.
    """
    paths = files(source)
    if paths[0].name == LABELS:
        label_file, *paths = paths
        labels = np.array(_read_labels(label_file), np.int8)
        test = np.zeros(len(labels), bool)
        for number in range(len(CLASSES)):
            members = np.flatnonzero(labels == number)
            test[members[len(members) - min(NUM_TEST, len(members) // 3) :]] = True
    else:
        labels = np.array([int(path.parent.name) for path in paths], np.int8)
        test = np.array([path.parent.parent.name == "test" for path in paths])
    hashes = np.array([zlib.crc32(path.name.encode("utf-8", "surrogateescape")) for path in paths])
    val = np.zeros(len(paths), bool)
    for number in range(len(CLASSES)):
        members = np.flatnonzero((labels == number) & ~test)
        val[members[np.argsort(hashes[members], kind="stable")[: round(len(members) / 10)]]] = True
    pictures = [_decode(path, image_size, image_width) for path in paths]
    samples = Samples(
        values=np.stack([picture.pixels for picture in pictures]),
        labels=labels,
        label_name="Smiling",
        classes=CLASSES,
        identity=np.arange(len(paths)),
        rows={"train": np.flatnonzero(~test & ~val), "val": np.flatnonzero(val), "test": np.flatnonzero(test)},
        remarks=Counter(remark for picture in pictures for remark in picture.remarks),
    )
    return validate_samples(samples, source)


def _pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, sorted by name."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    except OSError as e:
        raise InputError(f"{folder} cannot be read ({e.strerror}): put the pictures of that class there") from e
    if not paths:
        raise InputError(f"{folder} has no pictures ({', '.join(SUFFIXES)}): unpack them from their zip file into it")
    return paths


def _read_labels(path: Path) -> list[int]:
    """The first number of each line."""
    lines = read_bytes(path, limit=MAX_LABEL_BYTES).decode("latin-1").rstrip().split("\n")
    for number, line in enumerate(lines, 1):
        if line.split()[:1] not in (["0"], ["1"]):
            raise InputError(f"{path}, line {number}: expected 0 or 1 and the angles of the head, got {line[:60]!r}")
    return [int(line.split()[0]) for line in lines]


def _decode(path: Path, image_size: int, image_width: int) -> Decoded:
    [picture] = decode_block([path], image_size=image_size, image_width=image_width, crop=1.0)
    if isinstance(picture, str):
        raise InputError(f"{path} cannot be decoded ({picture}): download that picture again")
    return picture

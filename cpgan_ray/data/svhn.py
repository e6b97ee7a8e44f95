"""SVHN, cropped digits (format 2), as it is downloaded: 32 x 32 colour pictures cut out of photographs of house numbers.

    train_32x32.mat    73,257 pictures: X (32, 32, 3, N) and y (N, 1), both uint8, a zero being labelled 10
    test_32x32.mat     26,032
    extra_32x32.mat    531,131 easier ones, for training, with `data.extra`

Digits of one house number follow each other and their pictures overlap. So validation is the last tenth of the training file as
one block, with a gap before it, and rows are resampled in blocks of neighbours.
"""

import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cpgan_ray.data.samples import Samples, Stacked, checked, find, unreadable
from cpgan_ray.errors import InputError

TRAIN, TEST, EXTRA = "train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"
BLOCK = 10
"""Rows of one identity. A house number has 2 digits in the mean and at most 6, so few are cut; a gap of one block parts any two."""
CHUNK = 64 << 10
"""Bytes unpacked at a time."""
PACKED = 20
"""Photographs do not pack as many times; what does is a bomb. (The official files: 1.2 times.)"""
UNPACKED_FREELY = 1 << 20
"""Bytes that may come of anything, as lists of labels do pack well."""


def files(source: Path, *, extra: bool = False) -> list[Path]:
    """The two or three files.

    Raises:
        InputError: names the first one missing.
    """
    names = (TRAIN, TEST, EXTRA) if extra else (TRAIN, TEST)
    return [find(source, [name], remedy=f"download http://ufldl.stanford.edu/housenumbers/{name}") for name in names]


def read(source: Path, *, extra: bool = False) -> Samples:
    """All pictures, (N, 32, 32, 3): train, test, extra. The gap before the validation block is in no split.

    Raises:
        InputError: a file is missing, cut or is no such file; says which and what was expected.
    """
    paths = files(source, extra=extra)
    read_files = [_read_file(path) for path in paths]
    ends = np.cumsum([len(y) for _, y in read_files])
    identity = np.empty(ends[-1], np.int64)
    taken = 0
    for end, (_, y) in zip(ends, read_files, strict=True):
        identity[end - len(y) : end] = taken + np.arange(len(y)) // BLOCK
        taken += -(-len(y) // BLOCK)
    num_train = int(ends[0])
    start = (num_train - num_train // 10) // BLOCK * BLOCK
    train = [np.arange(max(0, start - BLOCK)), np.arange(ends[1], ends[-1])]
    samples = Samples(
        values=Stacked([x.transpose(3, 0, 1, 2) for x, _ in read_files]),
        labels=np.concatenate([np.where(y == 10, 0, y) for _, y in read_files]).astype(np.int8),
        label_name="digit",
        classes=tuple("0123456789"),
        identity=identity,
        rows={"train": np.concatenate(train), "val": np.arange(start, num_train), "test": np.arange(num_train, ends[1])},
    )
    return checked(samples, source)


def _read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """X (32, 32, 3, N) and y (N,) of one file."""
    variables = read_mat(path, ("X", "y"))
    for name in ("X", "y"):
        if name not in variables:
            raise InputError(f"{path} has no variable {name}: it is not the file of cropped digits, download it again")
    x, y = variables["X"], variables["y"]
    if x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise InputError(f"{path}: X has shape {x.shape}, not (32, 32, 3, N): download it again")
    if y.shape != (x.shape[3], 1):
        raise InputError(f"{path}: y has shape {y.shape} beside {x.shape[3]} pictures: download it again")
    if wrong := np.flatnonzero((y < 1) | (y > 10)).tolist():
        raise InputError(f"{path}: label {y[wrong[0], 0]} of row {wrong[0]} is none of 1 to 10 (10: zero): download it again")
    return x, y[:, 0]


# MAT files

MATRIX, COMPRESSED, UINT32, INT32, INT8, UINT8 = 14, 15, 6, 5, 1, 2
"""Types of elements."""
UINT8_CLASS = 9


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The uint8 arrays called `names` of a MATLAB 5 file, as far as they are there; others are passed over.

    Own code because `scipy.io.loadmat` is, by its own documentation, not meant for files of unknown origin: one changed byte
    in the tag of an array's data makes it crash, and it unpacks without limit.

    Raises:
        InputError: the file is cut, damaged or of another format; a variable is of another type; more is packed into it
            than pictures allow.
    """
    found: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            if file.read(128)[124:] != b"\x00\x01IM":
                raise ValueError("it does not begin as a little-endian MATLAB 5.0 file does")
            while tag := file.read(8):
                kind, size = struct.unpack("<II", tag)
                if size > (left := path.stat().st_size - file.tell()):
                    raise ValueError(f"an element of {size} bytes ends after {left}")
                element = _inflated(file, size) if kind == COMPRESSED else tag + file.read(size)
                name, array = _matrix(element, names)
                if array is not None:
                    found[name] = array
    except (ValueError, struct.error, zlib.error) as e:
        raise InputError(f"{path} is no whole MAT file of pictures ({e}): download it again") from e
    except OSError as e:
        raise unreadable(path, e) from e
    return found


def _inflated(file: BinaryIO, size: int) -> bytearray:
    """An element that is packed in the next `size` bytes."""
    unpacker, content, limit = zlib.decompressobj(), bytearray(), UNPACKED_FREELY + PACKED * size
    for start in range(0, size, CHUNK):
        content += unpacker.decompress(file.read(min(CHUNK, size - start)), limit + 1 - len(content))
        if len(content) > limit:
            raise ValueError(f"{size} bytes unpack to more than {PACKED}-fold, as no photographs do")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("a packed element does not end where it should")
    return content


def _matrix(element: bytes | bytearray, names: tuple[str, ...]) -> tuple[str, np.ndarray | None]:
    """Name and content of a variable; None where it is not one of `names`. First index fastest, as MATLAB stores it."""
    content, end = _part(element, 0, MATRIX)
    if end != len(element):
        raise ValueError(f"{len(element) - end} bytes follow an array")
    flags, at = _part(content, 0, UINT32)
    dimensions, at = _part(content, at, INT32)
    name, at = _part(content, at, INT8)
    name = bytes(name).decode("latin-1")
    if name not in names:
        return name, None
    if len(flags) != 8 or (flags[0], flags[1] & 0x08) != (UINT8_CLASS, 0):
        raise ValueError(f"{name} is no array of uint8")
    shape = np.frombuffer(dimensions, "<i4").tolist()
    values, at = _part(content, at, UINT8)
    if min(shape, default=-1) < 0 or math.prod(shape) != len(values) or at != len(content):
        raise ValueError(f"{name} has shape {shape[:9]} and {len(values)} bytes")
    return name, np.frombuffer(values, np.uint8).reshape(shape, order="F")


def _part(content: bytes | bytearray | memoryview, at: int, expected: int) -> tuple[memoryview, int]:
    """Content of the element at a position, which has the expected type, and where the next one begins."""
    kind, size = struct.unpack_from("<II", content, at)
    begin, end = at + 8, at + 8 + size + -size % 8
    if kind >> 16:  # up to four bytes lie in the tag itself
        kind, size, begin, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    if kind != expected:
        raise ValueError(f"an element has type {kind} instead of {expected}")
    part = memoryview(content)[begin : min(begin + size, end)]
    if len(part) < size:
        raise ValueError(f"an element of {size} bytes ends after {len(part)}")
    return part, min(end, len(content))

"""The part of MATLAB's MAT-file format, version 5, that one uint8 array needs."""

import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cpgan_ray.data.samples import unreadable
from cpgan_ray.errors import InputError

CHUNK = 64 << 10
"""Bytes unpacked at a time."""
PACKED = 20
"""Photographs do not pack as many times; what does is a bomb. (The official files: 1.2 times.)"""
UNPACKED_FREELY = 1 << 20
"""Bytes that may come of anything, as lists of labels do pack well."""
MATRIX, COMPRESSED, UINT32, INT32, INT8, UINT8 = 14, 15, 6, 5, 1, 2
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

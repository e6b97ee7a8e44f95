"""Read uint8 arrays from MATLAB's MAT-file format, version 5."""

import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cpgan_ray.data.samples import unreadable_error
from cpgan_ray.errors import InputError

CHUNK = 64 << 10
"""Bytes unpacked at a time."""
MAX_PACKING_RATIO = 20
"""A larger compression ratio means a decompression bomb, because photographs do not compress so well (the official files: 1.2)."""
FREE_UNPACKED_BYTES = 1 << 20
"""This number of bytes may be unpacked with any ratio, because lists of labels compress well."""
MATRIX, COMPRESSED, UINT32, INT32, INT8, UINT8 = 14, 15, 6, 5, 1, 2
UINT8_CLASS = 9


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The uint8 arrays called `names` of a MATLAB 5 file, if they exist; other arrays are skipped.

    This is our own code because `scipy.io.loadmat` is, according to its documentation, not meant for files of unknown origin: one
    changed byte in the tag of an array's data makes it crash, and it unpacks without limit.

    Raises:
        InputError: the file is truncated, damaged or has another format; an array has another type; a compressed element unpacks to
            more bytes than the limit.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            if file.read(128)[124:] != b"\x00\x01IM":
                raise ValueError("it does not begin like a little-endian MATLAB 5.0 file")
            while tag := file.read(8):
                kind, size = struct.unpack("<II", tag)
                if size > (remaining := path.stat().st_size - file.tell()):
                    raise ValueError(f"an element of {size} bytes ends after {remaining}")
                element = _unpack_element(file, size) if kind == COMPRESSED else tag + file.read(size)
                name, array = _read_matrix(element, names)
                if array is not None:
                    arrays[name] = array
    except (ValueError, struct.error, zlib.error) as e:
        raise InputError(f"{path} is not a complete MAT file of pictures ({e}): download it again") from e
    except OSError as e:
        raise unreadable_error(path, e) from e
    return arrays


def _unpack_element(file: BinaryIO, size: int) -> bytearray:
    """Unpack the element that is compressed in the next `size` bytes."""
    unpacker, content, limit = zlib.decompressobj(), bytearray(), FREE_UNPACKED_BYTES + MAX_PACKING_RATIO * size
    for start in range(0, size, CHUNK):
        content += unpacker.decompress(file.read(min(CHUNK, size - start)), limit + 1 - len(content))
        if len(content) > limit:
            raise ValueError(f"{size} bytes unpack to more than {MAX_PACKING_RATIO} times their size, unlike photographs")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("a compressed element does not end where it should")
    return content


def _read_matrix(element: bytes | bytearray, names: tuple[str, ...]) -> tuple[str, np.ndarray | None]:
    """Name and content of a variable; the content is None if the name is not one of `names`. The first index varies fastest, as in
    MATLAB."""
    content, end = _read_element(element, 0, MATRIX)
    if end != len(element):
        raise ValueError(f"{len(element) - end} bytes follow an array")
    flags, position = _read_element(content, 0, UINT32)
    dimensions, position = _read_element(content, position, INT32)
    name, position = _read_element(content, position, INT8)
    name = bytes(name).decode("latin-1")
    if name not in names:
        return name, None
    if len(flags) != 8 or (flags[0], flags[1] & 0x08) != (UINT8_CLASS, 0):
        raise ValueError(f"{name} is not an array of uint8")
    shape = np.frombuffer(dimensions, "<i4").tolist()
    values, position = _read_element(content, position, UINT8)
    if min(shape, default=-1) < 0 or math.prod(shape) != len(values) or position != len(content):
        raise ValueError(f"{name} has shape {shape[:9]} and {len(values)} bytes")
    return name, np.frombuffer(values, np.uint8).reshape(shape, order="F")


def _read_element(content: bytes | bytearray | memoryview, position: int, expected: int) -> tuple[memoryview, int]:
    """Content of the element at a position, which must have the expected type, and the position of the next element."""
    kind, size = struct.unpack_from("<II", content, position)
    begin, end = position + 8, position + 8 + size + -size % 8
    if kind >> 16:  # up to four bytes of content are in the tag itself
        kind, size, begin, end = kind & 0xFFFF, kind >> 16, position + 4, position + 8
    if kind != expected:
        raise ValueError(f"an element has type {kind} instead of {expected}")
    part = memoryview(content)[begin : min(begin + size, end)]
    if len(part) < size:
        raise ValueError(f"an element of {size} bytes ends after {len(part)}")
    return part, min(end, len(content))

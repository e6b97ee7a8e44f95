"""The message that carries codes: a header of 8 bytes, then the bytes of the codes. docs/wire-format.md specifies it."""

import struct

import numpy as np

from cpgan_ray.common.codec import CODINGS, BytesError, Codec, LevelCodec

CONTENT_TYPE = "application/vnd.cpgan.codes"
"""Media type of a message."""
VERSION = 1
HEADER = struct.Struct("<BBH4s")
"""Version, coding, number of codes, first 4 bytes of the bundle's digest."""
MAX_CODES = (1 << 16) - 1


def write_message(z: np.ndarray, codec: Codec, *, digest: str, coding: str) -> bytes:
    """The message of codes z (B, k), B from 1 to MAX_CODES.

    digest: of the bundle, hexadecimal.

    Raises: BytesError if z does not fit the codec, or the coding is none of the codec's.
    """
    if not 1 <= len(z) <= MAX_CODES:
        raise BytesError(f"{len(z)} codes; a message has 1 to {MAX_CODES}")
    if coding not in codec.codings:
        raise BytesError(f"coding {coding!r}; this bundle has {' and '.join(codec.codings)}")
    header = HEADER.pack(VERSION, CODINGS.index(coding), len(z), bytes.fromhex(digest[:8]))
    return header + codec.encode(z, coding)


def read_message(content: bytes, codec: Codec, *, digest: str, max_codes: int = MAX_CODES) -> np.ndarray:
    """The codes z (B, k) float32 in a message.

    Raises: BytesError with the reason if the bytes are not a message of 1 to `max_codes` codes for this bundle.
    """
    if len(content) < HEADER.size:
        raise BytesError(f"{len(content)} bytes; a message has at least {HEADER.size}")
    version, coding, count, start = HEADER.unpack_from(content)
    if version != VERSION:
        raise BytesError(f"version {version}; this service reads version {VERSION}")
    if start.hex() != digest[:8]:
        raise BytesError(f"made with bundle {start.hex()}...; this service has bundle {digest[:8]}...")
    if coding >= len(CODINGS) or CODINGS[coding] not in codec.codings:
        raise BytesError(f"coding {coding}; this bundle has {[CODINGS.index(name) for name in codec.codings]}")
    if not 1 <= count <= max_codes:
        raise BytesError(f"{count} codes; a message has 1 to {max_codes}")
    decoded = codec.decode(content[HEADER.size :], count, CODINGS[coding])
    return codec.codes(decoded) if isinstance(codec, LevelCodec) else decoded

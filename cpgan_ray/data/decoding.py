"""From the bytes of a picture file to pixels, within limits: files come from anywhere.

The format is known by the content, never by the name. Of an animation (or of several pages) the first frame counts, an alpha
channel is left out, 16-bit values are scaled. An EXIF orientation is applied only where the caller wants it; a TIFF's own
orientation is a part of that format, and its decoder applies it.
"""

import io
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""What Pillow may take a file for (PPM: PGM and PBM too); some of its other decoders start programs."""
MAX_FILE_BYTES = 64 << 20
"""No picture file is read that is larger."""
MAX_PIXELS = 1 << 26
"""No picture is decoded that has more: 200 MB as RGB."""
MAX_SCANS = 100
"""No JPEG is decoded that has more. Some ten are usual; each costs as much time as the whole picture, and few bytes."""
ORIENTATION = 0x0112
"""EXIF tag; 1 is upright."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each other orientation upright."""
REMARKS = {
    "exif_orientation": "have an EXIF orientation that is not applied: pixels are read as they are stored",
    "several_frames": "have several frames: the first one is read",
    "other_name": "are stored under another spelling of the name that the lists have (Unicode form or extension)",
}
"""What is reported of pictures that are read, not left out: kind -> the end of the sentence "3 of 60 pictures ..."."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """A picture as it goes into a store."""

    pixels: np.ndarray
    """(image_size, image_size, 3) uint8."""
    remarks: tuple[str, ...] = ()
    """Keys of `REMARKS`."""


def decode(blob: bytes, *, image_size: int, crop: float, upright: bool = False) -> Decoded:
    """The centred square of a picture, `crop` times its shorter side, resized.

    upright: apply the EXIF orientation, instead of remarking on it.

    Raises whatever Pillow raises on bytes that are no whole picture; ValueError where there are too many pixels.
    """
    try:
        opened = Image.open(io.BytesIO(blob), formats=FORMATS)
    except UnidentifiedImageError as e:
        raise ValueError(f"it is no {', '.join(FORMATS)} file") from e
    with opened as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels are more than the limit of {MAX_PIXELS}")
        packed_as_jpeg = picture.format in ("JPEG", "MPO") or "jpeg" in str(picture.info.get("compression", ""))  # in a TIFF
        if packed_as_jpeg and (scans := blob.count(b"\xff\xda")) > MAX_SCANS:
            raise ValueError(f"it has {scans} scans, the limit is {MAX_SCANS}")
        remarks = ["several_frames"] if getattr(picture, "is_animated", False) else []
        # Lets the JPEG decoder halve large pictures as it goes; twice the final resolution is left to the filter.
        scale = 2 * image_size / (crop * min(picture.size))
        picture.draft("RGB", (int(picture.width * scale) + 1, int(picture.height * scale) + 1))
        picture.load()
        turned = picture.format != "TIFF" and _orientation(picture) != 1
        shown = eight_bit(picture)
        if turned and upright:
            shown = shown.transpose(TURNS[_orientation(picture)])
        elif turned:
            remarks.append("exif_orientation")
        side = crop * min(shown.size)
        left, top = (shown.width - side) / 2, (shown.height - side) / 2
        square = (left, top, left + side, top + side)
        pixels = np.asarray(shown.resize((image_size, image_size), Image.Resampling.BICUBIC, box=square))
        return Decoded(pixels, tuple(remarks))


def eight_bit(picture: Image.Image) -> Image.Image:
    """The picture as RGB. Values of more than 8 bits are scaled, which Pillow itself would clip at 255.

    Raises: ValueError where the values have no known range.
    """
    bits = 16
    if picture.format == "TIFF":
        bits = max(int(bits) for bits in np.atleast_1d(np.asarray(getattr(picture, "tag_v2", {}).get(258, 16))).ravel())
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        largest = (1 << min(bits, 16)) - 1
        values = np.asarray(picture).astype(np.int64).clip(0, largest)
        return Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        kind = "floating-point" if picture.mode == "F" else "32-bit"
        raise ValueError(f"it has {kind} values, of which the range is not known: convert it to 8 or 16 bits")
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """1 to 8; 1 where there is none, or the EXIF data are damaged."""
    try:
        found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever its damaged part leads to
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def decode_block(
    files: Sequence[Path | bytes | str], *, image_size: int, crop: float, upright: bool = False
) -> list[Decoded | str]:
    """Several pictures, from their path or bytes (a string is a reason why there are none); the reason for each that fails."""
    decoded: list[Decoded | str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about odd metadata
        for file in files:
            try:
                if isinstance(file, str):
                    raise ValueError(file)
                if isinstance(file, Path) and file.stat().st_size > MAX_FILE_BYTES:
                    raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes")
                blob = file.read_bytes() if isinstance(file, Path) else file
                decoded.append(decode(blob, image_size=image_size, crop=crop, upright=upright))
            except Exception as e:  # Pillow's decoders raise nearly every kind
                decoded.append(" ".join(f"{e}".split()) or type(e).__name__)
    return decoded


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A file of a zip; never more of it than the zip declares, whatever it would inflate to.

    Raises ValueError where that is too much or the compression has no such bound; what zipfile raises on a damaged file.
    """
    if member.file_size > MAX_FILE_BYTES:
        raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is compressed by another method than deflate")
    with archive.open(member) as file:
        return file.read(member.file_size)


def sentences(remarks: Mapping[str, int], total: int) -> Iterable[str]:
    """What to report of the remarks on `total` pictures, a line each."""
    return [f"{count} of {total} pictures {REMARKS[kind]}" for kind, count in remarks.items() if kind in REMARKS and count]

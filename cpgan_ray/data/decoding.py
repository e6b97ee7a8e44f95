"""Decode picture files into pixels, within limits, because the files may come from anywhere.

The content determines the format, never the name. Only the first frame of an animation (or the first of several pages) is read, an
alpha channel is dropped, 16-bit values are scaled. An EXIF orientation is applied only if the caller asks for it; a TIFF's own
orientation is part of that format, and its decoder applies it.
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
"""Formats that Pillow may open (PPM includes PGM and PBM). Some of its other decoders start programs."""
MAX_FILE_BYTES = 64 << 20
"""Larger picture files are not read."""
MAX_PIXELS = 1 << 26
"""Pictures with more pixels are not decoded: 200 MB as RGB."""
MAX_SCANS = 100
"""JPEG files with more scans are not decoded. About ten are usual; each takes as much time as the whole picture but few bytes."""
ORIENTATION = 0x0112
"""EXIF tag; 1 is upright."""
UPRIGHT_OPERATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""For each other orientation, the operation that makes the picture upright."""
REMARKS = {
    "exif_orientation": "have an EXIF orientation that is not applied: pixels are read as they are stored",
    "several_frames": "have several frames: the first one is read",
    "enlarged": "have a shorter side below that of the store: they are enlarged",
    "other_name": "are stored under another spelling of the name in the lists (Unicode form or extension)",
}
"""Remarks about pictures that are read, not skipped: kind -> the end of the sentence "3 of 60 pictures ..."."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded picture, ready for a store."""

    pixels: np.ndarray
    """(H, W, 3) uint8."""
    remarks: tuple[str, ...] = ()
    """Keys of `REMARKS`."""
    shorter_side: int = 0
    """Shorter side of the picture in the file, in pixels."""


def decode(blob: bytes, *, image_size: int, image_width: int = 0, crop: float, upright: bool = False) -> Decoded:
    """The centred square of a picture, `crop` times its shorter side, resized.

    image_width: if it is not 0, the result has this width and the height `image_size`, and the largest centred rectangle of this
    shape, times `crop`, is cut instead of a square; upright: apply the EXIF orientation; otherwise only a remark reports it.

    Raises:
        ValueError: the picture has too many pixels or scans, or values of unknown range.
        Exception: any error that Pillow raises for bytes that are not a complete picture.
    """
    try:
        image = Image.open(io.BytesIO(blob), formats=FORMATS)
    except UnidentifiedImageError as e:
        raise ValueError(f"it is not a {', '.join(FORMATS)} file") from e
    with image as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"it has {picture.width} x {picture.height} pixels, the limit is {MAX_PIXELS}")
        packed_as_jpeg = picture.format in ("JPEG", "MPO") or "jpeg" in str(picture.info.get("compression", ""))  # in a TIFF
        if packed_as_jpeg and (scans := blob.count(b"\xff\xda")) > MAX_SCANS:
            raise ValueError(f"it has {scans} scans, the limit is {MAX_SCANS}")
        remarks = ["several_frames"] if getattr(picture, "is_animated", False) else []
        size = (image_size, image_width or image_size)
        shorter_side = min(picture.size)
        # The JPEG decoder may halve large pictures while it decodes; twice the final resolution remains for the filter.
        sizes = ((picture.width, picture.height), (picture.height, picture.width))  # before and after it is turned upright
        scale = 2 * max(size[1] / cut_size(sides, size, crop)[0] for sides in sizes)
        picture.draft("RGB", (int(picture.width * scale) + 1, int(picture.height * scale) + 1))
        picture.load()
        is_rotated = picture.format != "TIFF" and _orientation(picture) != 1
        rgb = eight_bit(picture)
        if is_rotated and upright:
            rgb = rgb.transpose(UPRIGHT_OPERATIONS[_orientation(picture)])
        elif is_rotated:
            remarks.append("exif_orientation")
        width, height = cut_size(rgb.size, size, crop)
        left, top = (rgb.width - width) / 2, (rgb.height - height) / 2
        pixels = np.asarray(rgb.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)))
        return Decoded(pixels, tuple(remarks), shorter_side)


def cut_size(sides: tuple[int, int], size: tuple[int, int], crop: float) -> tuple[float, float]:
    """Width and height of the centred rectangle that is cut from a picture: as large as the picture permits, times `crop`.

    sides: width and height of the picture; size: height and width of the result, whose shape the rectangle has.
    """
    (picture_width, picture_height), (height, width) = sides, size
    if picture_width * height <= picture_height * width:
        return crop * picture_width, crop * (picture_width * height / width)
    return crop * (picture_height * width / height), crop * picture_height


def eight_bit(picture: Image.Image) -> Image.Image:
    """The picture as RGB. Values of more than 8 bits are scaled; Pillow itself would clip them at 255.

    Raises:
        ValueError: the range of the values is unknown.
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
        raise ValueError(f"it has {kind} values of unknown range: convert it to 8 or 16 bits")
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if absent or if the EXIF data are damaged."""
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data may raise any error
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def decode_block(
    files: Sequence[Path | bytes | str], *, image_size: int, image_width: int = 0, crop: float, upright: bool = False
) -> list[Decoded | str]:
    """Decode several pictures.

    files: for each picture its path, its bytes, or (as a string) the reason why it could not be read.

    Returns for each picture the decoded picture, or the reason why it failed.
    """
    decoded: list[Decoded | str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
        for file in files:
            try:
                if isinstance(file, str):
                    raise ValueError(file)
                if isinstance(file, Path) and file.stat().st_size > MAX_FILE_BYTES:
                    raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes")
                blob = file.read_bytes() if isinstance(file, Path) else file
                decoded.append(decode(blob, image_size=image_size, image_width=image_width, crop=crop, upright=upright))
            except Exception as e:  # Pillow's decoders raise nearly every kind of error
                decoded.append(" ".join(f"{e}".split()) or type(e).__name__)
    return decoded


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The content of a file in a zip archive; never more bytes than the archive declares for it.

    Raises:
        ValueError: the file is too large, or its compression method has no such bound.
        Exception: any error that zipfile raises for a damaged file.
    """
    if member.file_size > MAX_FILE_BYTES:
        raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("its compression method is not deflate")
    with archive.open(member) as file:
        return file.read(member.file_size)


def format_remarks(remarks: Mapping[str, int], total: int) -> Iterable[str]:
    """Log lines for the remarks on `total` pictures, one for each kind."""
    return [f"{count} of {total} pictures {REMARKS[kind]}" for kind, count in remarks.items() if kind in REMARKS and count]

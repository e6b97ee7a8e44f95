"""Picture files by their content: every format and mode to the pixels that were meant, or a reason in a few words."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cpgan_ray.data import decoding
from cpgan_ray.data.decoding import Decoded, decode, decode_block

SIDE = 16
GREY = np.arange(256, dtype=np.uint8).reshape(SIDE, SIDE)
RGB = np.stack([GREY, GREY[::-1], GREY.T], axis=2)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def decoded(blob: bytes, **options: Any) -> Decoded:
    [found] = decode_block([blob], image_size=SIDE, crop=1.0, **options)
    assert isinstance(found, Decoded), found
    return found


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "JPEG", "AVIF"])
def test_decode_every_format_gives_its_pixels(kind):
    options = {"GIF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}
    image = Image.fromarray(GREY if kind == "GIF" else RGB)
    found = decoded(encoded(image, kind, **options.get(kind, {}))).pixels
    expected = np.repeat(GREY[..., None], 3, axis=2) if kind == "GIF" else RGB
    np.testing.assert_allclose(found.astype(int), expected, atol={"JPEG": 4, "AVIF": 12}.get(kind, 0))


def sixteen(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16))


MODES: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "16-bit PNG": (lambda: encoded(sixteen(GREY * np.uint16(257)), "PNG"), GREY),
    "16-bit TIFF": (lambda: encoded(sixteen(GREY * np.uint16(257)), "TIFF"), GREY),
    "16-bit TIFF, packed": (lambda: encoded(sixteen(GREY * np.uint16(257)), "TIFF", compression="tiff_lzw"), GREY),
    "16-bit PGM": (lambda: b"P5 16 16 65535 " + (GREY * np.uint16(257)).astype(">u2").tobytes(), GREY),
    "PGM of 10 bits": (lambda: b"P5 16 16 1020 " + (GREY * np.uint16(4)).astype(">u2").tobytes(), GREY),
    "PGM of 4 bits": (lambda: b"P5 16 16 15 " + (GREY // 17).tobytes(), GREY // 17 * 17),
    "black and white": (lambda: encoded(Image.fromarray(GREY > 99), "PNG"), np.where(GREY > 99, 255, 0)),
    "black and white TIFF": (
        lambda: encoded(Image.fromarray(GREY > 99), "TIFF", compression="group4"),
        np.where(GREY > 99, 255, 0),
    ),
    "palette": (lambda: encoded(palette(), "PNG"), 255 - GREY),
    "palette with transparency": (lambda: encoded(palette(), "PNG", transparency=bytes(range(256))), 255 - GREY),
    "palette with one transparent colour": (lambda: encoded(palette(), "GIF", transparency=7), 255 - GREY),
    "grey with alpha": (lambda: encoded(Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(GREY.T))), "PNG"), GREY),
}


def palette() -> Image.Image:
    image = Image.fromarray(GREY).copy()
    image = Image.frombytes("P", (SIDE, SIDE), GREY.tobytes())
    image.putpalette(bytes(255 - level for level in range(256) for _ in range(3)))
    return image


@pytest.mark.parametrize("case", MODES)
def test_decode_every_mode_gives_grey_levels_that_were_meant(case):
    make, expected = MODES[case]
    np.testing.assert_allclose(decoded(make()).pixels.astype(int), np.repeat(expected[..., None], 3, axis=2), atol=1)


def test_decode_cmyk_gives_its_colours():
    ink = Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0))
    for kind, options in (("JPEG", {"quality": 100}), ("TIFF", {})):
        np.testing.assert_allclose(decoded(encoded(ink, kind, **options)).pixels.astype(int), [[(255, 0, 0)] * SIDE] * SIDE, atol=3)


def turned(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    return encoded(Image.fromarray(RGB), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_orientation_is_remarked_on_or_applied(kind, orientation):
    as_stored = decoded(turned(orientation, kind))
    np.testing.assert_array_equal(as_stored.pixels, RGB)
    assert as_stored.remarks == (() if orientation == 1 else ("exif_orientation",))
    flipped = RGB[:, ::-1] if orientation in (2, 4, 5, 7) else RGB
    expected = np.rot90(flipped, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation])
    upright = decoded(turned(orientation, kind), upright=True)
    np.testing.assert_array_equal(upright.pixels, expected)
    assert upright.remarks == ()


def test_decode_orientation_of_a_wide_picture_is_applied_before_the_crop():
    wide = np.zeros((8, 32), np.uint8)
    wide[:, 10:22] = 200  # the filter reaches a little beyond the square
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    blob = encoded(Image.fromarray(wide), "PNG", exif=exif)
    assert (decoded(blob, upright=True).pixels == 200).all()


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40]
)
def test_decode_damaged_exif_counts_as_none(exif):
    blob = encoded(Image.fromarray(RGB), "JPEG", exif=exif) if exif else encoded(Image.fromarray(RGB), "JPEG")
    assert decoded(blob).remarks == ()
    np.testing.assert_array_equal(decoded(blob, upright=True).pixels, decoded(blob).pixels)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_decode_animation_gives_its_first_frame_and_says_so(kind):
    other = Image.fromarray(255 - GREY)
    first, options = Image.fromarray(GREY), {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    found = decoded(encoded(first, kind, save_all=True, append_images=[other], **options))
    np.testing.assert_allclose(found.pixels.astype(int), np.repeat(GREY[..., None], 3, axis=2), atol=8 if kind == "AVIF" else 1)
    assert found.remarks == ("several_frames",)


def test_decode_is_by_content_and_not_every_format_of_pillow():
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 100)
    assert decoded(encoded(Image.fromarray(RGB), "PNG", pnginfo=text)).remarks == ()
    for kind in ("ICO", "TGA", "PCX", "EPS"):
        [reason] = decode_block([encoded(Image.fromarray(RGB), kind)], image_size=SIDE, crop=1.0)
        assert isinstance(reason, str)
        assert reason.startswith("it is not a JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, AVIF file")


def test_decode_pixels_are_counted_before_they_are_made():
    for blob in (
        b"P5 70000 70000 255 ",
        struct.pack("<2sIHHI", b"BM", 99, 0, 0, 54) + struct.pack("<IiiHHIIIIII", 40, 70000, 70000, 1, 24, *[0] * 6),
    ):
        with pytest.raises((ValueError, Image.DecompressionBombError), match="limit"):
            decode(blob + bytes(99), image_size=SIDE, crop=1.0)

"""Tests that picture files of every format and mode decode to the intended pixels or give a short reason."""

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


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def decode_one(blob: bytes, **options: Any) -> Decoded:
    [result] = decode_block([blob], image_size=SIDE, crop=1.0, **options)
    assert isinstance(result, Decoded), result
    return result


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "JPEG", "AVIF"])
def test_decode_every_format_gives_its_pixels(kind):
    options = {"GIF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}
    image = Image.fromarray(GREY if kind == "GIF" else RGB)
    decoded_picture = decode_one(encode(image, kind, **options.get(kind, {}))).pixels
    expected = np.repeat(GREY[..., None], 3, axis=2) if kind == "GIF" else RGB
    np.testing.assert_allclose(decoded_picture.astype(int), expected, atol={"JPEG": 4, "AVIF": 12}.get(kind, 0))


def as_16_bit(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16))


MODES: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "16-bit PNG": (lambda: encode(as_16_bit(GREY * np.uint16(257)), "PNG"), GREY),
    "16-bit TIFF": (lambda: encode(as_16_bit(GREY * np.uint16(257)), "TIFF"), GREY),
    "16-bit TIFF, packed": (lambda: encode(as_16_bit(GREY * np.uint16(257)), "TIFF", compression="tiff_lzw"), GREY),
    "16-bit PGM": (lambda: b"P5 16 16 65535 " + (GREY * np.uint16(257)).astype(">u2").tobytes(), GREY),
    "PGM of 10 bits": (lambda: b"P5 16 16 1020 " + (GREY * np.uint16(4)).astype(">u2").tobytes(), GREY),
    "PGM of 4 bits": (lambda: b"P5 16 16 15 " + (GREY // 17).tobytes(), GREY // 17 * 17),
    "black and white": (lambda: encode(Image.fromarray(GREY > 99), "PNG"), np.where(GREY > 99, 255, 0)),
    "black and white TIFF": (
        lambda: encode(Image.fromarray(GREY > 99), "TIFF", compression="group4"),
        np.where(GREY > 99, 255, 0),
    ),
    "palette": (lambda: encode(palette(), "PNG"), 255 - GREY),
    "palette with transparency": (lambda: encode(palette(), "PNG", transparency=bytes(range(256))), 255 - GREY),
    "palette with one transparent colour": (lambda: encode(palette(), "GIF", transparency=7), 255 - GREY),
    "grey with alpha": (lambda: encode(Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(GREY.T))), "PNG"), GREY),
}


def palette() -> Image.Image:
    image = Image.fromarray(GREY).copy()
    image = Image.frombytes("P", (SIDE, SIDE), GREY.tobytes())
    image.putpalette(bytes(255 - level for level in range(256) for _ in range(3)))
    return image


@pytest.mark.parametrize("case", MODES)
def test_decode_every_mode_gives_the_right_grey_levels(case):
    make, expected = MODES[case]
    np.testing.assert_allclose(decode_one(make()).pixels.astype(int), np.repeat(expected[..., None], 3, axis=2), atol=1)


def test_decode_cmyk_gives_its_colours():
    ink = Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0))
    for kind, options in (("JPEG", {"quality": 100}), ("TIFF", {})):
        np.testing.assert_allclose(
            decode_one(encode(ink, kind, **options)).pixels.astype(int), [[(255, 0, 0)] * SIDE] * SIDE, atol=3
        )


def with_orientation(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    return encode(Image.fromarray(RGB), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_orientation_is_reported_or_applied(kind, orientation):
    as_stored = decode_one(with_orientation(orientation, kind))
    np.testing.assert_array_equal(as_stored.pixels, RGB)
    assert as_stored.remarks == (() if orientation == 1 else ("exif_orientation",))
    flipped = RGB[:, ::-1] if orientation in (2, 4, 5, 7) else RGB
    expected = np.rot90(flipped, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation])
    upright = decode_one(with_orientation(orientation, kind), upright=True)
    np.testing.assert_array_equal(upright.pixels, expected)
    assert upright.remarks == ()


def test_decode_upright_applies_the_orientation_before_the_crop():
    wide = np.zeros((8, 32), np.uint8)
    wide[:, 10:22] = 200  # the filter also uses pixels just outside the square
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    blob = encode(Image.fromarray(wide), "PNG", exif=exif)
    assert (decode_one(blob, upright=True).pixels == 200).all()


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40]
)
def test_decode_with_damaged_exif_ignores_it(exif):
    blob = encode(Image.fromarray(RGB), "JPEG", exif=exif) if exif else encode(Image.fromarray(RGB), "JPEG")
    assert decode_one(blob).remarks == ()
    np.testing.assert_array_equal(decode_one(blob, upright=True).pixels, decode_one(blob).pixels)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_decode_animation_gives_the_first_frame_and_a_remark(kind):
    other = Image.fromarray(255 - GREY)
    first, options = Image.fromarray(GREY), {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    result = decode_one(encode(first, kind, save_all=True, append_images=[other], **options))
    np.testing.assert_allclose(result.pixels.astype(int), np.repeat(GREY[..., None], 3, axis=2), atol=8 if kind == "AVIF" else 1)
    assert result.remarks == ("several_frames",)


def test_decode_file_of_another_format_is_refused_by_content():
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 100)
    assert decode_one(encode(Image.fromarray(RGB), "PNG", pnginfo=text)).remarks == ()
    for kind in ("ICO", "TGA", "PCX", "EPS"):
        [reason] = decode_block([encode(Image.fromarray(RGB), kind)], image_size=SIDE, crop=1.0)
        assert isinstance(reason, str)
        assert reason.startswith("it is not a JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, AVIF file")


def test_decode_too_many_pixels_is_refused_before_decoding():
    for blob in (
        b"P5 70000 70000 255 ",
        struct.pack("<2sIHHI", b"BM", 99, 0, 0, 54) + struct.pack("<IiiHHIIIIII", 40, 70000, 70000, 1, 24, *[0] * 6),
    ):
        with pytest.raises((ValueError, Image.DecompressionBombError), match="limit"):
            decode(blob + bytes(99), image_size=SIDE, crop=1.0)


@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 8), (12, 12), (8, 32)])
def test_decode_cuts_the_largest_rectangle_of_the_wanted_shape(height, width):
    """A picture whose red is its column and whose green is its row shows where the rectangle was cut."""
    across, down = np.meshgrid(np.arange(64), np.arange(96))
    picture = np.stack([across * 2, down * 2, across * 0], axis=2).astype(np.uint8)
    pixels = decode(encode(Image.fromarray(picture), "PNG"), image_size=height, image_width=width, crop=1.0).pixels
    assert pixels.shape == (height, width, 3)
    cut_width, cut_height = (64, 64 * height / width) if 64 * height <= 96 * width else (96 * width / height, 96)
    columns = (64 - cut_width) / 2 + (np.arange(width) + 0.5) * cut_width / width - 0.5
    rows = (96 - cut_height) / 2 + (np.arange(height) + 0.5) * cut_height / height - 0.5
    inner = slice(2, -2)  # the filter sees beyond the edges
    np.testing.assert_allclose(pixels[height // 2, inner, 0], 2 * columns[inner], atol=1.5)
    np.testing.assert_allclose(pixels[inner, width // 2, 1], 2 * rows[inner], atol=1.5)


def test_decode_of_a_turned_picture_keeps_its_resolution():
    """A JPEG that is turned upright is not reduced too far while it is decoded."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 512, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encode(image, "JPEG", exif=exif, quality=95), image_size=128, image_width=16, crop=1.0, upright=True).pixels
    upright = encode(image.transpose(Image.Transpose.ROTATE_270), "JPEG", quality=95)
    straight = decode(upright, image_size=128, image_width=16, crop=1.0).pixels
    assert np.abs(turned.astype(int) - straight).mean() < 6

"""Tests of pictures as the privatizer's input: the same pixels as in a prepared store, and pictures that cannot be used."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpgan_ray.data.decoding import decode
from cpgan_ray.deploy.manifest import Preprocessing
from cpgan_ray.deploy.preprocessing import prepare
from cpgan_ray.errors import InputError
from tests.deploy.bundles import smooth_pictures

HOW = Preprocessing(kind="picture", channels=3, height=16, width=16, crop=0.8, dtype="uint8")
GREY = replace(HOW, channels=1)
SIGNALS = Preprocessing(kind="array", channels=9, height=20, width=1, crop=1.0, dtype="float32")


def picture(*, size: tuple[int, int] = (37, 51), seed: int = 0, mode: str = "RGB") -> Image.Image:
    (values,) = smooth_pictures(1, (3, size[1], size[0]), seed=seed)
    return Image.fromarray(values.transpose(1, 2, 0)).convert(mode)


def packed(image: Image.Image, kind: str, **options: Any) -> bytes:
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("size", [(37, 51), (16, 16), (9, 8), (64, 40)])
def test_pixels_equal_those_of_a_prepared_store(kind, size):
    content = packed(picture(size=size), kind)
    stored = decode(content, image_size=16, crop=0.8).pixels
    assert np.array_equal(prepare([content], HOW)[0], stored.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(37, 51), (51, 37), (24, 16)])
def test_pixels_of_a_rectangle_equal_those_of_a_prepared_store(size):
    content = packed(picture(size=size), "PNG")
    stored = decode(content, image_size=16, image_width=24, crop=0.8).pixels
    assert np.array_equal(prepare([content], replace(HOW, width=24))[0], stored.transpose(2, 0, 1))


def test_every_kind_of_picture_gives_the_same_pixels(tmp_path: Path):
    image = picture()
    image.save(tmp_path / "a.png")
    given = [tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), image, np.asarray(image)]
    inputs = prepare(given, HOW)
    assert inputs.shape == (5, 3, 16, 16)
    assert all(np.array_equal(one, inputs[0]) for one in inputs)
    assert np.ptp(inputs) > 20


def test_array_of_the_inputs_shape_is_taken_as_it_is():
    (values,) = smooth_pictures(1, (3, 16, 16), seed=3)
    inputs = prepare([values, values.transpose(1, 2, 0)], HOW)
    assert np.array_equal(inputs[0], values)
    assert np.array_equal(inputs[1], values)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_picture_of_any_mode_becomes_rgb_or_grey(mode):
    image = picture().convert("RGB").convert("L").convert(mode) if mode in ("1", "LA") else picture(mode=mode)
    colour, grey = prepare([image], HOW)[0], prepare([image], GREY)[0]
    assert colour.shape == (3, 16, 16)
    assert grey.shape == (1, 16, 16)
    luma = np.array([0.299, 0.587, 0.114]) @ colour.reshape(3, -1)
    assert np.abs(luma - grey.reshape(-1)).max() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_upright_by_its_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = packed(picture(), "PNG", exif=exif)
    upright = decode(content, image_size=16, crop=0.8, upright=True).pixels
    assert np.array_equal(prepare([content], HOW)[0], upright.transpose(2, 0, 1))


def test_signals_are_taken_only_in_their_own_shape_and_type():
    values = np.random.default_rng(0).normal(size=(9, 20, 1)).astype(np.float32)
    assert np.array_equal(prepare([values], SIGNALS)[0], values)
    for wrong in (values[:8], values.astype(np.float64), b"x", "file.jpg"):
        with pytest.raises(InputError, match=r"takes arrays \(9, 20, 1\) of type float32"):
            prepare([wrong], SIGNALS)


def damaged(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (b"", "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "cannot identify"),
        (damaged(packed(picture(), "PNG")), "cannot be used"),
        ("/nowhere/a.jpg", "/nowhere/a.jpg cannot be used: it is not a file"),
        ("/dev/zero", "it is not a file"),
        (np.zeros((4, 4)), "pictures are uint8"),
        (np.zeros((4, 4, 7), np.uint8), "cannot be used"),
        (np.zeros((0, 4, 3), np.uint8), "cannot be used"),
        (Image.fromarray(np.zeros((9, 9), np.uint16)), "more than 8 bits"),
        (Image.fromarray(np.zeros((9, 9), np.float32)), "more than 8 bits"),
        (packed(Image.new("1", (9000, 9000)), "PNG"), "the limit is"),
    ],
)
def test_picture_that_cannot_be_used_is_named_with_the_reason(given, reason):
    with pytest.raises(InputError, match=reason):
        prepare([given], HOW)

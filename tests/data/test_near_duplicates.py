"""Tests that copies of pictures in several splits are found, and different pictures are not."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dct

from cpgan_ray.data.near_duplicates import lowest_cosines, near_duplicates

SIDE = 32


def smooth(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def compressed(image: Image.Image) -> Image.Image:
    image.save(buffer := io.BytesIO(), "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


COPIES = {
    "the same": lambda image: image,
    "compressed": compressed,
    "smaller": lambda image: image.resize((24, 24), Image.Resampling.BICUBIC).resize((SIDE, SIDE), Image.Resampling.BICUBIC),
    "darker": lambda image: image.point(lambda value: value * 0.8),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [smooth(rng) for _ in range(100)]


@pytest.mark.parametrize("copy", COPIES)
def test_near_duplicates_in_other_splits_are_counted(copy, images, make_store, tmp_path):
    """Rows 0 to 69 are train, 70 to 89 val, 90 to 99 test."""
    changed = [*images]
    for row, original in ((70, 0), (71, 5), (95, 71), (99, 9), (3, 2)):
        changed[row] = COPIES[copy](changed[original])
    dataset, _, _ = make_store(tmp_path / "s", images=np.stack([np.asarray(image) for image in changed]))
    assert near_duplicates(dataset) == {"val": 2, "test": 2}


def test_near_duplicates_of_different_pictures_are_none(images, make_store, tmp_path):
    dataset, _, _ = make_store(tmp_path / "s", images=np.stack([np.asarray(image) for image in images]))
    assert near_duplicates(dataset) == {}


def test_near_duplicates_of_one_colour_or_grey_are_found_without_error(make_store, tmp_path):
    flat = np.repeat(np.arange(40, dtype=np.uint8), 16 * 16).reshape(40, 16, 16, 1) * 5
    dataset, _, _ = make_store(tmp_path / "s", images=flat)
    assert near_duplicates(dataset) == {}, "pictures of one colour say nothing about each other"


@pytest.mark.parametrize("side", [5, 8, 64])
def test_lowest_cosines_are_those_of_scipys_cosine_transform(side):
    expected = dct(np.eye(side), axis=0, norm="ortho")[:8]
    assert lowest_cosines(side) == pytest.approx(expected, abs=1e-7)

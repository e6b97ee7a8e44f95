"""Tests of the face region of aligned pictures."""

import pytest

from cpgan_ray.data.datasets.face_region import face_region
from cpgan_ray.data.decoding import cut_size


@pytest.mark.parametrize("crop", [1.0, 148 / 178, 0.6])
def test_face_region_contains_eyes_and_mouth(crop):
    top, left, bottom, right = face_region(crop)
    side = crop * 178
    for x, y in ((69, 111), (108, 111), (72, 152), (106, 152)):
        assert left < (x - (178 - side) / 2) / side < right
        assert top < (y - (218 - side) / 2) / side < bottom


def test_face_region_is_a_third_of_the_whole_picture():
    top, left, bottom, right = face_region(1.0)
    assert (bottom - top) * (right - left) == pytest.approx(0.32, abs=0.01)


def test_face_region_stays_inside_a_narrow_crop():
    assert all(0 <= edge <= 1 for edge in face_region(0.3))


@pytest.mark.parametrize("size", [(48, 192), (64, 32), (8, 1024)])
def test_face_region_of_another_shape_shows_the_same_pixels(size):
    """The edges that are inside both cuts are at the same place of the aligned picture."""
    square, other = face_region(1.0), face_region(1.0, size)
    width, height = cut_size((178, 218), size, 1.0)
    for edge, (side, cut, start) in enumerate([(178, height, 109), (178, width, 89)] * 2):
        place = (218 - 178) / 2 * (edge % 2 == 0) + square[edge] * side
        first = start - cut / 2
        assert other[edge] == pytest.approx(min(max((place - first) / cut, 0), 1), abs=1e-9)

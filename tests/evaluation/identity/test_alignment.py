"""Tests of the alignment of faces."""

import numpy as np
import pytest
import torch

from cpgan_ray.data.datasets.face_region import HEIGHT, WIDTH, face_region, landmarks
from cpgan_ray.evaluation.identity.alignment import SIDE, TEMPLATE, Alignment, similarity_transform


def test_similarity_transform_recovers_rotation_scale_and_shift():
    points = np.random.default_rng(0).normal(size=(5, 2))
    angle, scale, shift = 0.3, 1.7, np.array([4.0, -2.0])
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    transform = similarity_transform(points, points @ rotation.T + shift)
    assert transform == pytest.approx(np.column_stack([rotation, shift]))


@pytest.mark.parametrize(("crop", "size"), [(1.0, (64, 64)), (0.83, (64, 64)), (1.0, (218, 178)), (0.95, (80, 64))])
def test_alignment_moves_landmarks_to_the_template(crop, size):
    """A bright spot at each landmark of a stored picture appears where the recogniser expects it, whatever was cut."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    for (u, v), expected in zip(landmarks(crop, size), TEMPLATE, strict=True):
        spot = np.exp(-((x - u * width) ** 2 + (y - v * height) ** 2) / (2 * (0.04 * height / crop) ** 2))
        aligned = Alignment(landmarks(crop, size), size)(torch.from_numpy(spot).float()[None, None])[0, 0].numpy()
        rows, columns = np.mgrid[:SIDE, :SIDE]
        centre = (aligned * columns).sum() / aligned.sum(), (aligned * rows).sum() / aligned.sum()
        assert centre == pytest.approx(expected, abs=4)  # a similarity transform fits five points only nearly


def test_landmarks_agree_with_the_face_region():
    top, left, bottom, right = face_region(0.83, (64, 64))
    for x, y in landmarks(0.83, (64, 64)):
        assert left < x < right
        assert top < y < bottom
    (eye, *_, mouth) = landmarks(1.0, (HEIGHT, WIDTH))
    assert (eye[0] * WIDTH, mouth[1] * HEIGHT) == pytest.approx((69.5, 152.5))

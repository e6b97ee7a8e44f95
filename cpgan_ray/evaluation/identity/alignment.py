"""Bring aligned faces into the position that a face recogniser needs, by one similarity transform for a whole data set."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cpgan_ray.data.store import Landmarks

SIDE = 112
"""Side of the pictures that the recogniser takes, in pixels."""
TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""Pixels (x, y) of eyes, nose and corners of the mouth in these pictures (Deng et al., ArcFace, CVPR 2019)."""


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scaling and shift (2, 3) that maps points (n, 2) closest to others (n, 2), by least squares: [[a, -b, c],
    [b, a, d]]."""
    (x, y), ones, zeros = source.T, np.ones(len(source)), np.zeros(len(source))
    rows = np.concatenate([np.stack([x, -y, ones, zeros], axis=1), np.stack([y, x, zeros, ones], axis=1)])
    a, b, c, d = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d]])


class Alignment:
    """Faces (B, C, H, W) of one data set -> (B, C, 112, 112), resampled bilinearly. Beyond its edge a picture is continued with the
    values of the edge."""

    def __init__(self, landmarks: Landmarks, size: tuple[int, int]) -> None:
        """size: height and width of the pictures."""
        self.size = height, width = size
        points = np.array(landmarks) * (width, height)
        inverse = similarity_transform(np.array(TEMPLATE) + 0.5, points)  # from the recogniser's pixels to those of the picture
        centres = np.arange(SIDE) + 0.5
        grid = np.stack([*np.meshgrid(centres, centres), np.ones((SIDE, SIDE))], axis=2) @ inverse.T
        self.grid = torch.from_numpy(2 * grid / (width, height) - 1).float()

    def __call__(self, pictures: Tensor) -> Tensor:
        grid = self.grid.to(pictures.device).expand(len(pictures), -1, -1, -1)
        return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)

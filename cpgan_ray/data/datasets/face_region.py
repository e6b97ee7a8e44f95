"""Where the face is on an aligned CelebA picture: most of such a picture is background, which says little about the person."""

from cpgan_ray.data.decoding import cut_size
from cpgan_ray.data.store import Landmarks

WIDTH, HEIGHT = 178, 218
"""Size of an aligned picture. Smaller copies have the same proportions."""
LEFT_EYE, RIGHT_EYE, NOSE, LEFT_MOUTH, RIGHT_MOUTH = (69, 111), (108, 111), (88, 134), (72, 152), (106, 152)
"""Pixels (x, y) to which the pictures are aligned: eyes, tip of the nose, and corners of the mouth, as the viewer sees them."""
MOUTH_Y = LEFT_MOUTH[1]


def face_region(crop: float, size: tuple[int, int] = (1, 1)) -> tuple[float, float, float, float]:
    """Top, left, bottom and right edge of the face, from the eyebrows to the chin and from ear to ear, as fractions of the sides of
    the centred rectangle that is cut from a picture.

    It reaches 1.25 eye distances to each side of the middle, 0.75 above the eyes and 0.85 below the mouth.

    crop: size of that rectangle as a fraction of the largest one of its shape; size: its shape, height and width in any unit.
    """
    width, height = cut_size((WIDTH, HEIGHT), size, crop)
    left, top = (WIDTH - width) / 2, (HEIGHT - height) / 2
    eyes = RIGHT_EYE[0] - LEFT_EYE[0]
    middle = (LEFT_EYE[0] + RIGHT_EYE[0]) / 2
    edges = (
        (LEFT_EYE[1] - 0.75 * eyes - top) / height,
        (middle - 1.25 * eyes - left) / width,
        (MOUTH_Y + 0.85 * eyes - top) / height,
        (middle + 1.25 * eyes - left) / width,
    )
    top, left, bottom, right = (min(max(edge, 0.0), 1.0) for edge in edges)
    return top, left, bottom, right


def landmarks(crop: float, size: tuple[int, int] = (1, 1)) -> Landmarks:
    """Positions (x, y) of eyes, nose and corners of the mouth, as fractions of the sides of the centred rectangle that is cut from
    a picture. They may be outside it.

    Arguments: see `face_region`.
    """
    width, height = cut_size((WIDTH, HEIGHT), size, crop)
    left, top = (WIDTH - width) / 2, (HEIGHT - height) / 2
    pixels = (LEFT_EYE, RIGHT_EYE, NOSE, LEFT_MOUTH, RIGHT_MOUTH)
    return tuple(((x + 0.5 - left) / width, (y + 0.5 - top) / height) for x, y in pixels)

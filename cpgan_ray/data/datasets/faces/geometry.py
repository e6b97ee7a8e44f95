"""Smooth outlines, the pose that maps them to the frame, and the canvas on which they are drawn."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from cpgan_ray.data.datasets.faces.people import EYE_DEPTH, EYES, FRAME, Colour, Identity, Points, Shot


@cache
def _spline(steps: int) -> np.ndarray:
    t = np.arange(steps)[:, None] / steps
    return 0.5 * np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3])


def smooth(points: Points, steps: int = 5) -> np.ndarray:
    """Closed Catmull-Rom curve through (n, 2) points: (n * steps, 2)."""
    p = np.asarray(points, float)
    four = np.concatenate([p[-1:], p, p[:2]])
    return (_spline(steps) @ np.stack([four[i : i + len(p)] for i in range(4)], axis=1)).reshape(-1, 2)


def mirror_outline(half: Points) -> np.ndarray:
    """Closed outline of a symmetric shape, from its right half, which runs from the top to the bottom."""
    p = np.asarray(half, float)
    return np.vstack([p, (p * (-1, 1))[::-1]])


def between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Outline of the area between two curves that run in the same direction."""
    return np.concatenate([first, second[::-1]])


def ellipse(centre: tuple[float, float], radii: tuple[float, float], *, n: int = 14, power: float = 1.0) -> np.ndarray:
    """Polygon of an ellipse, or of a rounded box if `power` is below 1: (n, 2)."""
    unit = _circle(n)
    return np.sign(unit) * np.abs(unit) ** power * radii + centre if power != 1 else unit * radii + centre


@cache
def _circle(n: int) -> np.ndarray:
    angle = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


class Pose:
    """Maps points of the head to the frame: rotates them around the depth of the eyes, then rolls, scales and shifts them."""

    def __init__(self, identity: Identity, shot: Shot) -> None:
        self._width = identity.face_width + 2
        self._turn = float(np.cos(shot.yaw)), float(np.sin(shot.yaw)), float(np.sin(shot.pitch))
        self._roll = float(np.cos(shot.roll)) * shot.scale, float(np.sin(shot.roll)) * shot.scale
        self._origin = EYES[0] + shot.shift[0], EYES[1] + shot.shift[1]

    def place(self, points: Points, *, lift: float = 0.0, flat: bool = False) -> np.ndarray:
        """Map points on the surface of the face (`lift` above it), or in the plane of the ears (`flat`), to the frame: (n, 2)."""
        p = np.asarray(points, float)
        u, v = p[:, 0], p[:, 1]
        (cos, sin, nod), (c, s) = self._turn, self._roll
        bulge = 0.0 if flat else lift + 44 * np.sqrt(np.maximum(0, 1 - (u / self._width) ** 2 - ((v - 4) / 80) ** 2))
        depth = bulge - EYE_DEPTH
        u, v = u * cos + depth * sin, v + depth * nod
        placed = np.empty_like(p)
        placed[:, 0], placed[:, 1] = c * u - s * v + self._origin[0], s * u + c * v + self._origin[1]
        return placed


class Canvas:
    """Paints shapes of the head on an enlarged picture, and their materials on a second picture."""

    def __init__(self, backdrop: Image.Image, *, pose: Pose, factor: int) -> None:
        full = (backdrop.width * factor, backdrop.height * factor)
        self._pose, self._factor, self._scale = pose, factor, np.array(full) / FRAME
        self._picture, self._matter = backdrop.resize(full, Image.Resampling.NEAREST), Image.new("RGB", full)
        self._paint, self._mark = ImageDraw.Draw(self._picture), ImageDraw.Draw(self._matter)
        self._glaze = ImageDraw.Draw(self._picture, "RGBA")  # blends colours, which is several times slower

    def _pixels(self, points: Points, *, lift: float, flat: bool, pair: bool) -> list[list[float]]:
        p = np.asarray(points, float)
        placed = self._pose.place(np.concatenate([p, p * (-1, 1)]) if pair else p, lift=lift, flat=flat) * self._scale
        return [placed[: len(p)].ravel().tolist(), placed[len(p) :].ravel().tolist()][: 1 + pair]

    def area(
        self,
        points: Points,
        colour: Colour | None,
        *,
        alpha: float = 1,
        matter: tuple[int, int, int] | None = None,
        lift: float = 0,
        flat: bool = False,
        pair: bool = False,
    ) -> None:
        """Fill a polygon, and with `pair` also its mirror image, with a colour and a material (None: unchanged)."""
        for xy in self._pixels(points, lift=lift, flat=flat, pair=pair):
            if colour is not None and alpha == 1:
                self._paint.polygon(xy, fill=_ink(colour))
            elif colour is not None:
                self._glaze.polygon(xy, fill=_ink(colour, alpha))
            if matter is not None:
                self._mark.polygon(xy, fill=matter)

    def line(
        self,
        points: Points,
        colour: Colour,
        *,
        width: float,
        alpha: float = 1,
        lift: float = 0,
        flat: bool = False,
        pair: bool = False,
    ) -> None:
        for xy in self._pixels(points, lift=lift, flat=flat, pair=pair):
            self._glaze.line(xy, fill=_ink(colour, alpha), width=max(1, round(width * self._scale[0])), joint="curve")

    def reduce(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture and its materials at the final size, (3, height, width) float32 in [0, 1]."""
        small = (np.moveaxis(np.asarray(i.reduce(self._factor)), 2, 0) for i in (self._picture, self._matter))
        picture, matter = (np.ascontiguousarray(i, np.float32) / 255 for i in small)
        return picture, matter


def _ink(colour: Colour, alpha: float = 1) -> tuple[int, int, int, int]:
    r, g, b = colour
    return min(255, int(r)), min(255, int(g)), min(255, int(b)), int(255 * alpha)

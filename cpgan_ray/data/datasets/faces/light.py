"""Backdrop, relief and light of a face."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cpgan_ray.data.datasets.faces.geometry import Pose, _ink
from cpgan_ray.data.datasets.faces.people import FRAME, Colour, Identity, Rng, Shot, any_colour, dim


def draw_backdrop(shot: Shot, *, size: tuple[int, int], rng: Rng) -> Image.Image:
    """A gradient between two colours with blurred spots and panels, like the background of photographs at parties and on
    streets."""
    angle = rng.uniform(0, 2 * np.pi)
    across, down = np.linspace(-0.5, 0.5, 6)[None, :, None], np.linspace(-0.5, 0.5, 7)[:, None, None]
    share = 0.5 + across * np.cos(angle) + down * np.sin(angle)
    start, end = np.array(shot.backdrop)
    coarse = np.clip(start + (end - start) * share + rng.normal(0, 9, (7, 6, 1)) + rng.normal(0, 4, (7, 6, 3)), 0, 255)
    picture = Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    paint = ImageDraw.Draw(picture, "RGBA")
    for _ in range(int(rng.integers(0, 7))):
        x, y, a, b = rng.uniform((-0.1, -0.1, 0.03, 0.03), (1.1, 1.0, 0.25, 0.6)) * (size * 2)
        shape = paint.ellipse if rng.random() < 0.4 else paint.rectangle
        shape((x - a, y - b, x + a, y + b), fill=_ink(any_colour(rng), rng.uniform(0.1, 0.6)))
    return picture.filter(ImageFilter.BoxBlur(size[0] / 178 * rng.uniform(0.6, 5)))


def relief(x: np.ndarray, y: np.ndarray, *, who: Identity, shot: Shot, pose: Pose) -> np.ndarray:
    """Height of head, neck and shoulders towards the viewer over the frame's x (1, width) and y (height, 1)."""
    w, n, smile = who.face_width, who.nose_width, max(0.0, shot.smile)
    cx, cy = pose.place([(0, 2)], flat=True)[0].tolist()
    across, down = (x - cx) ** 2, y - cy
    head = 46 * np.sqrt(np.maximum(0, 1 - across / (w + 3) ** 2 - (down / 78) ** 2))
    neck = 24 * np.sqrt(np.maximum(0, 1 - across / (0.85 * w) ** 2)) - 14
    chest = 40 * np.sqrt(np.maximum(0, 1 - across / 105**2 - ((down - 150) / 78) ** 2)) - 4
    bumps = [  # u, v, width, height, how far they protrude
        (0, 12, 4.5, 13, 6 + 1 * who.male),
        (0, who.nose_length, 0.62 * n, 5, 7 + 2 * who.big_nose),
        (0, 53, 9, 3, -2.5),
        (0, who.chin - 8, 11, 7, 5),
        (0, who.mouth_height, 17, 9, 3.5),
    ]
    for s in (-1, 1):
        bumps += [
            (s * 0.8 * n, who.nose_length + 1, 0.3 * n + 1, 3.6, 3.5),
            (s * who.eye_spacing, 1, 10, 6, -5),
            (s * 18, -13, 15, 5, 2.5 + 2 * who.male),
            (s * 26, 20, 12, 9, 3 + 3.5 * smile),
            (s * 33, 36, 9, 12, -2.5 if who.young else -4),
        ]
    table = np.array(bumps, np.float32)
    centre = pose.place(table[:, :2], lift=4).astype(np.float32)
    over_x = np.exp(-0.5 * ((x - centre[:, :1]) / table[:, 2:3]) ** 2)
    over_y = np.exp(-0.5 * ((y.T - centre[:, 1:]) / table[:, 3:4]) ** 2)
    return np.maximum(np.maximum(head, neck), chest) + (over_y * table[:, 4:]).T @ over_x


def lambert(z: np.ndarray, *, light: tuple[float, float, float], step: float) -> np.ndarray:
    """How directly each point of a relief faces the light, 0 to 1, for pixels with distance `step`: (height, width)."""
    dy, dx = np.gradient(z, step)
    return np.maximum(0, (light[2] - light[0] * dx - light[1] * dy) / np.sqrt(1 + dx**2 + dy**2))


def light_up(picture: np.ndarray, matter: np.ndarray, *, who: Identity, shot: Shot, pose: Pose, rng: Rng) -> np.ndarray:
    """Add beard, strands of hair, shadows, and direction and colour of the light to the reduced picture: (3, height, width)."""
    _, height, width = picture.shape
    step = FRAME[0] / width
    x = ((np.arange(width, dtype=np.float32) + 0.5) * step)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) * (FRAME[1] / height))[:, None]
    cx, cy = pose.place([(0, 0)], flat=True)[0].tolist()
    grain = rng.standard_normal((height, width), dtype=np.float32)
    solid, hair, other = matter
    if who.beard != "none":
        share = np.minimum(solid, blur(other, 1.2 / step)) * np.clip(0.93 + 0.16 * grain, 0, 0.97)
        picture = picture + share * (_channels(dim(who.hair_colour, 0.62 / 255)) - picture)
    facing = lambert(relief(x, y, who=who, shot=shot, pose=pose), light=shot.light, step=step)
    on_face = shot.ambient + (1.12 - shot.ambient) * facing
    dome = 62 * np.sqrt(np.maximum(0.02, 1 - ((x - cx) / (who.face_width + 22)) ** 2 - ((y - cy - 5) / 105) ** 2))
    on_dome = shot.ambient + (1.15 - shot.ambient) * lambert(dome, light=shot.light, step=step)
    ray = (x - cx - 20 * who.parting) / np.maximum(12, y - cy + 105) + 0.02 * who.waves * np.sin(y / 5 + x / 9)
    strand = np.convolve(rng.standard_normal(512), (0.3, 0.6, 0.3), "same").astype(np.float32)[(ray * 75).astype(int) & 511]
    shine = np.exp(-(((y - cy + 48 - 0.01 * (x - cx) ** 2) / 9) ** 2)) * 0.2 * (1 + 0.5 * strand)
    shadow = np.roll(blur(hair, 3 / step), round(3 / step), axis=0) * (1 - hair)
    more = solid * (on_face * (1 - 0.5 * shadow) - 1) + other * (1 - solid) * (on_dome - 1)
    more += hair * (on_dome * (1 + 0.17 * strand) + shine - 1)
    gleam = facing * facing
    for _ in range(3):
        gleam = gleam * gleam
    lit = picture * (1 + more * _channels((0.94, 1.02, 1.05))) + 0.1 * solid * gleam
    return lit * _channels(shot.tint) + 0.008 * grain


def _channels(colour: Colour) -> np.ndarray:
    return np.array(colour, np.float32)[:, None, None]


def blur(mask: np.ndarray, radius: float) -> np.ndarray:
    """Blur a mask in [0, 1]."""
    blurred = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(blurred, np.float32) / 255

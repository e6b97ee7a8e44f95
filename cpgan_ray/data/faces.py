"""Procedural faces: the embedded data set, drawn by our own code in CelebA's official layout.

A person (`Identity`) has a fixed geometry and fixed colours; each picture (`Shot`) has its own pose, light, background,
clothes and expression. Both are drawn from random streams of their own, so a picture depends on (seed, identity, picture)
only. `write_faces` writes a whole set:

    FOLDER/img_align_celeba/000001.jpg ...    FOLDER/list_attr_celeba.txt
    FOLDER/identity_CelebA.txt                FOLDER/list_eval_partition.txt

Geometry is in CelebA's own pixels (a frame of 178 x 218) with the origin between the eyes: u to the right, v downwards.
Flat shapes are painted on a canvas of several times the picture's size together with what they are made of; after the
reduction, light falls on a relief of the head and each material answers in its own way.
"""

import multiprocessing
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from cpgan_ray.errors import InputError

T = TypeVar("T")
Rng = np.random.Generator
Colour = tuple[float, float, float]
Points = np.ndarray | Sequence[tuple[float, float]]
Hair = Literal["black", "brown", "blond", "gray", "red", "none"]

FRAME = (178.0, 218.0)
EYES = (89.0, 111.0)
EYE_DEPTH = 39.0
SKIN_TONES: tuple[Colour, ...] = ((251, 228, 216), (238, 198, 172), (218, 168, 134), (184, 130, 96), (136, 90, 64), (92, 60, 45))
HAIR_TONES: dict[Hair, Colour] = {
    "black": (34, 30, 32),
    "brown": (88, 58, 40),
    "blond": (212, 176, 116),
    "gray": (172, 172, 174),
    "red": (140, 58, 30),
    "none": (60, 48, 42),
}
IRIS_TONES: tuple[Colour, ...] = ((62, 40, 26), (84, 58, 34), (96, 110, 62), (84, 128, 160), (110, 124, 132))
LIPSTICK_TONES: tuple[Colour, ...] = ((176, 26, 48), (206, 54, 88), (150, 24, 60), (214, 70, 66))
RIM_TONES: tuple[Colour, ...] = ((24, 22, 24), (40, 24, 18), (84, 36, 22), (30, 34, 60))
SOLID, HAIR, BEARD, CLOTH = (255, 0, 0), (0, 255, 0), (255, 0, 255), (0, 0, 255)
"""What a shape is made of: lit by the relief; strands; skin under a beard; lit as a smooth dome."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A person: what all pictures of one identity share."""

    male: bool
    young: bool
    pale: bool
    bushy: bool
    big_nose: bool
    bangs: bool
    hair: Hair
    """`none` is bald."""
    beard: Literal["none", "mustache", "goatee", "full"]
    skin: Colour
    hair_colour: Colour
    iris: Colour
    face_width: float
    """Half the width of the face at the eyes."""
    jaw: float
    """Width of the jaw as a share of the face's."""
    chin: float
    """Distance of the chin below the eyes."""
    eye_spacing: float
    """Half the distance between the eyes."""
    eye_width: float
    eye_height: float
    eye_tilt: float
    brow_thickness: float
    brow_height: float
    brow_arch: float
    nose_width: float
    nose_length: float
    mouth_width: float
    mouth_height: float
    lip_fullness: float
    hair_length: float
    """How far below the eyes the hair ends."""
    hair_volume: float
    hairline: float
    parting: float
    waves: float
    fringe: bool
    """Whether a bald head has hair left above the ears."""
    makeup: float
    smile_habit: float
    glasses_habit: float
    hat_habit: float
    lipstick_habit: float


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What is particular to one picture of a person. Angles are in radians."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: tuple[float, float]
    light: tuple[float, float, float]
    """Unit vector towards the light: right, down, towards the viewer."""
    ambient: float
    """Share of the light that comes from everywhere."""
    tint: Colour
    """Exposure and colour of the light, as factors."""
    backdrop: tuple[Colour, Colour]
    clothes: tuple[Colour, Colour]
    neckline: Literal["round", "deep", "collar", "suit"]
    gaze: tuple[float, float]
    smile: float
    """0: none; 1: broad."""
    mouth_open: float
    """Distance between the lips."""
    glasses: Literal["none", "round", "square", "half"]
    rims: Colour
    hat: Literal["none", "beanie", "cap", "brim"]
    hat_colour: Colour
    lipstick: Colour | None
    focus: float
    """Radius of the blur, as a share of the picture's width."""


def draw_identity(rng: Rng) -> Identity:
    """A person, with CelebA-like frequencies and correlations of the attributes, none rarer than about 9 %."""
    male = rng.random() < 0.42
    young = rng.random() < (0.66 if male else 0.82)
    pale = rng.random() < (0.09 if male else 0.16)
    tone = rng.uniform(0.0, 0.05) if pale else 0.22 + 0.72 * rng.beta(1.2, 2.2)
    dark = tone > 0.55
    bald = male and rng.random() < (0.17 if young else 0.36)
    bushy = rng.random() < (0.28 if male else 0.09)
    big_nose = rng.random() < (0.38 if male else 0.13)
    long = not bald and rng.random() < (0.1 if male else 0.86)
    lipstick = 0.02 if male else pick(rng, (0.95, 0.5, 0.05), (0.68, 0.18, 0.14))
    weights = np.array([0.27, 0.26, 0.22 if male else 0.3, 0.02, 0.08])
    weights *= (4, 1, 0.15, 1, 0.2) if dark else (1, 1, 1, 1, 1)
    weights *= (1, 1, 1, 1, 1) if young else (0.5, 0.7, 0.7, 26, 0.5)
    hair: Hair = "none" if bald else pick(rng, ("black", "brown", "blond", "gray", "red"), weights)
    low, part = divmod(tone * (len(SKIN_TONES) - 1), 1)
    skin, warm = mix(SKIN_TONES[int(low)], SKIN_TONES[int(low) + 1], part), rng.normal(0, 5)
    return Identity(
        male=male,
        young=young,
        pale=pale,
        bushy=bushy,
        big_nose=big_nose,
        bangs=not bald and rng.random() < (0.13 if male else 0.24),
        hair=hair,
        beard=pick(rng, ("none", "mustache", "goatee", "full"), (0.56, 0.12, 0.14, 0.18)) if male else "none",
        skin=(skin[0] + warm, skin[1], skin[2] - warm),
        hair_colour=dim(HAIR_TONES[hair], rng.uniform(0.8, 1.15)),
        iris=pick(rng, IRIS_TONES[:2] if dark else IRIS_TONES),
        face_width=rng.normal(43.5 if male else 40.5, 1.6),
        jaw=rng.normal(0.84 if male else 0.73, 0.04),
        chin=rng.normal(69 if male else 65, 2.2),
        eye_spacing=rng.normal(19.5, 0.8),
        eye_width=rng.normal(9.6 if male else 10.4, 0.5),
        eye_height=rng.normal(4.0 if male else 5.0, 0.6),
        eye_tilt=rng.normal(0.6, 0.7),
        brow_thickness=rng.uniform(6.2, 8.0) if bushy else rng.uniform(2.2, 3.6) + 0.6 * male,
        brow_height=rng.normal(13.2 if male else 15.2, 1.0),
        brow_arch=rng.normal(1.6 if male else 3.4, 0.8),
        nose_width=rng.uniform(12.8, 15.2) if big_nose else rng.uniform(7.2, 9.6),
        nose_length=rng.normal(27.0, 1.0) + 1.8 * big_nose,
        mouth_width=rng.normal(18.5, 1.4),
        mouth_height=rng.normal(42, 0.9) + 0.9 * big_nose,
        lip_fullness=max(0.5, rng.normal(0.8 if male else 1.1, 0.16)),
        hair_length=rng.uniform(48, 125) if long else rng.uniform(8, 24),
        hair_volume=rng.uniform(7, 20) if long else rng.uniform(4, 13),
        hairline=-rng.uniform(40, 47) - (0 if young else rng.uniform(0, 6) + 4 * male),
        parting=rng.uniform(-0.6, 0.6),
        waves=rng.uniform(0, 1) ** 2,
        fringe=rng.random() < 0.4,
        makeup=0.0 if male else lipstick * rng.uniform(0.2, 1),
        smile_habit=float(np.clip(rng.normal(0.42 if male else 0.54, 0.15), 0.05, 0.95)),
        glasses_habit=0.85 if rng.random() < (0.18 if male or not young else 0.09) else 0.02,
        hat_habit=0.55 if rng.random() < 0.17 else 0.05,
        lipstick_habit=lipstick,
    )


def draw_shot(identity: Identity, *, rng: Rng) -> Shot:
    """One picture's circumstances; the person's habits decide how likely smiles, glasses, hats and lipstick are."""
    smiles = rng.random() < identity.smile_habit
    opens = rng.random() < (0.74 if smiles else 0.24)
    suit = identity.male and rng.random() < 0.4
    x, y = rng.normal(0, 0.65), rng.normal(-0.4, 0.3)
    norm = float(np.sqrt(x**2 + y**2 + 0.72))
    exposure, wall = rng.uniform(0.76, 1.14), any_colour(rng)
    return Shot(
        yaw=float(np.clip(rng.normal(0, 0.16), -0.3, 0.3)),
        pitch=float(np.clip(rng.normal(0, 0.06), -0.14, 0.14)),
        roll=rng.normal(0, 0.035),
        scale=rng.normal(1.01, 0.025),
        shift=(rng.normal(0, 1), rng.normal(0, 1)),
        light=(x / norm, y / norm, 0.85 / norm),
        ambient=rng.uniform(0.25, 0.6),
        tint=(exposure, exposure * (1 + rng.normal(0, 0.012)), exposure * (1 + rng.normal(0, 0.05))),
        backdrop=(wall, mix(wall, any_colour(rng), rng.uniform(0.1, 0.8))),
        clothes=(any_colour(rng), (236, 236, 232) if suit or rng.random() < 0.4 else any_colour(rng)),
        neckline="suit" if suit else pick(rng, ("round", "collar") if identity.male else ("round", "deep", "deep", "collar")),
        gaze=(rng.normal(0, 0.9), rng.normal(0, 0.4)),
        smile=rng.uniform(0.7, 1.15) if smiles else rng.uniform(-0.05, 0.3),
        mouth_open=rng.uniform(4.5, 9) if opens else 0.0,
        glasses=pick(rng, ("round", "square", "half")) if rng.random() < identity.glasses_habit else "none",
        rims=pick(rng, RIM_TONES),
        hat=pick(rng, ("beanie", "cap", "brim")) if rng.random() < identity.hat_habit else "none",
        hat_colour=any_colour(rng),
        lipstick=pick(rng, LIPSTICK_TONES) if rng.random() < identity.lipstick_habit else None,
        focus=0.0 if rng.random() < 0.75 else rng.uniform(0.003, 0.007),
    )


def attributes(identity: Identity, shot: Shot) -> dict[str, bool]:
    """What CelebA's annotators would have ticked, by official name."""
    return {
        "Bald": identity.hair == "none",
        "Bangs": identity.bangs,
        "Big_Nose": identity.big_nose,
        "Black_Hair": identity.hair == "black",
        "Blond_Hair": identity.hair == "blond",
        "Brown_Hair": identity.hair == "brown",
        "Bushy_Eyebrows": identity.bushy,
        "Eyeglasses": shot.glasses != "none",
        "Gray_Hair": identity.hair == "gray",
        "Male": identity.male,
        "Mouth_Slightly_Open": shot.mouth_open > 0,
        "Mustache": identity.beard in ("mustache", "full"),
        "No_Beard": identity.beard == "none",
        "Pale_Skin": identity.pale,
        "Smiling": shot.smile > 0.5,
        "Wearing_Hat": shot.hat != "none",
        "Wearing_Lipstick": shot.lipstick is not None,
        "Young": identity.young,
    }


# ---------------------------------------------------------------------------------------------------------------- geometry


def pick(rng: Rng, options: Sequence[T], weights: Sequence[float] | np.ndarray | None = None) -> T:
    """One of the options; equally likely where no weights are given."""
    if weights is None:
        return options[int(rng.integers(len(options)))]
    edges = np.cumsum(weights)
    return options[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour between `a` (share 0) and `b` (share 1)."""
    rest = 1 - share
    return a[0] * rest + b[0] * share, a[1] * rest + b[1] * share, a[2] * rest + b[2] * share


def dim(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def any_colour(rng: Rng) -> Colour:
    """A colour of clothes and walls: muted mostly, dark or bright rather than grey."""
    level, spread = 5 + 245 * rng.beta(0.6, 0.7), 5 + 55 * rng.random() ** 3
    r, g, b = rng.normal(0, spread, 3).tolist()
    return max(0, level + r), max(0, level + g), max(0, level + b)


@cache
def _spline(steps: int) -> np.ndarray:
    t = np.arange(steps)[:, None] / steps
    return 0.5 * np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3])


def smooth(points: Points, steps: int = 5) -> np.ndarray:
    """Closed Catmull-Rom curve through (n, 2) points: (n * steps, 2)."""
    p = np.asarray(points, float)
    four = np.concatenate([p[-1:], p, p[:2]])
    return (_spline(steps) @ np.stack([four[i : i + len(p)] for i in range(4)], axis=1)).reshape(-1, 2)


def mirrored(half: Points) -> np.ndarray:
    """Closed outline of a shape whose right half runs from the top to the bottom."""
    p = np.asarray(half, float)
    return np.vstack([p, (p * (-1, 1))[::-1]])


def between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The area between two curves that run the same way."""
    return np.concatenate([one, other[::-1]])


def ellipse(centre: tuple[float, float], radii: tuple[float, float], *, n: int = 14, power: float = 1.0) -> np.ndarray:
    """Polygon of an ellipse, or with a power below 1 of a rounded box: (n, 2)."""
    unit = _circle(n)
    return np.sign(unit) * np.abs(unit) ** power * radii + centre if power != 1 else unit * radii + centre


@cache
def _circle(n: int) -> np.ndarray:
    angle = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


class Pose:
    """Where points of the head come to lie in the frame: turned about the eyes' depth, then rolled, scaled and shifted."""

    def __init__(self, identity: Identity, shot: Shot) -> None:
        self._width = identity.face_width + 2
        self._turn = float(np.cos(shot.yaw)), float(np.sin(shot.yaw)), float(np.sin(shot.pitch))
        self._roll = float(np.cos(shot.roll)) * shot.scale, float(np.sin(shot.roll)) * shot.scale
        self._origin = EYES[0] + shot.shift[0], EYES[1] + shot.shift[1]

    def place(self, points: Points, *, lift: float = 0.0, flat: bool = False) -> np.ndarray:
        """Points on the face's surface (`lift` above it), or in the plane of the ears (`flat`): (n, 2)."""
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
    """Paints shapes of the head on an enlarged picture, and beside it what they are made of."""

    def __init__(self, backdrop: Image.Image, *, pose: Pose, factor: int) -> None:
        full = (backdrop.width * factor, backdrop.height * factor)
        self._pose, self._factor, self._scale = pose, factor, np.array(full) / FRAME
        self._picture, self._matter = backdrop.resize(full, Image.Resampling.NEAREST), Image.new("RGB", full)
        self._paint, self._mark = ImageDraw.Draw(self._picture), ImageDraw.Draw(self._matter)
        self._glaze = ImageDraw.Draw(self._picture, "RGBA")  # blends, which costs several times as much

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
        """Fill a polygon, and with `pair` its mirror image: with a colour, and with what it is made of (none: as it was)."""
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

    def reduced(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture and its matter at the final size, (3, height, width) float32 in [0, 1]."""
        small = (np.moveaxis(np.asarray(i.reduce(self._factor)), 2, 0) for i in (self._picture, self._matter))
        picture, matter = (np.ascontiguousarray(i, np.float32) / 255 for i in small)
        return picture, matter


def _ink(colour: Colour, alpha: float = 1) -> tuple[int, int, int, int]:
    r, g, b = colour
    return min(255, int(r)), min(255, int(g)), min(255, int(b)), int(255 * alpha)


# ------------------------------------------------------------------------------------------------------------------- parts


def face_outline(who: Identity, shot: Shot) -> np.ndarray:
    w, jaw, chin = who.face_width, who.jaw * who.face_width, who.chin + 0.4 * shot.mouth_open
    upper = [(0, -66), (0.52 * w, -61), (0.87 * w, -40), (w, -12), (0.97 * w, 14)]
    return smooth(mirrored([*upper, (jaw + 0.05 * w, 36), (0.72 * jaw, 0.82 * chin), (0.36 * jaw, 0.97 * chin), (0, chin)]))


def draw_back_hair(c: Canvas, who: Identity, rng: Rng) -> None:
    """Hair seen behind the head, down to its ends."""
    if who.hair == "none":
        return
    w, r, end = who.face_width, who.hair_volume, who.hair_length
    top = [(0, -67 - r), (0.5 * w, -63 - r), (0.88 * w + 0.5 * r, -44 - 0.5 * r), (w + 0.8 * r, -14), (w + 0.8 * r, 6)]
    low = [(w + r, 0.5 * end), (w + 0.9 * r, end - 6), (0.75 * w, end)] if end > 30 else [(0.9 * w, 24)]
    outline = smooth(mirrored(top + low))
    curls = 1 + 0.04 * who.waves * rng.normal(size=(len(outline), 1))
    c.area(outline * curls, dim(who.hair_colour, 0.62), flat=True, matter=HAIR)


def draw_body(c: Canvas, who: Identity, shot: Shot) -> None:
    """Neck, the chin's shadow on it, shoulders, clothes."""
    w, cloth, second = who.face_width, *shot.clothes
    neck, shoulder = (0.74 * w, 84) if who.male else (0.6 * w, 92)
    half = [(0, 20), (neck, 20), (0.98 * neck, 76), (1.5 * neck, 98), (1.6 * neck, 125), (0, 125)]
    c.area(mirrored(half), dim(who.skin, 0.94), flat=True, matter=SOLID)
    shadow = face_outline(who, shot) * (0.86, 1) + (-4 * shot.light[0], 9)
    c.area(shadow, dim(who.skin, 0.55), alpha=0.55, flat=True)
    outer = [(2.6 * w, 140), (2.2 * w, shoulder + 14), (1.5 * w, shoulder + 4), (1.08 * neck, shoulder - 8)]
    cut = {"round": 95, "deep": 122, "collar": 104, "suit": 118}[shot.neckline]
    if shot.neckline == "suit":
        c.area(mirrored([(0, 90), *outer[::-1], (0, 140)]), second, flat=True, matter=SOLID)
        c.area(mirrored([(5, 98), (8, 140)]), dim(cloth, 0.7), flat=True, matter=SOLID)
    c.area([*outer, (0, cut), (0, 140)], cloth, flat=True, pair=True, matter=SOLID)
    if shot.neckline in ("collar", "suit"):
        flap = [(neck, shoulder - 14), (1.25 * neck, shoulder), (11, cut + 4), (1, cut - 7)]
        c.area(flap, second, flat=True, pair=True, matter=SOLID)


def draw_head(c: Canvas, who: Identity, shot: Shot) -> None:
    c.area(ellipse((who.face_width + 1, 9), (6, 14)), dim(who.skin, 0.92), flat=True, pair=True, matter=SOLID)
    c.area(ellipse((who.face_width + 2, 8), (3, 8), n=10), dim(who.skin, 0.7), flat=True, pair=True)
    c.area(face_outline(who, shot), who.skin, flat=True, matter=SOLID)


def draw_eyes(c: Canvas, who: Identity, shot: Shot) -> None:
    t = np.linspace(-1, 1, 9)
    arc = (1 - t**2) ** 0.75
    high = who.eye_height * (1 - 0.22 * max(0, shot.smile))
    u, v = who.eye_spacing + who.eye_width * t, -who.eye_tilt * t
    shifts = (-(high + 4.5) * arc - 0.5, -high * arc, 0.55 * high * arc, (0.55 * high + 4) * arc + 0.5)
    crease, upper, lower, bag = (np.stack([u, v + shift], axis=1) for shift in shifts)
    c.area(between(upper, lower), (236, 232, 228), pair=True)
    for side in (-1, 1):
        x, y = side * who.eye_spacing + shot.gaze[0], shot.gaze[1] - 0.4
        c.area(ellipse((x, y), (4.5, 4.5)), dim(who.iris, 0.85))
        c.area(ellipse((x, y), (2.0, 2.0), n=8), (10, 8, 8))
        c.area(ellipse((x + 3 * shot.light[0], y - 1.6), (1.1, 1.1), n=6), (255, 255, 255), alpha=0.9)
    c.area(between(crease, upper), mix(dim(who.skin, 0.88), (110, 60, 90), 0.55 * who.makeup), pair=True)
    c.area(between(lower, bag), dim(who.skin, 0.93 if who.young else 0.8), pair=True)
    lash = mix(who.skin, (20, 14, 14), 0.62 + 0.35 * (who.makeup > 0.2))
    c.line(crease, dim(who.skin, 0.55), width=1.0, alpha=0.6, pair=True)
    c.line(upper, lash, width=1.4 + 1.2 * who.makeup, pair=True)
    c.line(lower, lash, width=0.7, alpha=0.5, pair=True)


def draw_brows(c: Canvas, who: Identity, shot: Shot, rng: Rng) -> None:
    t = np.linspace(-1, 1, 8)
    thick = 0.5 * who.brow_thickness * np.sqrt(np.clip(1.02 - t**4, 0, 1)) * (1 - 0.25 * t)
    u = who.eye_spacing + 0.8 + (12.5 + 0.8 * who.bushy) * t
    v = 1.2 - who.brow_height - who.brow_arch * (1 - (t - 0.3) ** 2) - 0.8 * max(0, shot.smile)
    upper, lower = (np.stack([u, v + s * thick + rng.normal(0, 0.5 if who.bushy else 0.15, 8)], axis=1) for s in (-1, 1))
    colour = mix(dim(who.hair_colour, 0.5), who.skin, 0.08 if who.bushy else 0.25)
    c.area(between(upper, lower), colour, alpha=0.9, lift=2, pair=True)


def draw_nose(c: Canvas, who: Identity) -> None:
    n, v, dark = who.nose_width, who.nose_length, dim(who.skin, 0.36)
    c.area(ellipse((0.48 * n, v + 2.6), (0.24 * n, 1.5), n=10), dark, alpha=0.85, lift=7, pair=True)
    c.line([(0.92 * n, v - 4), (1.04 * n, v), (0.9 * n, v + 3.2)], dark, width=1.0, alpha=0.35, lift=4, pair=True)


def mouth_curves(who: Identity, shot: Shot) -> list[np.ndarray]:
    """Upper lip's upper edge, its lower edge, lower lip's upper edge, its lower edge: four curves of (n, 2)."""
    t = np.linspace(-1, 1, 11)
    arc = 1 - t**2
    u = (who.mouth_width + 4.5 * max(0, shot.smile)) * t
    full = who.lip_fullness * (1 - 0.25 * max(0, shot.smile))
    upper = who.mouth_height + 5.5 * shot.smile * (0.35 - t**2) - 0.3 * shot.mouth_open * arc
    lower = upper + shot.mouth_open * arc
    top = upper - 4.4 * full * arc**0.7 * (1 - 0.22 * np.exp(-((t / 0.16) ** 2)))
    return [np.stack([u, v], axis=1) for v in (top, upper, lower, lower + 6.2 * full * arc**0.75)]


def draw_mouth(c: Canvas, who: Identity, shot: Shot) -> None:
    top, upper, lower, bottom = mouth_curves(who, shot)
    natural = mix(who.skin, (168, 70, 74), 0.34 if who.male else 0.45)
    lips = natural if shot.lipstick is None else mix(who.skin, shot.lipstick, 0.9)
    c.area(between(top, bottom), lips, lift=4)
    c.area(between(top, upper), dim(lips, 0.8), lift=4)
    if shot.mouth_open:
        share, colour = (0.72, (240, 236, 226)) if shot.smile > 0.5 else (0.3, (206, 196, 188))
        c.area(between(upper, lower), (58, 18, 20), lift=3)
        c.area(between(upper, upper + share * (lower - upper)), colour, lift=3)
    else:
        c.line(upper, dim(lips, 0.38), width=1.5, lift=4)
    c.line((0.5 * bottom + 0.5 * lower)[4:8], (255, 240, 236), width=1.0, alpha=0.15, lift=4)


def draw_folds(c: Canvas, who: Identity, shot: Shot) -> None:
    """Folds from the nose to the mouth, deeper in smiles and with age, and the wrinkles of the not young."""
    n, nose, mouth, dark = who.nose_width, who.nose_length, who.mouth_height, dim(who.skin, 0.45)
    m, deep = who.mouth_width + 4.5 * max(0, shot.smile), 0.22 * max(0, shot.smile) + 0.5 * (not who.young)
    c.line([(n + 2, nose - 2), (n + 7, nose + 4), (m + 4, mouth - 6), (m + 5, mouth + 3)], dark, width=1.7, alpha=deep, pair=True)
    if who.young:
        return
    t = np.linspace(-1, 1, 7)
    for k, level in enumerate((-24, -30, -36)):
        wavy = np.stack([(25 - 2 * k) * t, level + 2.2 * t**2 + 0.7 * np.sin(5 * t + k)], axis=1)
        c.line(wavy, dark, width=1.4, alpha=0.55)
    wrinkles = [[(11, 8), (18, 12), (26, 10)], [(m + 3, mouth + 5), (m + 2, mouth + 16)], [(3.5, -17), (2.6, -8)]]
    wrinkles += [[(31.5, 0.5 + 1.5 * k), (37.5, 1 + 4.5 * k)] for k in (-1, 0, 1)]
    for wrinkle in wrinkles:
        c.line(wrinkle, dark, width=1.4, alpha=0.52, pair=True)


def mark_beard(c: Canvas, who: Identity, shot: Shot) -> None:
    """Mark where the beard grows; it is coloured, softly, after the reduction."""
    if who.beard == "none":
        return
    top, _, _, bottom = mouth_curves(who, shot)
    w, jaw, chin = who.face_width, who.jaw * who.face_width, who.chin + 0.4 * shot.mouth_open
    m, nose, mouth = who.mouth_width, who.nose_length, who.mouth_height
    if who.beard == "full":
        cheek = [(0, nose + 6), (0.9 * m, nose + 10), (m + 6, mouth), (0.8 * w, 26), (0.96 * w, 4), (0.99 * w, 8), (0.96 * w, 20)]
        low = [(jaw + 0.05 * w, 37), (0.74 * jaw, 0.84 * chin), (0.38 * jaw, chin + 1), (0, chin + 3)]
        c.area(mirrored(cheek + low), None, matter=BEARD)
    if who.beard in ("mustache", "full"):
        over = [(m + 4, mouth + 6), (0.75 * m, nose + 7.5), (0, nose + 5), (-0.75 * m, nose + 7.5), (-m - 4, mouth + 6)]
        c.area(np.vstack([top * (1.12, 1) + (0, 1), over]), None, lift=5, matter=BEARD)
    if who.beard == "goatee":
        half = [(0, mouth + 10), (11, mouth + 8), (15, mouth + 14), (13, chin - 3), (0, chin + 4)]
        c.area(mirrored(half), None, lift=2, matter=BEARD)
    c.area(between(top, bottom), None, lift=4, matter=SOLID)


def draw_front_hair(c: Canvas, who: Identity, rng: Rng) -> None:
    """Hair in front of the head: the cap down to the hairline or the bangs, and long hair over ears and shoulders."""
    w, r, end, colour = who.face_width, who.hair_volume, who.hair_length, who.hair_colour
    if who.hair == "none":
        if who.fringe:
            patch = smooth([(0.9 * w, -28), (w + 3, -20), (w + 4, 2), (w + 1, 12), (0.95 * w, 2)], 3)
            c.area(patch, colour if who.young else (99, 94, 90), flat=True, pair=True, matter=HAIR)
        return
    half = [(0, -67 - r), (0.5 * w, -63 - r), (0.88 * w + 0.5 * r, -44 - 0.5 * r), (w + 0.7 * r, -14), (w + 1, 8)]
    outer = smooth(mirrored(half))
    outer = np.roll(outer, len(outer) // 2, axis=0)
    outer = outer[outer[:, 1] <= 8]
    if who.bangs:
        t = np.linspace(0.8, -0.8, 15)
        line = -17.5 - 3 * np.tile([1, -1], 8)[:15] * rng.uniform(0.3, 1, 15)
    else:
        t = np.linspace(0.68, -0.68, 9)
        line = who.hairline + 14 * np.abs(t) ** 3 - 8 * np.exp(-(((t - who.parting) / 0.18) ** 2)) + 5 * who.parting * t
    temple = np.array([(0.97 * w, 8), (0.9 * w, -10), (0.82 * w, -22)])
    inner = np.vstack([temple, np.stack([t * w, line], axis=1), (temple * (-1, 1))[::-1]])
    c.area(np.vstack([outer, inner]), colour, matter=HAIR)
    if end > 30:
        outside = [(0.84 * w, -34), (w + 0.4 * r, -30), (w + 0.85 * r, 4), (w + r, 0.5 * end), (w + 0.8 * r, end - 3)]
        lock = smooth([*outside, (0.86 * w, end + 2), (0.8 * w, 0.6 * end + 8), (0.97 * w, 28), (0.93 * w, -4)], 4)
        c.area(lock + who.waves * rng.normal(0, 1.6, lock.shape), dim(colour, 0.93), pair=True, matter=HAIR)


def draw_glasses(c: Canvas, who: Identity, shot: Shot) -> None:
    if shot.glasses == "none":
        return
    (a, b), power = {"round": ((14, 13), 1.0), "square": ((15, 11), 0.55), "half": ((15.5, 9.5), 0.65)}[shot.glasses]
    gap, colour = who.eye_spacing + 0.6, shot.rims
    rim = ellipse((gap, 1.5), (a, b), n=20, power=power)
    c.area(rim, (225, 235, 245), alpha=0.13, lift=4, pair=True)
    c.area([(gap - 7, 4), (gap - 3, -6), (gap + 1, -7), (gap - 4, 5)], (255, 255, 255), alpha=0.3, lift=4, pair=True)
    c.line(np.vstack([rim, rim[:2]]), colour, width=2.8, lift=4, pair=True)
    c.line([(gap + a - 1, -2), (who.face_width - 1, -1)], colour, width=2.6, lift=2, pair=True)
    c.line([(a - gap, 0), (0, -2), (gap - a, 0)], colour, width=2.4, lift=6)


def draw_hat(c: Canvas, who: Identity, shot: Shot) -> None:
    if shot.hat == "none":
        return
    w, r, colour = who.face_width, min(who.hair_volume, 11), shot.hat_colour
    side, top = w + 0.75 * r + 2, {"beanie": -84, "cap": -78, "brim": -86}[shot.hat] - 0.4 * r
    c.area(mirrored([(0, -30), (0.9 * w, -30), (0.8 * w, -18), (0, -20)]), dim(who.skin, 0.4), alpha=0.4)
    crown = [(0, top), (0.6 * side, top + 5), (0.95 * side, -52), (side, -24), (0.5 * side, -29), (0, -30)]
    c.area(smooth(mirrored(crown), 4), colour, flat=True, matter=CLOTH)
    if shot.hat == "beanie":
        band = [(-side - 1, -42), (0, -48), (side + 1, -42), (side + 1, -23), (0, -29), (-side - 1, -23)]
        c.area(smooth(band, 4), dim(colour, 0.78), flat=True, matter=CLOTH)
        for x in np.linspace(0.08, 0.9, 6) * side:
            c.line([(x, -45), (x * 1.01, -27)], (0, 0, 0), width=1.2, alpha=0.22, flat=True, pair=True)
    elif shot.hat == "cap":
        visor = [(0, -43), (0.5 * w, -41), (0.92 * w, -34), (0.72 * w, -24), (0, -20)]
        c.line([(0, top), (0, -40)], (0, 0, 0), width=1.2, alpha=0.3, flat=True)
        c.area(smooth(mirrored(visor), 4), dim(colour, 0.6), lift=14, matter=CLOTH)
    else:
        c.area(ellipse((0, -32), (side + 24, 9), n=24), dim(colour, 0.85), flat=True, matter=CLOTH)
        c.area(mirrored([(0, -50), (0.96 * side, -47), (0.98 * side, -36), (0, -40)]), dim(colour, 0.45), flat=True)


# ------------------------------------------------------------------------------------------------------------ light, finish


def draw_backdrop(shot: Shot, *, size: tuple[int, int], rng: Rng) -> Image.Image:
    """A gradient between two colours with blurred blots and panels, as behind people at parties and on streets."""
    angle = rng.uniform(0, 2 * np.pi)
    across, down = np.linspace(-0.5, 0.5, 6)[None, :, None], np.linspace(-0.5, 0.5, 7)[:, None, None]
    share = 0.5 + across * np.cos(angle) + down * np.sin(angle)
    one, other = np.array(shot.backdrop)
    coarse = np.clip(one + (other - one) * share + rng.normal(0, 9, (7, 6, 1)) + rng.normal(0, 4, (7, 6, 3)), 0, 255)
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
    bumps = [  # u, v, width, height, how far they stand out
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
    """How far each point of a relief faces the light, 0 to 1, its pixels `step` apart: (height, width)."""
    dy, dx = np.gradient(z, step)
    return np.maximum(0, (light[2] - light[0] * dx - light[1] * dy) / np.sqrt(1 + dx**2 + dy**2))


def light_up(picture: np.ndarray, matter: np.ndarray, *, who: Identity, shot: Shot, pose: Pose, rng: Rng) -> np.ndarray:
    """Beard, strands of hair, shadows, the light's direction and colour, on the reduced picture: (3, height, width)."""
    _, height, width = picture.shape
    step = FRAME[0] / width
    x = ((np.arange(width, dtype=np.float32) + 0.5) * step)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) * (FRAME[1] / height))[:, None]
    cx, cy = pose.place([(0, 0)], flat=True)[0].tolist()
    grain = rng.standard_normal((height, width), dtype=np.float32)
    solid, hair, other = matter
    if who.beard != "none":
        share = np.minimum(solid, soft(other, 1.2 / step)) * np.clip(0.93 + 0.16 * grain, 0, 0.97)
        picture = picture + share * (_channels(dim(who.hair_colour, 0.62 / 255)) - picture)
    facing = lambert(relief(x, y, who=who, shot=shot, pose=pose), light=shot.light, step=step)
    on_face = shot.ambient + (1.12 - shot.ambient) * facing
    dome = 62 * np.sqrt(np.maximum(0.02, 1 - ((x - cx) / (who.face_width + 22)) ** 2 - ((y - cy - 5) / 105) ** 2))
    on_dome = shot.ambient + (1.15 - shot.ambient) * lambert(dome, light=shot.light, step=step)
    ray = (x - cx - 20 * who.parting) / np.maximum(12, y - cy + 105) + 0.02 * who.waves * np.sin(y / 5 + x / 9)
    strand = np.convolve(rng.standard_normal(512), (0.3, 0.6, 0.3), "same").astype(np.float32)[(ray * 75).astype(int) & 511]
    shine = np.exp(-(((y - cy + 48 - 0.01 * (x - cx) ** 2) / 9) ** 2)) * 0.2 * (1 + 0.5 * strand)
    shadow = np.roll(soft(hair, 3 / step), round(3 / step), axis=0) * (1 - hair)
    more = solid * (on_face * (1 - 0.5 * shadow) - 1) + other * (1 - solid) * (on_dome - 1)
    more += hair * (on_dome * (1 + 0.17 * strand) + shine - 1)
    gleam = facing * facing
    for _ in range(3):
        gleam = gleam * gleam
    lit = picture * (1 + more * _channels((0.94, 1.02, 1.05))) + 0.1 * solid * gleam
    return lit * _channels(shot.tint) + 0.008 * grain


def _channels(colour: Colour) -> np.ndarray:
    return np.array(colour, np.float32)[:, None, None]


def soft(mask: np.ndarray, radius: float) -> np.ndarray:
    """A mask in [0, 1], blurred."""
    blurred = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(blurred, np.float32) / 255


def draw_face(identity: Identity, shot: Shot, *, size: tuple[int, int] = (89, 109), rng: Rng) -> Image.Image:
    """The picture; `rng` is for what has no name: strands of hair, texture of the background, noise of the sensor."""
    pose = Pose(identity, shot)
    c = Canvas(draw_backdrop(shot, size=size, rng=rng), pose=pose, factor=max(2, round(267 / size[0])))
    draw_back_hair(c, identity, rng)
    draw_body(c, identity, shot)
    draw_head(c, identity, shot)
    draw_eyes(c, identity, shot)
    draw_brows(c, identity, shot, rng)
    draw_nose(c, identity)
    draw_mouth(c, identity, shot)
    draw_folds(c, identity, shot)
    mark_beard(c, identity, shot)
    draw_front_hair(c, identity, rng)
    draw_glasses(c, identity, shot)
    draw_hat(c, identity, shot)
    lit = light_up(*c.reduced(), who=identity, shot=shot, pose=pose, rng=rng)
    bands = (np.clip(lit, 0, 1) * 255).astype(np.uint8)
    picture = Image.merge("RGB", [Image.fromarray(band) for band in bands])
    return picture.filter(ImageFilter.GaussianBlur(shot.focus * size[0])) if shot.focus else picture


# ----------------------------------------------------------------------------------------------------------------- the set


def write_faces(
    folder: Path,
    *,
    num_identities: int,
    pictures_per_identity: int,
    seed: int = 0,
    processes: int | None = None,
    size: tuple[int, int] = (89, 109),
) -> None:
    """Draw a data set into a new folder, in CelebA's official layout.

    The bytes depend on the arguments but not on the number of processes (none given: one per core, at most 8). The
    folder appears when it is complete and not before; if another process has completed the same folder meanwhile, its
    pictures stay. Identities are numbered from 1: the first 80 % are the training partition, then 10 % each for
    validation and test. More than one process means that the calling script is imported again in each of them, so it
    needs the usual `if __name__ == "__main__"`.

    Raises:
        InputError: a number or the size is too small, or the folder exists already.
    """
    for name, value, least in (("num_identities", num_identities, 3), ("pictures_per_identity", pictures_per_identity, 1)):
        if value < least:
            raise InputError(f"{name} is {value!r}; it must be at least {least}")
    if min(size) < 16:
        raise InputError(f"size is {size!r}; it must be at least 16 x 16 pixels")
    if folder.exists():
        raise InputError(f"{folder} exists already: delete it, or name another folder for the faces")
    processes = min(processes or min(8, os.cpu_count() or 1), num_identities)
    unfinished = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}"
    (unfinished / "img_align_celeba").mkdir(parents=True)
    draw = partial(_write_person, folder=unfinished / "img_align_celeba", pictures=pictures_per_identity, seed=seed, size=size)
    try:
        with ExitStack() as stack:
            each = map(draw, range(num_identities))
            if processes > 1:
                spawn = multiprocessing.get_context("spawn")
                pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=spawn))
                each = pool.map(draw, range(num_identities), chunksize=max(1, min(16, num_identities // (4 * processes))))
            people = list(tqdm(each, total=num_identities, desc="drawing faces", unit="person", disable=None))
        _write_tables(unfinished, people)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_person(person: int, *, folder: Path, pictures: int, seed: int, size: tuple[int, int]) -> list[dict[str, bool]]:
    """All pictures of one person; returns their attributes."""
    identity = draw_identity(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(person,))))
    rows = []
    for picture in range(pictures):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(person, picture)))
        shot = draw_shot(identity, rng=rng)
        image = draw_face(identity, shot, size=size, rng=rng)
        image.save(folder / _file_name(person * pictures + picture), quality=92)
        rows.append(attributes(identity, shot))
    return rows


def _file_name(row: int) -> str:
    return f"{row + 1:06d}.jpg"


def _write_tables(folder: Path, people: list[list[dict[str, bool]]]) -> None:
    held_out = max(1, round(0.1 * len(people)))
    names = list(people[0][0])
    values, identities, partitions = [], [], []
    for person, pictures in enumerate(people):
        left = len(people) - person
        partition = 2 if left <= held_out else 1 if left <= 2 * held_out else 0
        for row in pictures:
            name = _file_name(len(values))
            values.append(" ".join([name, *(f"{1 if row[a] else -1:2d}" for a in names)]))
            identities.append(f"{name} {person + 1}")
            partitions.append(f"{name} {partition}")
    tables = {
        "list_attr_celeba.txt": [str(len(values)), " ".join(names), *values],
        "identity_CelebA.txt": identities,
        "list_eval_partition.txt": partitions,
    }
    for file, lines in tables.items():
        (folder / file).write_text("\n".join(lines) + "\n")

"""The identity of a person, and the shot (the circumstances) of one picture of the person."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

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
"""Materials of shapes: lit by the relief; strands; skin under a beard; lit like a smooth dome."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A person: the properties that all pictures of one identity share."""

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
    """Width of the jaw as a share of the width of the face."""
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
    """The properties of one picture of a person. Angles are in radians."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: tuple[float, float]
    light: tuple[float, float, float]
    """Unit vector towards the light: right, down, towards the viewer."""
    ambient: float
    """Share of the light that comes from all directions."""
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
    """Draw a person, with frequencies and correlations of the attributes similar to CelebA; none is rarer than about 9 %."""
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
    """Draw the properties of one picture; the person's habits set the probability of smiles, glasses, hats and lipstick."""
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
    """The attributes of a picture by their official CelebA names."""
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


def pick(rng: Rng, options: Sequence[T], weights: Sequence[float] | np.ndarray | None = None) -> T:
    """Draw one of the options; they are equally likely if no weights are given."""
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
    """Draw a colour of clothes and walls: mostly muted, and dark or bright rather than grey."""
    level, spread = 5 + 245 * rng.beta(0.6, 0.7), 5 + 55 * rng.random() ** 3
    r, g, b = rng.normal(0, spread, 3).tolist()
    return max(0, level + r), max(0, level + g), max(0, level + b)

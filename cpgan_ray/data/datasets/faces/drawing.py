"""Draw one picture of one person."""

import numpy as np
from PIL import Image, ImageFilter

from cpgan_ray.data.datasets.faces.geometry import Canvas, Pose, between, ellipse, mirror_outline, smooth
from cpgan_ray.data.datasets.faces.light import draw_backdrop, light_up
from cpgan_ray.data.datasets.faces.people import BEARD, CLOTH, HAIR, SOLID, Identity, Rng, Shot, dim, mix


def face_outline(who: Identity, shot: Shot) -> np.ndarray:
    w, jaw, chin = who.face_width, who.jaw * who.face_width, who.chin + 0.4 * shot.mouth_open
    upper = [(0, -66), (0.52 * w, -61), (0.87 * w, -40), (w, -12), (0.97 * w, 14)]
    return smooth(mirror_outline([*upper, (jaw + 0.05 * w, 36), (0.72 * jaw, 0.82 * chin), (0.36 * jaw, 0.97 * chin), (0, chin)]))


def draw_back_hair(c: Canvas, who: Identity, rng: Rng) -> None:
    """Hair seen behind the head, down to its ends."""
    if who.hair == "none":
        return
    w, r, end = who.face_width, who.hair_volume, who.hair_length
    top = [(0, -67 - r), (0.5 * w, -63 - r), (0.88 * w + 0.5 * r, -44 - 0.5 * r), (w + 0.8 * r, -14), (w + 0.8 * r, 6)]
    low = [(w + r, 0.5 * end), (w + 0.9 * r, end - 6), (0.75 * w, end)] if end > 30 else [(0.9 * w, 24)]
    outline = smooth(mirror_outline(top + low))
    curls = 1 + 0.04 * who.waves * rng.normal(size=(len(outline), 1))
    c.area(outline * curls, dim(who.hair_colour, 0.62), flat=True, matter=HAIR)


def draw_body(c: Canvas, who: Identity, shot: Shot) -> None:
    """Neck with the shadow of the chin, shoulders, clothes."""
    w, cloth, second = who.face_width, *shot.clothes
    neck, shoulder = (0.74 * w, 84) if who.male else (0.6 * w, 92)
    half = [(0, 20), (neck, 20), (0.98 * neck, 76), (1.5 * neck, 98), (1.6 * neck, 125), (0, 125)]
    c.area(mirror_outline(half), dim(who.skin, 0.94), flat=True, matter=SOLID)
    shadow = face_outline(who, shot) * (0.86, 1) + (-4 * shot.light[0], 9)
    c.area(shadow, dim(who.skin, 0.55), alpha=0.55, flat=True)
    outer = [(2.6 * w, 140), (2.2 * w, shoulder + 14), (1.5 * w, shoulder + 4), (1.08 * neck, shoulder - 8)]
    cut = {"round": 95, "deep": 122, "collar": 104, "suit": 118}[shot.neckline]
    if shot.neckline == "suit":
        c.area(mirror_outline([(0, 90), *outer[::-1], (0, 140)]), second, flat=True, matter=SOLID)
        c.area(mirror_outline([(5, 98), (8, 140)]), dim(cloth, 0.7), flat=True, matter=SOLID)
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
    """Four curves (n, 2): the upper and lower edge of the upper lip, then the upper and lower edge of the lower lip."""
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
    """Folds from the nose to the mouth, deeper for smiles and older people, and wrinkles of older people."""
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
    """Mark the area of the beard; it is coloured softly after the reduction."""
    if who.beard == "none":
        return
    top, _, _, bottom = mouth_curves(who, shot)
    w, jaw, chin = who.face_width, who.jaw * who.face_width, who.chin + 0.4 * shot.mouth_open
    m, nose, mouth = who.mouth_width, who.nose_length, who.mouth_height
    if who.beard == "full":
        cheek = [(0, nose + 6), (0.9 * m, nose + 10), (m + 6, mouth), (0.8 * w, 26), (0.96 * w, 4), (0.99 * w, 8), (0.96 * w, 20)]
        low = [(jaw + 0.05 * w, 37), (0.74 * jaw, 0.84 * chin), (0.38 * jaw, chin + 1), (0, chin + 3)]
        c.area(mirror_outline(cheek + low), None, matter=BEARD)
    if who.beard in ("mustache", "full"):
        over = [(m + 4, mouth + 6), (0.75 * m, nose + 7.5), (0, nose + 5), (-0.75 * m, nose + 7.5), (-m - 4, mouth + 6)]
        c.area(np.vstack([top * (1.12, 1) + (0, 1), over]), None, lift=5, matter=BEARD)
    if who.beard == "goatee":
        half = [(0, mouth + 10), (11, mouth + 8), (15, mouth + 14), (13, chin - 3), (0, chin + 4)]
        c.area(mirror_outline(half), None, lift=2, matter=BEARD)
    c.area(between(top, bottom), None, lift=4, matter=SOLID)


def draw_front_hair(c: Canvas, who: Identity, rng: Rng) -> None:
    """Hair in front of the head: down to the hairline or the bangs, and long hair over ears and shoulders."""
    w, r, end, colour = who.face_width, who.hair_volume, who.hair_length, who.hair_colour
    if who.hair == "none":
        if who.fringe:
            patch = smooth([(0.9 * w, -28), (w + 3, -20), (w + 4, 2), (w + 1, 12), (0.95 * w, 2)], 3)
            c.area(patch, colour if who.young else (99, 94, 90), flat=True, pair=True, matter=HAIR)
        return
    half = [(0, -67 - r), (0.5 * w, -63 - r), (0.88 * w + 0.5 * r, -44 - 0.5 * r), (w + 0.7 * r, -14), (w + 1, 8)]
    outer = smooth(mirror_outline(half))
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
    c.area(mirror_outline([(0, -30), (0.9 * w, -30), (0.8 * w, -18), (0, -20)]), dim(who.skin, 0.4), alpha=0.4)
    crown = [(0, top), (0.6 * side, top + 5), (0.95 * side, -52), (side, -24), (0.5 * side, -29), (0, -30)]
    c.area(smooth(mirror_outline(crown), 4), colour, flat=True, matter=CLOTH)
    if shot.hat == "beanie":
        band = [(-side - 1, -42), (0, -48), (side + 1, -42), (side + 1, -23), (0, -29), (-side - 1, -23)]
        c.area(smooth(band, 4), dim(colour, 0.78), flat=True, matter=CLOTH)
        for x in np.linspace(0.08, 0.9, 6) * side:
            c.line([(x, -45), (x * 1.01, -27)], (0, 0, 0), width=1.2, alpha=0.22, flat=True, pair=True)
    elif shot.hat == "cap":
        visor = [(0, -43), (0.5 * w, -41), (0.92 * w, -34), (0.72 * w, -24), (0, -20)]
        c.line([(0, top), (0, -40)], (0, 0, 0), width=1.2, alpha=0.3, flat=True)
        c.area(smooth(mirror_outline(visor), 4), dim(colour, 0.6), lift=14, matter=CLOTH)
    else:
        c.area(ellipse((0, -32), (side + 24, 9), n=24), dim(colour, 0.85), flat=True, matter=CLOTH)
        c.area(mirror_outline([(0, -50), (0.96 * side, -47), (0.98 * side, -36), (0, -40)]), dim(colour, 0.45), flat=True)


def draw_face(identity: Identity, shot: Shot, *, size: tuple[int, int] = (89, 109), rng: Rng) -> Image.Image:
    """The picture. `rng` is for details that `Shot` does not contain: strands of hair, background texture, sensor noise."""
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
    lit = light_up(*c.reduce(), who=identity, shot=shot, pose=pose, rng=rng)
    bands = (np.clip(lit, 0, 1) * 255).astype(np.uint8)
    picture = Image.merge("RGB", [Image.fromarray(band) for band in bands])
    return picture.filter(ImageFilter.GaussianBlur(shot.focus * size[0])) if shot.focus else picture

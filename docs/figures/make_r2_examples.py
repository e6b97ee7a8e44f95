"""Draw what an R2 looks like: procedural faces, and what an attack that recovers R2 of 0.5, 0.2 and 0.05 shows of them.

    python docs/figures/make_r2_examples.py

Writes `cpgan_ray/evaluation/report/r2_examples.jpg`, which report cards and docs/auditing.md show.

The attack is the best linear one on a code that hides the picture in noise: principal components c_i of variance v_i are
released as c_i + s n_i with n_i normal, and estimated as v_i / (v_i + s^2) times that. The noise s is chosen so that the R2 over
all held-out faces is the one that is written next to the row.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cpgan_ray.common.rng import stream
from cpgan_ray.data.datasets.faces.drawing import draw_face
from cpgan_ray.data.datasets.faces.people import draw_identity, draw_shot

PATH = Path(__file__).parents[2] / "cpgan_ray" / "evaluation" / "report" / "r2_examples.jpg"
SIDE, FITTED, HELD_OUT, SHOWN = 64, 600, 200, 8
VALUES = (0.5, 0.2, 0.05)
LABEL_WIDTH, GAP = 64, 2


def draw_faces(count: int) -> np.ndarray:
    """One picture each of so many people, (count, D) in [0, 1]."""
    faces = []
    for person in range(count):
        rng = stream(0, "r2_examples", person)
        identity = draw_identity(rng)
        faces.append(np.asarray(draw_face(identity, draw_shot(identity, rng=rng), size=(SIDE, SIDE), rng=rng)))
    return np.stack(faces).reshape(count, -1).astype(np.float64) / 255


def reconstructions(faces: np.ndarray, *, fitted: int, r2: float) -> np.ndarray:
    """The faces behind the first `fitted` ones, as an attack that was fitted on these and recovers `r2` shows them."""
    mean = faces[:fitted].mean(axis=0)
    _, singular, components = np.linalg.svd(faces[:fitted] - mean, full_matrices=False)
    variances, codes = singular**2 / fitted, (faces[fitted:] - mean) @ components.T
    noise = stream(0, "r2_examples", "noise").normal(size=codes.shape)

    def attack(strength: float) -> np.ndarray:
        return mean + variances / (variances + strength**2) * (codes + strength * noise) @ components

    def recovered(strength: float) -> float:
        return 1 - np.square(attack(strength) - faces[fitted:]).sum() / np.square(mean - faces[fitted:]).sum()

    low, high = 1e-3, 1e3
    for _ in range(40):  # bisection of the logarithm: more noise, less recovered
        middle = np.sqrt(low * high)
        low, high = (middle, high) if recovered(middle) > r2 else (low, middle)
    return attack(low)


def picture(*, fitted: int = FITTED, held_out: int = HELD_OUT, shown: int = SHOWN) -> Image.Image:
    """The panel: originals, one row for each R2, and the mean picture."""
    faces = draw_faces(fitted + held_out)
    rows = {"original": faces[fitted:]}
    rows |= {f"R2 {r2:g}": reconstructions(faces, fitted=fitted, r2=r2) for r2 in VALUES}
    rows["R2 0:\nmean face"] = np.broadcast_to(faces[:fitted].mean(axis=0), faces[fitted:].shape)
    step = SIDE + GAP
    panel = Image.new("RGB", (LABEL_WIDTH + shown * step, len(rows) * step), "white")
    draw = ImageDraw.Draw(panel)
    for i, (label, pictures) in enumerate(rows.items()):
        draw.multiline_text((4, i * step + SIDE // 2 - 10), label, fill="black")
        for j, values in enumerate(np.clip(pictures[:shown] * 255, 0, 255).round().astype(np.uint8)):
            panel.paste(Image.fromarray(values.reshape(SIDE, SIDE, 3)), (LABEL_WIDTH + j * step, i * step))
    return panel


if __name__ == "__main__":
    picture().save(PATH, quality=90, subsampling=0)
    print(PATH, PATH.stat().st_size)

"""Images of reconstructions on one common intensity scale: in every row [-1, 1] is black to white, without contrast stretching.
Signals are drawn as lines with one colour per channel, on one common axis."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw

from cpgan_ray.data import Dataset
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, to_pixels
from cpgan_ray.evaluation.attacks.closed_form import ridge_attack
from cpgan_ray.evaluation.fitting import EvaluationContext
from cpgan_ray.evaluation.generative.attack import GenerativeAttack
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.tournament import TournamentResult

LABEL_WIDTH = 150
SCALE_TO = 96
NUM_COLUMNS = 10
TILE_MARGIN = 0.05
"""Space between a signal and the frame of its tile, as a share of the tile."""


def panel(rows: Mapping[str, np.ndarray], dataset: Dataset) -> Image.Image:
    """One labelled row per entry. Each entry is an array (n, D) of flattened samples (H, W, C), scaled as the networks see them."""
    return (picture_grid if dataset.train.dtype == np.uint8 else signal_grid)(rows, image_shape=dataset.image_shape)


def signal_grid(rows: Mapping[str, np.ndarray], *, image_shape: tuple[int, int, int]) -> Image.Image:
    """Signals as lines. All tiles share one coordinate system, tile (i, j) from (j, -i - 1) to (j + 1, -i), because axes of their
    own take fifteen times as long."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes 0.3 s
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    height, width, channels = image_shape
    count = max(len(signals) for signals in rows.values())
    low = min(float(signals.min()) for signals in rows.values())
    span = max(max(float(signals.max()) for signals in rows.values()) - low, 1e-9)
    time = np.linspace(TILE_MARGIN, 1 - TILE_MARGIN, height)
    lines = []
    for i, signals in enumerate(rows.values()):
        tiles = (signals.reshape(-1, height, width * channels) - low) / span * (1 - 2 * TILE_MARGIN) + TILE_MARGIN - i - 1
        lines += [np.stack([time + j, line], axis=1) for j, tile in enumerate(tiles) for line in tile.T]
    figure = Figure(figsize=(1.2 * count + 1.5, 1.1 * len(rows)), dpi=100)
    ax = figure.add_axes((1.5 / (1.2 * count + 1.5), 0.0, 1.2 * count / (1.2 * count + 1.5), 1.0))
    ax.add_collection(LineCollection(lines, colors=[f"C{channel % 10}" for channel in range(width * channels)], linewidths=0.7))
    ax.hlines(range(-len(rows), 1), 0, count, color="black", linewidth=0.8)
    ax.vlines(range(count + 1), -len(rows), 0, color="black", linewidth=0.8)
    for i, label in enumerate(rows):
        ax.text(-0.05, -i - 0.5, label, ha="right", va="center", fontsize=8)
    ax.set(xlim=(0, count + 0.01), ylim=(-len(rows) - 0.01, 0.01))
    ax.axis("off")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def picture_grid(rows: Mapping[str, np.ndarray], *, image_shape: tuple[int, int, int]) -> Image.Image:
    """Pictures side by side."""
    height, width, channels = image_shape
    factor = max(1, SCALE_TO // height)
    tile = (width * factor, height * factor)
    count = max(len(pictures) for pictures in rows.values())
    page = Image.new("RGB", (LABEL_WIDTH + count * (tile[0] + 2), len(rows) * (tile[1] + 2)), "white")
    draw = ImageDraw.Draw(page)
    for i, (label, pictures) in enumerate(rows.items()):
        top = i * (tile[1] + 2)
        draw.multiline_text((6, top + tile[1] // 2 - 12), label, fill="black")
        bytes_ = np.clip((pictures.reshape(-1, *image_shape) + 1) * 127.5, 0, 255).round().astype(np.uint8)
        for j, picture in enumerate(bytes_ if channels == 3 else bytes_[..., 0]):
            page.paste(Image.fromarray(picture).resize(tile, Image.Resampling.NEAREST), (LABEL_WIDTH + j * (tile[0] + 2), top))
    return page


def reconstruct_rows(data: AttackData, fitted: Fitted, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """An attack's reconstructions of some score rows, (n, D) in [-1, 1]."""
    return to_pixels(data, fitted, data.score.z[torch.from_numpy(rows)]).cpu().numpy() + mean


def without_attack_sets(data: AttackData) -> AttackData:
    """The same data with only the score set, so that the large sets for fitting and tuning do not stay in memory."""
    return dataclasses.replace(data, fit=data.score, tune=data.score)


def fit_ridge(codes: Codes, context: EvaluationContext) -> tuple[AttackData, Fitted]:
    """The score set with other codes of the same pictures, and a ridge attack on these codes."""
    data = EvaluationContext(context.dataset, codes, context.config, context.seed).data("leaked")
    return without_attack_sets(data), ridge_attack(data, context.config)


def attack_panels(result: TournamentResult, context: EvaluationContext, *, undefended: Codes | None) -> dict[str, Image.Image]:
    """`pictures`: evenly spaced score pictures. `worst`: those of which the strongest attack recovers the largest share.

    `map`: R2 at each pixel, only for pictures.

    Rows: original, mean picture, label floor, undefended, strongest attack, and draws of the generative attack. Without the codes
    of an undefended twin, the row "undefended" shows the best linear code with the same number of values: the picture's own
    leading principal components.
    """
    dataset, basis, strongest = context.dataset, context.pca_basis(), result.strongest
    mean = np.asarray(basis.mean)
    data = without_attack_sets(context.data(strongest.spec.variant))
    floor_data = context.floor(data)
    k = min(context.codes["test"].shape[1], len(basis.components))
    twin = None if undefended is None else fit_ridge(undefended, context)
    share = 1 - strongest.errors.errors / strongest.errors.mean_errors
    panel_rows = {
        "pictures": np.linspace(0, len(share) - 1, min(NUM_COLUMNS, len(share))).round().astype(np.int64),
        "worst": np.argsort(-share)[:NUM_COLUMNS],
    }
    panels = {}
    for name, rows in panel_rows.items():
        original = data.score.pixels[rows].cpu().numpy() + mean
        images = {"original": original, "mean picture": np.broadcast_to(mean, original.shape)}
        images["label floor:\nfrom the true labels"] = reconstruct_rows(floor_data, result.floor.attack.fitted, rows, mean)
        if twin is not None:
            images["undefended twin,\nridge attack"] = reconstruct_rows(*twin, rows, mean)
        else:
            images[f"undefended:\nbest {k} numbers"] = basis.reconstruct(linear_code(data, rows, k))
        images[f"this privatizer,\n{strongest.spec.name} attack"] = reconstruct_rows(data, strongest.attack.fitted, rows, mean)
        images |= drawn_rows(result.generative, data, rows, mean)
        panels[name] = panel(images, dataset)
    if data.pictures:
        panels["map"] = r2_map(pixel_r2(data, strongest.attack.fitted), data)
    return panels


def drawn_rows(generative: GenerativeAttack | None, data: AttackData, rows: np.ndarray, mean: np.ndarray) -> dict[str, np.ndarray]:
    """Draws of some score pictures, (n, D) in [-1, 1] each; none if the generative attack was not made."""
    if generative is None:
        return {}
    draws = generative.draws(data.score.z[torch.from_numpy(rows)])
    return {
        f"generative attack,\ndraw {number}": (draw @ data.components).cpu().numpy() + mean
        for number, draw in enumerate(draws, start=1)
    }


def pixel_r2(data: AttackData, fitted: Fitted) -> np.ndarray:
    """R2 of an attack at each pixel of the score pictures, over all channels: (H, W) float64. 0 where the pictures do not vary."""
    errors, mean_errors = np.zeros((2, data.components.shape[1]))
    for z, x in data.score.pixel_blocks():
        errors += (to_pixels(data, fitted, z) - x).double().square().sum(0).cpu().numpy()
        mean_errors += x.double().square().sum(0).cpu().numpy()
    assert data.image_shape is not None
    errors, mean_errors = (values.reshape(data.image_shape).sum(axis=2) for values in (errors, mean_errors))
    return 1 - np.divide(errors, mean_errors, out=np.ones_like(errors), where=mean_errors > 0)


def r2_map(r2: np.ndarray, data: AttackData) -> Image.Image:
    """A map of R2 (H, W) with its scale, and the outline of the face region if the data set has one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(4.2, 3.4), dpi=100, layout="constrained")
    ax = figure.add_subplot()
    picture = ax.imshow(r2, cmap="viridis", vmin=0, vmax=max(0.05, float(r2.max())))
    if data.face is not None:
        inside = data.face.cpu().numpy().reshape(*r2.shape, -1)[..., 0]
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        corner, size = (columns[0] - 0.5, rows[0] - 0.5), (len(columns), len(rows))
        ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white"))
    ax.set(xticks=[], yticks=[])
    figure.colorbar(picture, ax=ax, label="R2")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def linear_code(data: AttackData, rows: np.ndarray, k: int) -> np.ndarray:
    """Coordinates of some score pictures, with all but the k leading ones set to 0."""
    coordinates = data.score.target.values[torch.from_numpy(rows)].cpu().numpy().copy()
    coordinates[:, k:] = 0
    return coordinates

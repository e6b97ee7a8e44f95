"""Pictures of reconstructions on one common intensity scale: [-1, 1] is black to white in every row, nothing is stretched. Signals
are drawn as lines, a colour for each channel, on one common axis."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from cpgan_ray.data import Dataset
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, to_pixels
from cpgan_ray.evaluation.attacks.closed_form import ridge_attack
from cpgan_ray.evaluation.fitting import EvaluationContext
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.tournament import TournamentResult

LABEL_WIDTH = 150
SCALE_TO = 96
SHOWN = 10


def panel(rows: Mapping[str, np.ndarray], dataset: Dataset) -> Image.Image:
    """One labelled row per entry; each a (n, D) array of what the networks see of samples (H, W, C), flattened."""
    return (sheet if dataset.train.dtype == np.uint8 else graphs)(rows, image_shape=dataset.image_shape)


def graphs(rows: Mapping[str, np.ndarray], *, image_shape: tuple[int, int, int]) -> Image.Image:
    """Signals as lines."""
    height, width, channels = image_shape
    count = max(len(signals) for signals in rows.values())
    figure = Figure(figsize=(1.2 * count + 1.5, 1.1 * len(rows)), dpi=100)
    boxes = figure.subplots(len(rows), count, sharex=True, sharey=True, squeeze=False)
    for row, (label, signals) in zip(boxes, rows.items(), strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        for one, signal in zip(row, signals, strict=False):
            one.plot(signal.reshape(height, width * channels), linewidth=0.7)
        for one in row:
            one.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def sheet(rows: Mapping[str, np.ndarray], *, image_shape: tuple[int, int, int]) -> Image.Image:
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


def reconstructed(data: AttackData, fitted: Fitted, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What an attack makes of some score rows, (n, D) in [-1, 1]."""
    return to_pixels(data, fitted, data.score.z[torch.from_numpy(rows)]).cpu().numpy() + mean


def score_set(data: AttackData) -> AttackData:
    """The score set alone: the others are not kept in memory for a few pictures."""
    return dataclasses.replace(data, fit=data.score, tune=data.score)


def attacked_by_ridge(codes: Codes, context: EvaluationContext) -> tuple[AttackData, Fitted]:
    """The score set with other codes of the same pictures, and a ridge attack on these codes."""
    data = EvaluationContext(context.dataset, codes, context.config, context.seed).data("leaked")
    return score_set(data), ridge_attack(data, context.config)


def attack_panels(result: TournamentResult, context: EvaluationContext, *, undefended: Codes | None) -> dict[str, Image.Image]:
    """`pictures`: some score pictures, evenly spaced. `worst`: those of which the strongest attack recovers the largest share.

    Rows: original, mean picture, label floor, undefended, strongest attack. Without an undefended twin's codes its row shows the
    best linear code of as many numbers, the picture's own leading principal components.
    """
    dataset, basis, strongest = context.dataset, context.pca_basis(), result.strongest
    mean = np.asarray(basis.mean)
    data = score_set(context.data(strongest.spec.variant))
    floor_data = context.floor(data)
    k = min(context.codes["test"].shape[1], len(basis.components))
    twin = None if undefended is None else attacked_by_ridge(undefended, context)
    share = 1 - strongest.errors.errors / strongest.errors.mean_errors
    chosen = {
        "pictures": np.linspace(0, len(share) - 1, min(SHOWN, len(share))).round().astype(np.int64),
        "worst": np.argsort(-share)[:SHOWN],
    }
    panels = {}
    for name, rows in chosen.items():
        original = data.score.pixels[rows].cpu().numpy() + mean
        shown = {"original": original, "mean picture": np.broadcast_to(mean, original.shape)}
        shown["label floor:\nfrom the true labels"] = reconstructed(floor_data, result.floor.made.fitted, rows, mean)
        if twin is not None:
            shown["undefended twin,\nridge attack"] = reconstructed(*twin, rows, mean)
        else:
            shown[f"undefended:\nbest {k} numbers"] = basis.reconstruct(linear_code(data, rows, k))
        shown[f"this privatizer,\n{strongest.spec.name} attack"] = reconstructed(data, strongest.made.fitted, rows, mean)
        panels[name] = panel(shown, dataset)
    return panels


def linear_code(data: AttackData, rows: np.ndarray, k: int) -> np.ndarray:
    """The k leading coordinates of some score pictures, the others 0."""
    coordinates = data.score.target.values[torch.from_numpy(rows)].cpu().numpy().copy()
    coordinates[:, k:] = 0
    return coordinates

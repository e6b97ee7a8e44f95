"""Pictures of reconstructions on one common intensity scale: [-1, 1] is black to white in every row, nothing is stretched."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

LABEL_WIDTH = 150
SCALE_TO = 96


def panel(rows: Mapping[str, np.ndarray], *, image_shape: tuple[int, int, int]) -> Image.Image:
    """One labelled row per entry; each a (n, D) array of flattened pictures (H, W, C) in [-1, 1]."""
    height, width, _ = image_shape
    factor = max(1, SCALE_TO // height)
    tile = (width * factor, height * factor)
    count = max(len(pictures) for pictures in rows.values())
    sheet = Image.new("RGB", (LABEL_WIDTH + count * (tile[0] + 2), len(rows) * (tile[1] + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, pictures) in enumerate(rows.items()):
        top = i * (tile[1] + 2)
        draw.multiline_text((6, top + tile[1] // 2 - 12), label, fill="black")
        bytes_ = np.clip((pictures.reshape(-1, *image_shape) + 1) * 127.5, 0, 255).round().astype(np.uint8)
        for j, picture in enumerate(bytes_):
            sheet.paste(Image.fromarray(picture).resize(tile, Image.Resampling.NEAREST), (LABEL_WIDTH + j * (tile[0] + 2), top))
    return sheet

"""A page with some pictures of a data set as the networks will see them, with their labels."""

import io
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cpgan_ray.data import Dataset, Split, Task, task_of
from cpgan_ray.data.store import MISSING
from cpgan_ray.errors import printable

COLUMNS = 8
ROWS = {"train": 3, "val": 1, "test": 2}
"""Split -> rows of the sheet. The final split is not shown: it is for one look at the end."""
TILE_PX, GAP_PX, LINE_PX = 128, 8, 12
FONT_PX = 10
CAPTION_LINES, CAPTION_CHARACTERS = 3, 23


def contact_sheet(dataset: Dataset, labels: tuple[str, ...]) -> bytes | None:
    """A PNG of pictures that are evenly spaced over each split, each with its split and its labels; None if the samples are not
    pictures."""
    if dataset.train.dtype != np.uint8:
        return None
    task, font = task_of(dataset, labels), caption_font()
    step_x, step_y = TILE_PX + GAP_PX, TILE_PX + GAP_PX + LINE_PX * (1 + CAPTION_LINES)
    page = Image.new("RGB", (GAP_PX + COLUMNS * step_x, GAP_PX + sum(ROWS.values()) * step_y), "white")
    draw, first = ImageDraw.Draw(page), 0
    for name, rows in ROWS.items():
        split = dataset.splits[name]
        chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), rows * COLUMNS)).astype(np.int64))
        for i, (pixels, index) in enumerate(zip(split.take(chosen), chosen.tolist(), strict=True)):
            x, y = GAP_PX + i % COLUMNS * step_x, GAP_PX + (first + i // COLUMNS) * step_y
            tile = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).convert("RGB")
            page.paste(tile.resize((TILE_PX, TILE_PX), Image.Resampling.NEAREST), (x, y))
            for line, text in enumerate([name, *captions(dataset, split, index, task)]):
                draw.text((x, y + TILE_PX + 1 + line * LINE_PX), text, fill="black", font=font)
        first += rows
    page.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def caption_font() -> ImageFont.FreeTypeFont:
    """matplotlib's font, which has more alphabets than Pillow's own."""
    from matplotlib import get_data_path  # takes 0.2 s

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), FONT_PX)


def captions(dataset: Dataset, split: Split, row: int, task: Task) -> list[str]:
    """The labels of a picture, in at most `CAPTION_LINES` lines: of several 0/1 labels only the names of those that are 1."""
    text = "; ".join(printable(text) for text in _label_texts(dataset, split.labels[row], task))
    return textwrap.wrap(text, CAPTION_CHARACTERS, max_lines=CAPTION_LINES, placeholder=" ...")


def _label_texts(dataset: Dataset, values: np.ndarray, task: Task) -> Iterator[str]:
    for label in task.labels:
        value = int(values[label.column])
        if value == MISSING:
            yield f"{label.name}: missing"
        elif label.name in dataset.info.classes or len(task.labels) == 1:
            yield f"{label.name}: {label.values[value]}"
        elif value:
            yield label.name

"""A page with some pictures of a data set as the networks will see them, with their labels."""

import io
import textwrap
from collections.abc import Iterator

import numpy as np

from cpgan_ray.data import Dataset, Split, label_columns
from cpgan_ray.errors import printable

COLUMNS = 8
ROWS = {"train": 3, "val": 1, "test": 2}
"""Split -> rows of the sheet. The final split is not shown: it is for one look at the end."""
TILE_PX, CAPTION_LINES, CAPTION_CHARACTERS = 128, 3, 22


def contact_sheet(dataset: Dataset, task: tuple[str, ...]) -> bytes | None:
    """A PNG of pictures that are evenly spaced over each split; None if the samples are not pictures."""
    if dataset.train.dtype != np.uint8:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes 0.3 s
    from matplotlib.figure import Figure

    num_rows = sum(ROWS.values())
    figure = Figure(figsize=(COLUMNS * 1.5, num_rows * 2.1), dpi=100)
    axes = figure.subplots(num_rows, COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    row = 0
    for name, count in ROWS.items():
        split = dataset.splits[name]
        chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), count * COLUMNS)).astype(np.int64))
        for ax, picture, index in zip(axes[row : row + count].flat, split.take(chosen), chosen, strict=False):
            ax.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255)
            lines = [name, *captions(dataset, split, int(index), task)]
            ax.set_title("\n".join(lines), fontsize=6.5, loc="left", pad=2, parse_math=False)
        row += count
    figure.tight_layout(pad=0.6)
    FigureCanvasAgg(figure)
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


def captions(dataset: Dataset, split: Split, row: int, task: tuple[str, ...]) -> list[str]:
    """The labels of a picture, in at most `CAPTION_LINES` lines: of 0/1 labels the names of those that are 1."""
    texts = list(_label_texts(dataset, split.labels[row], task))
    lines = textwrap.wrap("; ".join(map(printable, texts)), CAPTION_CHARACTERS, max_lines=CAPTION_LINES, placeholder=" ...")
    return lines + [""] * (CAPTION_LINES - len(lines))


def _label_texts(dataset: Dataset, labels: np.ndarray, task: tuple[str, ...]) -> Iterator[str]:
    columns = label_columns(dataset, task)
    for column in columns:
        name, value = dataset.label_names[column], int(labels[column])
        if value < 0:
            yield f"{name}: missing"
        elif name in dataset.info.classes:
            yield f"{name}: {dataset.info.classes[name][value]}"
        elif len(columns) == 1:
            yield f"{name}: {value}"
        elif value:
            yield name

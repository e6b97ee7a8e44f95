"""Helpers that several measurements share: a cheap synthetic data set, and a timer."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DISTINCT = 400
"""Number of different pictures in a synthetic data set; the others are links to them."""


def synthetic(folder: Path, *, rows: int, image_size: int) -> None:
    """Writes a data set of `rows` pictures with 5 random attributes in CelebA's layout: a few procedural faces with many names."""
    from cpgan_ray.data.datasets.faces.files import write_faces

    write_faces(folder, num_identities=DISTINCT, pictures_per_identity=1, size=(image_size, image_size))
    pictures = folder / "img_align_celeba"
    for row in range(DISTINCT, rows):
        (pictures / f"{row + 1:06d}.jpg").hardlink_to(pictures / f"{row % DISTINCT + 1:06d}.jpg")
    for row in range(rows, DISTINCT):
        (pictures / f"{row + 1:06d}.jpg").unlink()
    names = [f"{row + 1:06d}.jpg" for row in range(rows)]
    signs = np.random.default_rng(0).choice([-1, 1], (rows, 5))
    splits = np.searchsorted([0.9 * rows, 0.95 * rows], np.arange(rows), side="right")
    attributes = [str(rows), "A B C D E", *(f"{n} {' '.join(map(str, v))}" for n, v in zip(names, signs.tolist(), strict=True))]
    tables = {
        "list_attr_celeba.txt": attributes,
        "identity_CelebA.txt": [f"{name} {row + 1}" for row, name in enumerate(names)],
        "list_eval_partition.txt": [f"{name} {split}" for name, split in zip(names, splits.tolist(), strict=True)],
    }
    for file, lines in tables.items():
        (folder / file).write_text("\n".join(lines) + "\n")


def timed(work: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The return value of a call, and its time in seconds."""
    started = time.perf_counter()
    return work(*args), time.perf_counter() - started

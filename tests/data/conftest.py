"""Fixture that makes a small prepared store without picture files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.data import store


def build(folder: Path, *, num_rows: int = 50, image_shape: tuple[int, int, int] = (8, 6, 3), images: np.ndarray | None = None):
    """Build a store of smooth random pictures: 70 % train, 20 % val, 10 % test. Returns the store and its pictures (N, H, W, 3)."""
    rng = np.random.default_rng(0)
    if images is None:
        images = rng.integers(0, 256, (num_rows, *image_shape)).astype(np.uint8)
    cuts = [len(images) * 7 // 10, len(images) * 9 // 10]
    rows = dict(zip(store.SPLITS, np.split(np.arange(len(images)), cuts), strict=True))
    plan = store.Plan(
        digest="d1",
        source={"made_by": "a test"},
        names=[f"{i}.png" for i in range(len(images))],
        label_names=("Smiling", "Male", "Young"),
        labels=rng.integers(0, 2, (len(images), 3)).astype(np.int8),
        identity=np.arange(len(images), dtype=np.int64) // 2,
        image_shape=images.shape[1:],
        rows=rows,
        fetch=lambda wanted: (images[wanted], np.ones(len(wanted), bool)),
    )
    store.build(folder, plan, progress=False)
    return store.open_store(folder), images, plan


@pytest.fixture
def make_store() -> Callable:
    return build

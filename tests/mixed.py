"""A store of scikit-learn's digits with labels of several kinds, of which a part of the answers is missing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.config import Config, DataConfig, override
from cpgan_ray.data import store
from cpgan_ray.data.datasets import digits
from cpgan_ray.data.registry import DATASETS
from cpgan_ray.data.store import MISSING, DatasetInfo

DIGEST = "00000000feed5eed"
LABELS = ("odd", "group", "ink")
"""The task: a binary label, one of five classes and one of four. In the store they are in another order."""
STORED = ("group", "spare", "ink", "odd")
CLASSES = {
    "group": ("0-1", "2-3", "4-5", "6-7", "8-9"),
    "ink": ("least", "less", "more", "most"),
    "odd": ("even", "odd"),
}


def mixed_config(config: Config, cache: Path, *, share: float = 0.1) -> Config:
    """The configuration on a store of digits in the folder `cache`, which is made if it does not exist.

    share: of the answers to each label that are missing, drawn at random.
    """
    data = DataConfig(dataset="digits", final_fraction=0.0, labels=LABELS)
    config = replace(config, cache_dir=cache, data=data)
    if not (cache / DIGEST).exists():
        samples = digits.read()
        brightness = np.asarray(samples.values).reshape(len(samples.labels), -1).mean(axis=1)
        ink = np.searchsorted(np.quantile(brightness, [0.25, 0.5, 0.75]), brightness)
        spare = samples.labels % 3 == 0
        labels = np.stack([samples.labels // 2, spare, ink, samples.labels % 2], axis=1).astype(np.int8)
        labels[np.random.default_rng(0).random(labels.shape) < share] = MISSING
        plan = store.Plan(
            digest=DIGEST,
            source=DATASETS["digits"].settings(config),
            names=[str(row) for row in range(len(labels))],
            label_names=STORED,
            labels=labels,
            identity=np.arange(len(labels), dtype=np.int64) // 2 + len(labels) * split_numbers(samples.rows, len(labels)),
            image_shape=samples.values.shape[1:],
            rows=samples.rows,
            fetch=lambda rows: (samples.values[rows], np.ones(len(rows), bool)),
            info=DatasetInfo(classes=CLASSES, mirrored=False),
        )
        cache.mkdir(parents=True, exist_ok=True)
        store.build(cache / DIGEST, plan, progress=False)
    return override(config, {"data.digest": DIGEST})


def split_numbers(rows: Any, num_rows: int) -> np.ndarray:
    """The number of the split of each row, so that no identity is in two splits."""
    numbers = np.zeros(num_rows, np.int64)
    for number, members in enumerate(rows.values()):
        numbers[members] = number
    return numbers

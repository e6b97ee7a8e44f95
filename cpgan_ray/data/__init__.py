"""Data sets: from a folder in its official layout to a prepared, memory-mapped store, and to the batches of each round.

`registry` has the data sets by name, `datasets/` a reader for each, `formats/` the file formats that they need, `store/` the
prepared store, `sync/` how each node gets it, `batching` the rows of each round, `pca` the principal components of the pictures.
"""

from cpgan_ray.data.registry import DATASETS, load, pin_store, prepare
from cpgan_ray.data.store import Dataset, Split, open_store
from cpgan_ray.data.task import answers, ensure_learnable, label_columns, majority_logits, shares

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "answers",
    "ensure_learnable",
    "label_columns",
    "load",
    "majority_logits",
    "pin_store",
    "open_store",
    "prepare",
    "shares",
]

"""Data sets: from a folder in its official layout to a prepared, memory-mapped store, and to the batches of each round.

`registry` lists the data sets by name, `datasets/` has a reader for each, `formats/` reads the file formats that they need,
`store/` is the prepared store, `sync/` brings it to each node, `batching` selects the rows of each round, `code_sets` lists the
samples that an evaluation needs codes of, `task` knows which logits belong to which label, `pca` computes the principal components
of the pictures.
"""

from cpgan_ray.data.registry import DATASETS, load, load_unlabelled, pin_store, prepare
from cpgan_ray.data.store import Dataset, Split, open_store
from cpgan_ray.data.task import Task, ensure_learnable, label_frequencies, majority_logits, task_of, task_targets

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "Task",
    "task_of",
    "task_targets",
    "ensure_learnable",
    "load",
    "load_unlabelled",
    "majority_logits",
    "pin_store",
    "open_store",
    "prepare",
    "label_frequencies",
]

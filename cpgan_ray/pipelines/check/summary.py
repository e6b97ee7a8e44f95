"""What a data set holds: its labels, identities and splits, as values for JSON, and what a user should look at."""

from typing import Any

import numpy as np

from cpgan_ray.data import Dataset, Task, store, task_of
from cpgan_ray.data.task import value_counts
from cpgan_ray.pipelines.fit_to_data import MIN_PICTURES, num_pictures

RARE_ROWS = 20
"""A class with fewer training pictures is pointed out."""


def splits_of(dataset: Dataset) -> dict[str, Any]:
    """The splits that have pictures, by name."""
    return {name: split for name, split in (*dataset.splits.items(), ("final", dataset.final)) if len(split)}


def label_rows(dataset: Dataset, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each label: name, whether it is in the task, kind, number of missing answers, and for each value the number of pictures:
    in all splits, in `train` and in `test`."""
    in_task, every = task_of(dataset, labels).names, Task.of(dataset.label_names, classes=dataset.info.classes)
    counts = {name: value_counts(split.labels, every) for name, split in splits_of(dataset).items()}
    rows = []
    for label in every.labels:
        of_split = {name: of_labels[label.column] for name, of_labels in counts.items()}
        total = np.sum([*of_split.values()], axis=0)
        rows.append(
            {
                "name": label.name,
                "task": label.name in in_task,
                "kind": "binary" if label.binary else f"{len(label.values)} classes",
                "classes": dict(zip(label.values, total.tolist(), strict=True)),
                "missing": num_pictures(dataset) - int(total.sum()),
                "train": dict(zip(label.values, of_split["train"].tolist(), strict=True)),
                "test": dict(zip(label.values, of_split["test"].tolist(), strict=True)),
            }
        )
    return rows


def identity_summary(dataset: Dataset) -> dict[str, Any]:
    """The number of identities and of pictures of each; only `known` if the identities are unknown."""
    identity = np.concatenate([split.identity for split in splits_of(dataset).values()])
    _, counts = np.unique(identity, return_counts=True)
    if dataset.info.anonymous or counts.max() == 1:
        return {"known": not dataset.info.anonymous, "count": len(counts), "repeated": 0}
    return {
        "known": True,
        "count": len(counts),
        "repeated": int((counts > 1).sum()),
        "smallest": int(counts.min()),
        "median": float(np.median(counts)),
        "largest": int(counts.max()),
    }


def side_counts(dataset: Dataset) -> dict[str, int]:
    """The shorter sides of the pictures in the files, in pixels: range -> number of pictures. Only for own pictures."""
    remarks = store.read_manifest(dataset.folder).remarks
    sides = {int(kind.removeprefix("side_")): count for kind, count in remarks.items() if kind.startswith("side_")}
    return {f"{side} to {2 * side - 1}": count for side, count in sorted(sides.items())}


def findings(dataset: Dataset, labels: list[dict[str, Any]], duplicates: dict[str, int]) -> list[str]:
    """What a user should look at before training, a sentence each."""
    lines = []
    if (total := num_pictures(dataset)) < MIN_PICTURES:
        lines.append(f"{total} pictures are too few: training needs at least {MIN_PICTURES}")
    if dataset.info.anonymous:
        lines.append("the identities are unknown: one person may be in several splits, and identity linkage is not measured")
    if duplicates:
        numbers = ", ".join(f"{count} in {name}" for name, count in duplicates.items())
        lines.append(f"pictures with a near-duplicate in another split: {numbers}")
    if dataset.skipped:
        lines.append(f"{len(dataset.skipped)} pictures are skipped, first {dataset.skipped[0]}")
    for label in labels:
        if not label["task"]:
            continue
        rare = [f"{name} ({count})" for name, count in label["train"].items() if count < RARE_ROWS]
        absent = [name for name, count in label["test"].items() if not count]
        if rare:
            lines.append(f"label {label['name']}: fewer than {RARE_ROWS} training pictures of {_some(rare)}")
        if absent:
            lines.append(f"label {label['name']}: no test picture of {_some(absent)}")
        if not sum(label["train"].values()):
            lines.append(f"label {label['name']} is missing in all training pictures")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

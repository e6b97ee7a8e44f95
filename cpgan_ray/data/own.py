"""A data set that the user's own code reads: its recipe, and checks of what the code returns."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.common.plugins import Parts, label, own_code
from cpgan_ray.config import DataConfig
from cpgan_ray.data.samples import Samples, StackedArrays, validate_samples
from cpgan_ray.data.small import SmallDataset
from cpgan_ray.errors import InputError


def own_dataset(name: str, datasets: Parts[Any], *, has_folder: bool) -> SmallDataset:
    """The data set that a user's own part reads: a `SmallDataset`, or a function from the source folder (None without
    `--data-dir`), the data configuration and the options to `Samples`.

    Raises: InputError if the part is neither.
    """
    part = datasets[name]
    if isinstance(part, SmallDataset):
        return dataclasses.replace(
            part, files=guarded(part.files, name), read=lambda source, data: validated(part, source, data, name)
        )
    if not callable(part):
        raise InputError(f"data.dataset {label(name)} is {type(part).__name__}; it must be a function that returns Samples")

    def read(source: Path, data: DataConfig) -> Samples:
        samples = datasets.call(name, source if has_folder else None, data, options=data.options)
        return validate_samples(checked(samples, name), f"data.dataset {label(name)}")

    return SmallDataset(
        lambda source, data: files_in(source) if has_folder else [], read, needs_folder=has_folder, settings=("options",)
    )


def guarded(call: Callable[[Path, DataConfig], Any], name: str) -> Callable[[Path, DataConfig], Any]:
    """A function of a user's `SmallDataset`, whose errors become one line with file and line."""

    def guarded_call(source: Path, data: DataConfig) -> Any:
        with own_code(name, doing="reading the data set"):
            return call(source, data)

    return guarded_call


def validated(part: SmallDataset, source: Path, data: DataConfig, name: str) -> Samples:
    """The samples of a user's `SmallDataset`, checked."""
    return validate_samples(checked(guarded(part.read, name)(source, data), name), f"data.dataset {label(name)}")


def files_in(folder: Path) -> list[Path]:
    """All files of a folder in a fixed order; hidden ones are left out, and so is the cache."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def checked(samples: Any, name: str) -> Samples:
    """Samples whose arrays have the declared types and shapes.

    Raises: InputError that names the array.
    """
    where = f"data.dataset {label(name)}"
    if not isinstance(samples, Samples):
        raise InputError(f"{where} returns {type(samples).__name__}; it must return cpgan_ray.data.samples.Samples")
    values = samples.values
    if not isinstance(values, np.ndarray | StackedArrays) or len(values.shape) != 4 or values.dtype not in (np.uint8, np.float32):
        got = f"{values.dtype} {values.shape}" if hasattr(values, "dtype") else type(values).__name__
        raise InputError(f"{where}: values are {got}; they must be uint8 pictures or float32 signals of shape (N, H, W, C)")
    if values.dtype == np.float32 and not all(
        np.isfinite(values[np.arange(i, min(i + 4096, len(values)))]).all() for i in range(0, len(values), 4096)
    ):
        raise InputError(f"{where}: values are not all finite: remove these rows")
    for field, kind in (("labels", np.int8), ("identity", np.int64)):
        array = getattr(samples, field)
        if not isinstance(array, np.ndarray) or array.shape != (len(values),) or array.dtype != kind:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"{where}: {field} are {got}; they must be {np.dtype(kind)} of shape ({len(values)},)")
    if len(samples.labels) and not (samples.labels.min() >= 0 and samples.labels.max() < len(samples.classes)):
        raise InputError(
            f"{where}: a label is not in 0 to {len(samples.classes) - 1}, the numbers of the classes {samples.classes}"
        )
    if set(samples.rows) != {"train", "val", "test"}:
        raise InputError(f"{where}: rows has {sorted(samples.rows)}; it must have train, val and test")
    for split, rows in samples.rows.items():
        if (
            rows.ndim != 1
            or not np.issubdtype(rows.dtype, np.integer)
            or (len(rows) and not 0 <= rows.min() <= rows.max() < len(values))
        ):
            raise InputError(f"{where}: rows of {split} must be row numbers from 0 to {len(values) - 1}")
    return samples

"""Data sets that fit into memory: from what a reader makes of a folder to a prepared store."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import store
from cpgan_ray.data.samples import Samples
from cpgan_ray.errors import InputError


@dataclass(frozen=True)
class Small:
    """How a data set is read."""

    files: Callable[[Path], list[Path]]
    """What it is made of, which the digest is of; of one that needs no folder, files of a package."""
    read: Callable[[Path, DataConfig], Samples]
    needs_folder: bool = True
    settings: tuple[str, ...] = ()
    """The fields of DataConfig that it heeds."""
    mirrored: bool = False
    """Whether a mirror image is a sample of the same kind."""


def prepare(small: Small, config: Config, *, cache: Path, progress: bool) -> Path:
    """Make the store under `cache`, or under the data folder's `.cpgan`, unless it is there: returns its folder, absolute.

    Raises:
        InputError: no data folder, or one that is not needed; what the reader raises; the place cannot be written to.
    """
    name, source = config.data.dataset, config.data_dir
    if not small.needs_folder and source is not None:
        raise InputError(f"data_dir is {source}, but the {name} data set needs no folder: leave it out")
    if small.needs_folder and source is None:
        raise InputError(f"data_dir is None; the {name} data set is read from a folder: give it with --data-dir")
    if source is not None and not source.is_dir():
        raise InputError(f"data folder {source} does not exist or is no folder: give that of the {name} data set with --data-dir")
    where = {} if source is None else {"path": str(source.absolute())}
    root = config.cache_dir or (cache if source is None else source / ".cpgan")
    source = source or root
    made_of: dict[str, object] = {
        "dataset": name,
        **{field: getattr(config.data, field) for field in (*small.settings, "train_rows")},
    }
    total = hashlib.sha256(json.dumps([store.FORMAT, made_of]).encode())
    for path in small.files(source):
        with path.open("rb") as file:
            total.update(f"\n{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    folder = root.absolute() / total.hexdigest()[:16]
    if not folder.is_dir():
        with store.locked(folder):
            if not folder.is_dir():
                samples = small.read(source, config.data)
                plan = plan_of(
                    samples,
                    digest=folder.name,
                    source=where | made_of,
                    mirrored=small.mirrored,
                    train_rows=config.data.train_rows,
                )
                store.build(folder, plan, progress=progress)
    return folder


def plan_of(samples: Samples, *, digest: str, source: dict[str, object], mirrored: bool, train_rows: int = 0) -> store.Plan:
    """What the store is made of. A label of two classes is 0/1 like an attribute. `train_rows`: see DataConfig."""
    several = {samples.label_name: list(samples.classes)} if len(samples.classes) > 2 else {}
    pictures = samples.values.dtype == np.uint8
    limits = {"train": train_rows, "val": train_rows // 4}
    rows = {name: thinned(chosen, limits.get(name, 0)) for name, chosen in samples.rows.items()}
    return store.Plan(
        digest=digest,
        source=source,
        names=[str(row) for row in range(len(samples.values))],
        label_names=(samples.label_name,),
        labels=samples.labels[:, None],
        identity=samples.identity,
        image_shape=samples.values.shape[1:],
        rows=rows,
        fetch=lambda rows: (samples.values[rows], np.ones(len(rows), bool)),
        dtype=samples.values.dtype,
        nature=store.Nature(classes=several, mirrored=mirrored, unit=127.5 if pictures else samples.scale),
    )


def thinned(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` rows, evenly spaced over all; 0: all."""
    if not limit or len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]

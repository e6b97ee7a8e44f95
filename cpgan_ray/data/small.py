"""Data sets that fit into memory: from what a reader makes of a folder to a prepared store."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpgan_ray.common.credentials import redacted
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import balance, store
from cpgan_ray.data.decoding import sentences
from cpgan_ray.data.samples import Samples
from cpgan_ray.data.sync.node import Draft
from cpgan_ray.errors import InputError


@dataclass(frozen=True)
class Small:
    """How a data set is read."""

    files: Callable[[Path, DataConfig], list[Path]]
    """What it is made of, which the digest is of; of one that needs no folder, files of a package."""
    read: Callable[[Path, DataConfig], Samples]
    needs_folder: bool = True
    settings: tuple[str, ...] = ()
    """The fields of DataConfig that it heeds, beside those that all do."""
    switches: tuple[str, ...] = ()
    """The same, of those that change nothing where they are off: the digest has them where they are on."""
    mirrored: bool = False
    """Whether a mirror image is a sample of the same kind."""
    anonymous: bool = False
    """See `Nature.anonymous`."""


def source(small: Small, config: Config, cache: Path) -> Path:
    """The data folder; of a data set that needs none, the cache.

    Raises: InputError where there is no data folder, or one that is not needed.
    """
    name, folder = config.data.dataset, config.data_dir
    if not small.needs_folder and folder is not None:
        raise InputError(f"data_dir is {redacted(str(folder))}, but the {name} data set needs no folder: leave it out")
    if small.needs_folder and folder is None:
        raise InputError(f"data_dir is None; the {name} data set is read from a folder: give it with --data-dir")
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"data folder {folder} does not exist or is no folder: give that of the {name} data set with --data-dir")
    return cache if folder is None else Path(folder)


def settings(small: Small, config: Config) -> dict[str, object]:
    """What the store depends on beside the files."""
    on = [field for field in small.switches if getattr(config.data, field)]
    return {
        "dataset": config.data.dataset,
        **{field: getattr(config.data, field) for field in (*small.settings, "max_train_samples", *on)},
        **balance.settings(config.data),
    }


def draft(small: Small, source: Path, config: Config, *, progress: bool) -> Draft:
    """The store of the data set in `source`, not made yet.

    Raises: InputError where a file is missing; then, as the store is built, what the reader and `plan_of` raise.
    """
    made_of = settings(small, config)
    total = hashlib.sha256(json.dumps([store.FORMAT, made_of]).encode())
    for path in small.files(source, config.data):
        with path.open("rb") as file:
            total.update(f"\n{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    digest = total.hexdigest()[:16]
    where = {"path": str(source.absolute())} if small.needs_folder else {}

    def build(folder: Path) -> None:
        samples = small.read(source, config.data)
        plan = plan_of(samples, small, digest=digest, source=where | made_of, data=config.data)
        store.build(folder, plan, progress=progress, describe=sentences)

    return Draft(digest, build)


def plan_of(samples: Samples, small: Small, *, digest: str, source: dict[str, object], data: DataConfig) -> store.Plan:
    """What the store is made of. A label of two classes is 0/1 like an attribute. Rows are balanced after they are thinned.

    Raises: InputError where they cannot be balanced.
    """
    several = {samples.label_name: list(samples.classes)} if len(samples.classes) > 2 else {}
    pictures = samples.values.dtype == np.uint8
    limits = {"train": data.max_train_samples, "val": data.max_train_samples // 4}
    rows = {name: thinned(chosen, limits.get(name, 0)) for name, chosen in samples.rows.items()}
    if data.balanced:
        rows = balance.balanced(rows, samples.labels, label=samples.label_name, data=data)
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
        info=store.DatasetInfo(
            classes=several,
            mirrored=small.mirrored,
            unit=127.5 if pictures else samples.scale,
            anonymous=small.anonymous,
        ),
        remarks=Counter(samples.remarks),
    )


def thinned(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` rows, evenly spaced over all; 0: all."""
    if not limit or len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]

"""Data sets that fit into memory: from the samples of a reader to a prepared store."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.plugins.names import label, stored_name
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import balance, store
from cpgan_ray.data.decoding import format_remarks
from cpgan_ray.data.final import hold_out_final
from cpgan_ray.data.samples import Samples
from cpgan_ray.data.sync.node import Draft
from cpgan_ray.errors import InputError


@dataclass(frozen=True)
class SmallDataset:
    """How to read a data set that fits into memory."""

    files: Callable[[Path, DataConfig], list[Path]]
    """The source files, whose content determines the digest. If no folder is needed: files of a Python package."""
    read: Callable[[Path, DataConfig], Samples]
    needs_folder: bool = True
    settings: tuple[str, ...] = ()
    """The fields of DataConfig that it uses in addition to the common ones."""
    switches: tuple[str, ...] = ()
    """Further fields that have no effect if they are off: they are part of the digest only if they are on."""
    mirrored: bool = False
    """Whether a mirror image is a valid sample."""
    anonymous: bool = False
    """See `DatasetInfo.anonymous`."""


def source(small: SmallDataset, config: Config, cache: Path) -> Path:
    """The data folder; the cache folder if the data set needs no data folder.

    Raises:
        InputError: the data folder is missing, or one is given but not needed.
    """
    name, folder = label(config.data.dataset), config.data_dir
    if not small.needs_folder and folder is not None:
        raise InputError(f"data_dir is {redacted(str(folder))}, but the {name} data set needs no folder: leave it out")
    if small.needs_folder and folder is None:
        raise InputError(f"data_dir is None; the {name} data set is read from a folder: give it with --data-dir")
    if folder is not None and not Path(folder).is_dir():
        raise InputError(
            f"data folder {folder} does not exist or is not a folder: give the folder of the {name} data set with --data-dir"
        )
    return cache if folder is None else Path(folder)


def settings(small: SmallDataset, config: Config) -> dict[str, object]:
    """What the store depends on in addition to the files."""
    active_switches = [field for field in small.switches if getattr(config.data, field)]
    return {
        "dataset": stored_name(config.data.dataset),
        **{
            field: getattr(config.data, field)
            for field in (*small.settings, "max_train_samples", "final_fraction", *active_switches)
        },
        **balance.settings(config.data),
    }


def draft(small: SmallDataset, source: Path, config: Config, *, progress: bool) -> Draft:
    """A draft of the store of the data set in `source`.

    Raises:
        InputError: a file is missing. Building the store may raise the errors of the reader and of `make_plan`.
    """
    used_settings = settings(small, config)
    total = hashlib.sha256(json.dumps([store.FORMAT, used_settings]).encode())
    for path in small.files(source, config.data):
        with path.open("rb") as file:
            total.update(f"\n{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    digest = total.hexdigest()[:16]
    location = {"path": str(source.absolute())} if small.needs_folder else {}

    def build(folder: Path) -> None:
        samples = small.read(source, config.data)
        plan = make_plan(samples, small, digest=digest, source=location | used_settings, data=config.data)
        store.build(folder, plan, progress=progress, describe=format_remarks)

    return Draft(digest, build)


def make_plan(samples: Samples, small: SmallDataset, *, digest: str, source: dict[str, object], data: DataConfig) -> store.Plan:
    """The plan of the store. Rows are subsampled first, then balanced.

    Raises:
        InputError: the rows cannot be balanced.
    """
    pictures = samples.values.dtype == np.uint8
    limits = {"train": data.max_train_samples, "val": data.max_train_samples // 4}
    rows = hold_out_final(samples.rows, samples.identity, fraction=data.final_fraction)
    rows = {name: evenly_spaced_subset(chosen, limits.get(name, 0)) for name, chosen in rows.items()}
    if data.balanced:
        rows = balance.balance_rows(rows, samples.labels, label=samples.label_name, data=data)
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
            classes={samples.label_name: list(samples.classes)},
            mirrored=small.mirrored,
            unit=127.5 if pictures else samples.scale,
            anonymous=small.anonymous,
        ),
        remarks=Counter(samples.remarks),
    )


def evenly_spaced_subset(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` rows, evenly spaced over all of them; with limit 0 all rows."""
    if not limit or len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]

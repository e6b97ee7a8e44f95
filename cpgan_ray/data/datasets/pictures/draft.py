"""Make the store of own pictures."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.config.data import bin_bounds
from cpgan_ray.data import balance, store
from cpgan_ray.data.datasets.celeba_rows import display_name
from cpgan_ray.data.datasets.celeba_tables import columns_of
from cpgan_ray.data.datasets.pictures.folders import list_files, read_folders
from cpgan_ray.data.datasets.pictures.identities import hashed_numbers, identity_numbers
from cpgan_ray.data.datasets.pictures.labels import Label, missing_of, read_label
from cpgan_ray.data.datasets.pictures.layout import Layout, digest_of, files_read, find_layout
from cpgan_ray.data.datasets.pictures.listing import Listing
from cpgan_ray.data.datasets.pictures.parquet import read_parquet
from cpgan_ray.data.datasets.pictures.splits import row_parts
from cpgan_ray.data.datasets.pictures.tables import read_table
from cpgan_ray.data.decoder_pool import collect, decoder_pool
from cpgan_ray.data.decoding import Decoded, format_remarks
from cpgan_ray.data.final import hold_out_final
from cpgan_ray.data.near_duplicates import warn_of_duplicates
from cpgan_ray.data.sync.node import Draft
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

RESERVED = ("image", "identity")
"""Columns of the store that are not labels."""
SIDE = "side_"
"""Remark on the shorter side of pictures."""


def settings(config: Config) -> dict[str, object]:
    """What the store depends on in addition to the files."""
    keys = ("dataset", "image_size", "crop", "split", "final_fraction", "horizontal_flip")
    columns = ("table", "path_column", "identity_column", "split_column")
    lists = {"missing": [*config.data.missing], "bins": [*config.data.bins]}
    data_settings = {key: getattr(config.data, key) for key in (*keys, *columns)}
    if config.data.image_width:
        data_settings["image_width"] = config.data.image_width
    return {**data_settings, **lists, "skip_corrupt": config.skip_corrupt, **balance.settings(config.data)}


def required_files(names: Sequence[str], config: Config) -> list[str]:
    """The files that are read, from the names (with slashes) of all files in a folder and its subfolders."""
    shards, pictures = files_read(names, config.data)
    return [*shards, *pictures, *([config.data.table] if config.data.table in names else [])]


def draft(source: Path, config: Config, *, processes: int | None = None, progress: bool = True, labelled: bool = True) -> Draft:
    """A draft of the store of the pictures in `source`.

    processes: number of decoding processes; by default one per core if there are many pictures; labelled: False: read the pictures
    in any folders, without labels and identities.

    Raises:
        InputError: see `find_layout`, `read_listing` and `read_rows`. Building the store raises it if a picture cannot be decoded
            (unless `config.skip_corrupt`).
    """
    layout = find_layout(source, config.data)
    further = [] if labelled else [("labelled", False)]
    digest = digest_of(layout, settings=[*sorted(settings(config).items()), *further])
    listing = read_listing(layout, config.data) if labelled or layout.shards else list_files(layout)
    samples = read_rows(listing, config, labelled=labelled)  # even if the store exists: other columns may be the task now

    def build(folder: Path) -> None:
        remarks: Counter[str] = Counter({"other_name": listing.renamed} if listing.renamed else {})
        stored = np.concatenate(list(samples.rows.values()))
        with (
            listing.open() as files,
            decoder_pool(num_pictures=len(stored), config=config, upright=True, processes=processes) as decode,
        ):

            def fetch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                return collect(
                    noted(decode(files(rows)), remarks, config.data),
                    num_pictures=len(rows),
                    config=config,
                    describe=lambda i: f"{source}: {display_name(listing.names[int(rows[i])])}",
                    remarks=remarks,
                )

            plan = store.Plan(
                digest=digest,
                source={"path": str(source.absolute()), **settings(config)},
                names=listing.names,
                label_names=tuple(label.name for label in samples.labels),
                labels=np.stack([label.numbers for label in samples.labels], axis=1),
                identity=samples.identity,
                image_shape=(*config.data.size, 3),
                rows=samples.rows,
                fetch=fetch,
                missing=tuple(listing.names[i] for i in np.flatnonzero(~listing.exists)),
                info=store.DatasetInfo(
                    classes={label.name: list(label.classes) for label in samples.labels if label.classes},
                    mirrored=config.data.horizontal_flip,
                    anonymous=samples.anonymous,
                ),
                remarks=remarks,
            )
            store.build(folder, plan, progress=progress, describe=format_remarks)
        if progress:
            report(listing, samples)
            warn_of_duplicates(store.open_store(folder))

    return Draft(digest, build)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The labels, identities and splits of a listing."""

    labels: list[Label]
    left_out: dict[str, str]
    """Columns outside the task that cannot be labels -> the reason."""
    identity: np.ndarray
    """(N,) int64; the row number if the identities are unknown."""
    anonymous: bool
    rows: Mapping[str, np.ndarray]
    """Split -> row numbers."""


def read_listing(layout: Layout, data: DataConfig) -> Listing:
    """The pictures of a folder with their columns."""
    if layout.table is not None:
        return read_table(layout, data)
    return read_parquet(layout, data) if layout.shards else read_folders(layout)


def read_rows(listing: Listing, config: Config, *, labelled: bool = True) -> Rows:
    """Read all columns of a listing. labelled: False: only one label, whose answer is missing for all pictures.

    Raises:
        InputError: a column of the configuration does not exist, a column of the task cannot be a label, files are missing (unless
            `config.skip_corrupt`), or a split is empty or cannot be balanced.
    """
    data = config.data
    for option in ("identity_column", "split_column"):
        if (column := getattr(data, option)) and column not in listing.columns:
            raise InputError(
                f"data.{option}: {listing.origin} has no column {column!r}: choose from "
                f"{', '.join(map(display_name, listing.columns))}"
            )
    if data.identity_column and data.identity_column == data.split_column:
        raise InputError(f"data.identity_column and data.split_column are both {data.split_column!r}: give two columns")
    unlabelled = Label("unlabelled", (), np.full(len(listing.names), store.MISSING, np.int8))
    labels, left_out = read_labels(listing, data) if labelled else ([unlabelled], {})
    anonymous = not data.identity_column
    identity = np.arange(len(listing.names), dtype=np.int64) if anonymous else identity_numbers(data.identity_column, listing)
    keys = hashed_numbers(listing.names) if anonymous else identity
    parts = row_parts(listing, column=data.split_column, drawn=data.split == "identity", identity=keys, anonymous=anonymous)
    ensure_files(listing, config)
    rows = {name: np.flatnonzero(parts == number) for number, name in enumerate(store.SPLITS)}
    rows = hold_out_final(rows, keys, fraction=data.final_fraction)
    rows = {name: members[listing.exists[members]] for name, members in rows.items()}
    for name in store.SPLITS:
        if len(rows[name]) == 0:
            what = f"{len(listing.names)} pictures" if anonymous else f"{len(np.unique(identity))} identities"
            raise InputError(f"{listing.origin}: the {name} split is empty, {what} are too few to draw it: add more")
    if data.balanced:
        [label] = [label for label in labels if label.name in data.labels]
        rows = balance.balance_rows(rows, label.numbers, label=label.name, data=data)
    return Rows(labels=labels, left_out=left_out, identity=identity, anonymous=anonymous, rows=rows)


def read_labels(listing: Listing, data: DataConfig) -> tuple[list[Label], dict[str, str]]:
    """All columns that can be labels, in the order of the table, and for the others the reason.

    Raises:
        InputError: a column of the task cannot be a label, or a setting names a column that does not exist.
    """
    names = [name for name in (*listing.columns, *listing.unusable) if name not in (data.identity_column, data.split_column)]
    if not names:
        raise InputError(f"{listing.origin} has no column of labels, nothing can be learnt: add one")
    columns_of(names, data.labels)
    bounds = bin_bounds(data.bins)
    named_in = {"bins": [*bounds], "missing": [v.rpartition("=")[0] for v in data.missing if "=" in v]}
    for option, given in named_in.items():
        if unknown := [name for name in given if name not in names]:
            raise InputError(
                f"data.{option}: {listing.origin} has no label {unknown[0]!r}: choose from {', '.join(map(display_name, names))}"
            )
    labels, left_out = [], {}
    for name in names:
        try:
            if name in listing.unusable:
                kind = listing.unusable[name]
                raise InputError(f"column {display_name(name)} holds {kind}, not labels: name the other columns with --data.labels")
            if name in RESERVED:
                raise InputError(
                    f"column {display_name(name)} has the name of a column of the store: use it with --data.identity-column, or "
                    "rename it"
                )
            missing, limits = missing_of(name, data.missing), bounds.get(name, ())
            labels.append(read_label(name, listing.columns[name], missing=missing, bounds=limits))
        except InputError as e:
            if name in data.labels or not data.labels:
                raise InputError(f"{listing.origin}: {e}") from e
            left_out[name] = str(e)
    return labels, left_out


def ensure_files(listing: Listing, config: Config) -> None:
    """Raises: InputError if files are missing, unless `config.skip_corrupt`."""
    absent = np.flatnonzero(~listing.exists)
    if len(absent) and not config.skip_corrupt:
        row = int(absent[0])
        raise InputError(
            f"{listing.origin}: {len(absent)} of the {len(listing.names)} pictures are missing, first "
            f"{display_name(listing.names[row])} ({listing.row_name(row)}): add them, or skip them with --skip-corrupt"
        )


def noted(results: Iterable[Decoded | str], remarks: Counter[str], data: DataConfig) -> Iterator[Decoded | str]:
    """The same results; adds to the remarks how large the pictures in the files are: `side_<largest power of two up to it>`."""
    for result in results:
        if not isinstance(result, str):
            remarks[f"{SIDE}{1 << (result.shorter_side.bit_length() - 1)}"] += 1
            remarks["enlarged"] += result.shorter_side * data.crop < data.image_size
        yield result


def report(listing: Listing, samples: Rows) -> None:
    """Log what a user should know about the pictures."""
    if samples.anonymous:
        logger.info(
            f"{listing.origin}: the identities are unknown: one person may be in several splits, and each picture is one identity"
        )
    for label in samples.labels:
        if (label.numbers == store.MISSING).all():
            continue
        if absent := int((label.numbers == store.MISSING).sum()):
            logger.info(f"label {display_name(label.name)} is missing for {absent} of {len(label.numbers)} pictures")
    for reason in samples.left_out.values():
        logger.info(f"not stored as a label: {reason}")

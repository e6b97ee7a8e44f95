"""Make a prepared store from a folder in the CelebA layout, as downloaded from the official site or from Kaggle.

    img_align_celeba/ or img_align_celeba.zip     pictures of any size (read directly from the zip), also in subfolders
    list_attr_celeba.txt ...                      the tables, see celeba_tables.py

They may be in the folder itself or in the subfolders of the download: `Img/`, `Anno/` and `Eval/`.

Pixels are read as they are stored: an EXIF orientation is not applied (official pictures have none) but reported; only the first
frame of an animation is read, which is also reported (decoding.py). Links to picture files are followed, because users may keep
their pictures in another folder; other files that are not regular are not opened. A zip is never unpacked to disk.
"""

import contextlib
import hashlib
import json
import logging
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from cpgan_ray.config import Config
from cpgan_ray.data import balance, store
from cpgan_ray.data.datasets.celeba_pictures import PICTURES, Pictures, find_pictures, match
from cpgan_ray.data.datasets.celeba_rows import display_name, read
from cpgan_ray.data.datasets.celeba_tables import (
    ATTRIBUTES,
    IDENTITIES,
    PARTITION,
    Annotations,
    candidate_paths,
    columns_of,
    find_tables,
    read_annotations,
    table_names,
)
from cpgan_ray.data.datasets.face_region import face_region
from cpgan_ray.data.decoder_pool import PictureFile, collect, decoder_pool
from cpgan_ray.data.decoding import format_remarks, read_member
from cpgan_ray.data.drawn_splits import drawn_parts
from cpgan_ray.data.final import hold_out_final
from cpgan_ray.data.sync.node import Draft
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)


def draft(source: Path, config: Config, *, processes: int | None = None, progress: bool = True) -> Draft:
    """A draft of the store of the data set in `source`.

    processes: number of decoding processes; by default one per core if there are many pictures.

    Raises:
        InputError: a file is missing. Building the store raises it if a file is malformed or contradicts another; a picture is
            missing or cannot be decoded (unless `config.skip_corrupt`); a label is unknown; a person is in two splits; a split is
            empty or cannot be balanced.
    """
    if not source.is_dir():
        raise InputError(
            f"data folder {source} does not exist or is not a folder: give a folder in the CelebA layout with --data-dir"
        )
    pictures = find_pictures(source)
    files = find_tables(source, config.data)
    digest = digest_of(pictures, files, settings=settings(config))

    def build(folder: Path) -> None:
        annotations = read_annotations(files, labels=config.data.labels)
        origin = {"path": str(source.absolute()), **settings(config)}
        stored = match(pictures, annotations.names)
        remarks: Counter[str] = Counter()
        with _decoder(pictures, stored, config, remarks=remarks, processes=processes) as fetch:
            plan = _plan(
                pictures,
                stored,
                annotations,
                fetch=fetch,
                source=origin,
                digest=digest,
                config=config,
                remarks=remarks,
                listed_in=files[ATTRIBUTES].name,
            )
            if plan.info.anonymous:
                logger.info(f"{source} has no {IDENTITIES}: one person may be in several splits, and each picture is one identity")
            store.build(folder, plan, progress=progress, describe=format_remarks)

    return Draft(digest, build)


def _plan(
    pictures: Pictures,
    stored: Sequence[str | None],
    annotations: Annotations,
    *,
    fetch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    source: dict[str, object],
    digest: str,
    config: Config,
    remarks: Counter[str],
    listed_in: str,
) -> store.Plan:
    names = annotations.names
    exists = np.array([path is not None for path in stored])
    missing = tuple(names[i] for i in np.flatnonzero(~exists))
    if missing and not config.skip_corrupt:
        raise InputError(
            f"{pictures.path}: {len(missing)} of the {len(names)} pictures of {listed_in} are missing or not files, "
            f"first {display_name(missing[0])}: add them, or skip them with --skip-corrupt"
        )
    rows = hold_out_final(
        split_rows(annotations, mode=config.data.split), annotations.identity, fraction=config.data.final_fraction
    )
    rows = {name: members[exists[members]] for name, members in rows.items()}
    for name in store.SPLITS:
        if len(rows[name]) == 0:
            official = config.data.split == "official" and not annotations.anonymous
            remedy = "try --data.split identity" if official else "more people are needed"
            raise InputError(f"{source['path']}: the {name} split is empty (--data.split {config.data.split}): {remedy}")
    if config.data.balanced:
        [column] = columns_of(annotations.label_names, config.data.labels)
        label, values = annotations.label_names[column], annotations.labels[:, column]
        rows = balance.balance_rows(rows, values, label=label, data=config.data)
    taken = np.concatenate(list(rows.values()))
    if renamed := sum(PurePosixPath(stored[i] or "").name != PurePosixPath(names[i]).name for i in taken.tolist()):
        remarks["other_name"] = renamed
    return store.Plan(
        digest=digest,
        source=source,
        names=names,
        label_names=annotations.label_names,
        labels=annotations.labels,
        identity=annotations.identity,
        image_shape=(*config.data.size, 3),
        rows=rows,
        fetch=fetch,
        missing=missing,
        info=store.DatasetInfo(face=face_region(config.data.crop, config.data.size), anonymous=annotations.anonymous),
        remarks=remarks,
    )


# Files


def settings(config: Config) -> dict[str, object]:
    """What the store depends on in addition to the files."""
    keys = ("dataset", "image_size", "crop", "split", "final_fraction")
    data_settings = {key: getattr(config.data, key) for key in keys}
    if config.data.image_width:
        data_settings["image_width"] = config.data.image_width
    return {**data_settings, "skip_corrupt": config.skip_corrupt, **balance.settings(config.data)}


def required_files(names: Sequence[str], config: Config) -> list[str]:
    """The files that are read, from the names (with slashes) of all files in a folder and its subfolders."""
    tables = {path for name in table_names(config.data) for path in candidate_paths(name)}
    folders = [f"{PICTURES}/", f"Img/{PICTURES}/"]
    pictures = next((folder for folder in folders if any(name.startswith(folder) for name in names)), None)
    zips = [name for name in (f"{PICTURES}.zip", f"Img/{PICTURES}.zip") if pictures is None and name in names][:1]
    return [name for name in names if name in tables or name in zips or (pictures and name.startswith(pictures))]


def digest_of(pictures: Pictures, files: dict[str, Path], *, settings: dict[str, object]) -> str:
    """A hash (16 hexadecimal digits) of everything that determines the store: settings, annotations, paths and sizes of
    pictures."""
    total = hashlib.sha256(json.dumps([store.FORMAT, settings]).encode())
    for name, path in files.items():
        total.update(f"\n{name} {path.suffix} {hashlib.sha256(read(path)).hexdigest()}\n".encode())
    kind = "sizes" if pictures.members is None else "checksums"
    total.update(
        "\n".join([kind, *(f"{name} {stamp}" for name, stamp in sorted(pictures.stamps.items()))]).encode(
            "utf-8", "surrogateescape"
        )
    )
    return total.hexdigest()[:16]


def split_rows(annotations: Annotations, *, mode: str) -> dict[str, np.ndarray]:
    """Row numbers of each split, in the order of the attribute file.

    mode: `official` uses the partition file; `identity` uses crc32 of the person's number modulo 10 (8 is val, 9 is test).

    Raises:
        InputError: a person is in two splits.
    """
    identity = annotations.identity
    if annotations.partition is not None and mode == "official":
        part = annotations.partition
        people, person = np.unique(identity, return_inverse=True)
        in_split = np.zeros((len(people), 3), bool)
        in_split[person, part] = True
        if len(repeated := np.flatnonzero(in_split.sum(axis=1) > 1)):
            splits = " and ".join(name for name, present in zip(store.SPLITS, in_split[repeated[0]], strict=True) if present)
            raise InputError(
                f"{PARTITION} puts {len(repeated)} people into more than one split, identity {people[repeated[0]]} into {splits}: "
                "split by person with --data.split identity"
            )
    else:
        part = drawn_parts(identity)
    return {name: np.flatnonzero(part == number) for number, name in enumerate(store.SPLITS)}


# Pictures


@contextlib.contextmanager
def _decoder(
    pictures: Pictures, stored: Sequence[str | None], config: Config, *, remarks: Counter[str], processes: int | None
) -> Iterator[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]:
    """Yields `store.Plan.fetch` for these pictures; it also adds to `remarks`."""
    with contextlib.ExitStack() as stack:
        decode = stack.enter_context(decoder_pool(num_pictures=len(stored), config=config, processes=processes))
        archive = stack.enter_context(zipfile.ZipFile(pictures.path)) if pictures.members is not None else None

        def file(name: str) -> PictureFile:
            if archive is None or pictures.members is None:
                return pictures.path / name
            try:
                return read_member(archive, pictures.members[name])
            except Exception as e:  # a wrong checksum, a truncated stream, encryption
                return f"{e}"

        def fetch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            names = [stored[int(row)] or "" for row in rows]
            return collect(
                decode(map(file, names)),
                num_pictures=len(names),
                config=config,
                describe=lambda i: str(pictures.path / names[i]),
                remarks=remarks,
            )

        yield fetch

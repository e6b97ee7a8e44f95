"""The CelebA layout, official or Kaggle's, as it is downloaded, made into a prepared store.

    img_align_celeba/ or img_align_celeba.zip     pictures of any size (read straight out of the zip), in subfolders too
    list_attr_celeba.txt ...                      the tables, see annotations.py

They may lie in the folder itself or in the download's `Img/`, `Anno/` and `Eval/`.

Of a picture the pixels are read as they are stored: an EXIF orientation is not applied (official pictures have none), which is
reported, and so is an animation, of which the first frame counts (decoding.py). A picture that is a link to a file is followed, as
many keep their pictures elsewhere; what is no regular file is not opened. Of a zip nothing is written to disk.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from cpgan_ray.config import Config
from cpgan_ray.data import balance, store
from cpgan_ray.data.datasets.celeba_pictures import PICTURES, Pictures, find_pictures, match
from cpgan_ray.data.datasets.celeba_tables import (
    ATTRIBUTES,
    IDENTITIES,
    PARTITION,
    Annotations,
    columns_of,
    find_tables,
    named,
    places,
    read,
    read_annotations,
    table_names,
)
from cpgan_ray.data.decoding import Decoded, decode_block, read_member, sentences
from cpgan_ray.data.sync.node import Draft
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

POOL_FROM = 2000
"""From so many pictures on, decoding in several processes saves more than starting them costs."""
PER_TASK = 32
"""Pictures decoded per message to a process, ..."""
TASK_BYTES = 64 << 20
"""... fewer where their files in the zip are large."""


def draft(source: Path, config: Config, *, processes: int | None = None, progress: bool = True) -> Draft:
    """The store of the data set in `source`, not made yet.

    Pictures are decoded by `processes` processes; none given: one per core if there are many pictures.

    Raises:
        InputError: a file is missing; then, as the store is built: a file is malformed or contradicts another; a picture is missing
            or cannot be decoded (unless `config.skip_corrupt`); a label is unknown; people are in two splits; a split is empty, or
            cannot be balanced.
    """
    if not source.is_dir():
        raise InputError(f"data folder {source} does not exist or is no folder: give one in the CelebA layout with --data-dir")
    pictures = find_pictures(source)
    files = find_tables(source, config.data)
    digest = digest_of(pictures, files, settings=settings(config))

    def build(folder: Path) -> None:
        annotations = read_annotations(files, labels=config.data.labels)
        made_of = {"path": str(source.absolute()), **settings(config)}
        stored = match(pictures, annotations.names)
        remarks: Counter[str] = Counter()
        with _decoder(pictures, stored, config, remarks=remarks, processes=processes) as fetch:
            told = {"fetch": fetch, "source": made_of, "digest": digest, "remarks": remarks, "listed_in": files[ATTRIBUTES].name}
            plan = _plan(pictures, stored, annotations, config=config, **told)
            if plan.info.anonymous:
                logger.info(f"{source} has no {IDENTITIES}: one person may be in several splits, and each picture counts by itself")
            store.build(folder, plan, progress=progress, describe=sentences)

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
    there = np.array([path is not None for path in stored])
    missing = tuple(names[i] for i in np.flatnonzero(~there))
    if missing and not config.skip_corrupt:
        raise InputError(
            f"{pictures.path}: {len(missing)} of the {len(names)} pictures of {listed_in} are missing or no files, "
            f"first {named(missing[0])}: add them, or leave them out with --skip-corrupt"
        )
    rows = {name: members[there[members]] for name, members in split_rows(annotations, mode=config.data.split).items()}
    for name, members in rows.items():
        if len(members) == 0:
            official = config.data.split == "official" and not annotations.anonymous
            remedy = "try --data.split identity" if official else "more people are needed"
            raise InputError(f"{source['path']}: the {name} split is empty (--data.split {config.data.split}): {remedy}")
    if config.data.balanced:
        [column] = columns_of(annotations.label_names, config.data.labels)
        label, values = annotations.label_names[column], annotations.labels[:, column]
        rows = balance.balanced(rows, values, label=label, data=config.data)
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
        image_shape=(config.data.image_size, config.data.image_size, 3),
        rows=rows,
        fetch=fetch,
        missing=missing,
        info=store.DatasetInfo(anonymous=annotations.anonymous),
        remarks=remarks,
    )


# Files


def settings(config: Config) -> dict[str, object]:
    """What the store depends on beside the files."""
    keys = ("dataset", "image_size", "crop", "split")
    made_of = {key: getattr(config.data, key) for key in keys}
    return {**made_of, "skip_corrupt": config.skip_corrupt, **balance.settings(config.data)}


def needed(names: Sequence[str], config: Config) -> list[str]:
    """Which of the files below a folder, by their names with slashes, are read."""
    texts = {place for name in table_names(config.data) for place in places(name)}
    folders = [f"{PICTURES}/", f"Img/{PICTURES}/"]
    pictures = next((folder for folder in folders if any(name.startswith(folder) for name in names)), None)
    zips = [name for name in (f"{PICTURES}.zip", f"Img/{PICTURES}.zip") if pictures is None and name in names][:1]
    return [name for name in names if name in texts or name in zips or (pictures and name.startswith(pictures))]


def digest_of(pictures: Pictures, files: dict[str, Path], *, settings: dict[str, object]) -> str:
    """16 hexadecimal digits that change whenever the store would: settings, annotations, paths and sizes of the pictures."""
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

    `official`: the partition file. `identity`: by crc32 of the person's number, modulo 10: 8 is val, 9 is test.

    Raises:
        InputError: a person is in two splits.
    """
    identity = annotations.identity
    if annotations.partition is not None and mode == "official":
        part = annotations.partition
        people, where = np.unique(identity, return_inverse=True)
        found_in = np.zeros((len(people), 3), bool)
        found_in[where, part] = True
        if len(torn := np.flatnonzero(found_in.sum(axis=1) > 1)):
            splits = " and ".join(name for name, found in zip(store.SPLITS, found_in[torn[0]], strict=True) if found)
            raise InputError(
                f"{PARTITION} puts {len(torn)} people into more than one split, identity {people[torn[0]]} into {splits}: "
                "split by person with --data.split identity"
            )
    else:
        bucket = np.array([zlib.crc32(str(i).encode()) % 10 for i in identity.tolist()], np.int64)
        part = np.where(bucket == 8, 1, np.where(bucket == 9, 2, 0))
    return {name: np.flatnonzero(part == number) for number, name in enumerate(store.SPLITS)}


# Pictures


@contextlib.contextmanager
def _decoder(
    pictures: Pictures, stored: Sequence[str | None], config: Config, *, remarks: Counter[str], processes: int | None
) -> Iterator[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]:
    """What `store.Plan.fetch` is for these pictures; it counts what is to be reported. By processes: threads were
    measured to gain nothing on small pictures."""
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if len(stored) >= POOL_FROM else 1
    work = functools.partial(decode_block, image_size=config.data.image_size, crop=config.data.crop)
    shape = (config.data.image_size, config.data.image_size, 3)
    with contextlib.ExitStack() as stack:
        run = map
        if processes > 1:
            context = multiprocessing.get_context("spawn")  # a fork would copy the locks of Ray's and torch's threads
            run = stack.enter_context(ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_with_parent)).map
        archive = stack.enter_context(zipfile.ZipFile(pictures.path)) if pictures.members is not None else None

        def file(name: str) -> Path | bytes | str:
            if archive is None or pictures.members is None:
                return pictures.path / name
            try:
                return read_member(archive, pictures.members[name])
            except Exception as e:  # a bad checksum, a torn stream, encryption
                return f"{e}"

        def tasks(rows: np.ndarray) -> Iterator[list[str]]:
            """The pictures by name, as many together as a task has."""
            task: list[str] = []
            room = TASK_BYTES
            for name in [stored[int(row)] or "" for row in rows]:
                size = pictures.members[name].file_size if pictures.members is not None else 0
                if task and (len(task) == PER_TASK or size > room):
                    yield task
                    task, room = [], TASK_BYTES
                task.append(name)
                room -= size
            yield task

        def decode_all(rows: np.ndarray) -> Iterator[Decoded | str]:
            """A few tasks at a time, for the files that wait for a process are in memory."""
            waiting = tasks(rows)
            while some := list(itertools.islice(waiting, 4 * processes)):
                for task in run(work, ([file(name) for name in task] for task in some)):
                    yield from task

        def fetch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            out, kept = np.empty((len(rows), *shape), np.uint8), np.zeros(len(rows), bool)
            for i, one in enumerate(decode_all(rows)):
                if not isinstance(one, str):
                    out[i], kept[i] = one.pixels, True
                    remarks.update(one.remarks)
                elif not config.skip_corrupt:
                    path = pictures.path / (stored[int(rows[i])] or "")
                    raise InputError(f"{path} cannot be decoded ({one}): mend it, or leave such pictures out with --skip-corrupt")
            return out, kept

        yield fetch


def _leave_with_parent() -> None:
    """Run in each decoding process: Ctrl-C is the parent's to handle, and none outlives a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

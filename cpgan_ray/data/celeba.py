"""The official CelebA layout, as it is downloaded, made into a prepared store.

    img_align_celeba/ or img_align_celeba.zip     pictures of any size (read straight out of the zip)
    list_attr_celeba.txt                          number of pictures; names of the attributes; per picture: name, 1 or -1 each
    identity_CelebA.txt                           per picture: name, number of the person
    list_eval_partition.txt                       per picture: name, 0 train, 1 val or 2 test

They may lie in the folder itself or in the download's `Img/`, `Anno/` and `Eval/`.

Of a picture the pixels are read as they are stored: an EXIF orientation is not applied (official pictures have none), an alpha
channel is left out, of an animation the first frame counts. A picture that is a link to a file is followed, for many keep their
pictures elsewhere; what is no regular file is not opened. Of a zip nothing is written to disk.
"""

import contextlib
import difflib
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import balance, store
from cpgan_ray.data.node import Draft
from cpgan_ray.errors import InputError

PICTURES, ATTRIBUTES = "img_align_celeba", "list_attr_celeba.txt"
IDENTITIES, PARTITION = "identity_CelebA.txt", "list_eval_partition.txt"
SPELLINGS = {"1": 1, "-1": 0, "0": 0}
"""How an attribute's value may be written."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What Pillow may take a file for; some of its other decoders start programs."""
MAX_FILE_BYTES = 64 << 20
"""No picture file is read that is larger."""
MAX_PIXELS = 1 << 26
"""No picture is decoded that has more: 200 MB as RGB."""
MAX_SCANS = 100
"""No JPEG is decoded that has more. Some ten are usual; each costs as much time as the whole picture, and few bytes."""
POOL_FROM = 2000
"""From so many pictures on, decoding in several processes saves more than starting them costs."""
PER_TASK = 32
"""Pictures decoded per message to a process, ..."""
TASK_BYTES = 64 << 20
"""... fewer where their files in the zip are large."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The picture files of a data set."""

    path: Path
    stamps: dict[str, int]
    """Name to size in bytes (folder) or CRC (zip): what the digest knows of a picture."""
    members: dict[str, zipfile.ZipInfo] | None = None
    """Name to member, for a zip."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """What the text files say, in the order of the attribute file."""

    names: list[str]
    label_names: tuple[str, ...]
    labels: np.ndarray
    """(N, L) int8, 0 or 1."""
    identity: np.ndarray
    """(N,) int64."""
    partition: np.ndarray | None
    """(N,) int64: 0 train, 1 val, 2 test; None where the split does not need it."""


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
    files = {name: find_file(source, name) for name in annotation_files(config.data)}
    digest = digest_of(pictures, files, settings=settings(config))

    def build(folder: Path) -> None:
        annotations = read_annotations(files, labels=config.data.labels)
        made_of = {"path": str(source.absolute()), **settings(config)}
        with _decoder(pictures, annotations.names, config, processes=processes) as fetch:
            plan = _plan(pictures, annotations, fetch=fetch, source=made_of, digest=digest, config=config)
            store.build(folder, plan, progress=progress)

    return Draft(digest, build)


def _plan(
    pictures: Pictures,
    annotations: Annotations,
    *,
    fetch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    source: dict[str, object],
    digest: str,
    config: Config,
) -> store.Plan:
    names = annotations.names
    there = np.array([name in pictures.stamps for name in names])
    missing = tuple(names[i] for i in np.flatnonzero(~there))
    if missing and not config.skip_corrupt:
        raise InputError(
            f"{pictures.path}: {len(missing)} of the {len(names)} pictures of {ATTRIBUTES} are missing or no files, first "
            f"{_named(missing[0])}: add them, or leave them out with --skip-corrupt"
        )
    rows = {name: members[there[members]] for name, members in split_rows(annotations, mode=config.data.split).items()}
    for name, members in rows.items():
        if len(members) == 0:
            remedy = "try --data.split identity" if config.data.split == "official" else "more people are needed"
            raise InputError(f"{source['path']}: the {name} split is empty (--data.split {config.data.split}): {remedy}")
    if config.data.balanced:
        [column] = columns_of(annotations.label_names, config.data.labels)
        label, values = annotations.label_names[column], annotations.labels[:, column]
        rows = balance.balanced(rows, values, label=label, data=config.data)
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
    )


# Files


def annotation_files(data: DataConfig) -> tuple[str, ...]:
    """The text files that are read."""
    return (ATTRIBUTES, IDENTITIES, PARTITION) if data.split == "official" else (ATTRIBUTES, IDENTITIES)


def find_file(source: Path, name: str) -> Path:
    """An annotation file, in the folder itself or in one of the download's."""
    for path in (source / name, source / "Anno" / name, source / "Eval" / name):
        if path.is_file():
            return path
    need = "; it is not needed with --data.split identity" if name == PARTITION else ""
    raise InputError(f"{source / name} is missing (nor is it in Anno/ or Eval/): it is part of the official CelebA download{need}")


def find_pictures(source: Path) -> Pictures:
    """The folder of pictures, or the zip."""
    nested = Path(PICTURES, PICTURES)  # where an unzip program makes a folder of its own
    for path in (source / nested, source / PICTURES, source / "Img" / PICTURES):
        if path.is_dir():
            try:
                with os.scandir(path) as entries:
                    sizes = {e.name: _size(e) for e in entries}
                return Pictures(path=path, stamps={name: size for name, size in sizes.items() if size is not None})
            except OSError as e:
                raise InputError(f"{path} cannot be read ({e.strerror}): mend the folder or its permissions") from e
    for path in (source / f"{PICTURES}.zip", source / "Img" / f"{PICTURES}.zip"):
        if path.is_file():
            return _zipped(path)
    raise InputError(f"{source} holds neither {PICTURES}/ nor {PICTURES}.zip (nor does Img/): put the pictures there")


def _size(entry: os.DirEntry[str]) -> int | None:
    """None where it is no regular file, nor a link to one: opening it might never end."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:  # a link to itself
        return None


def _zipped(path: Path) -> Pictures:
    members: dict[str, zipfile.ZipInfo] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as e:  # zipfile raises whatever the damaged part leads to
        raise InputError(f"{path} is not a whole zip file ({' '.join(str(e).split())}): download it again") from e
    for entry in entries:
        member = PurePosixPath(entry.filename)
        if entry.is_dir() or str(member.parent) not in (".", PICTURES):
            continue
        if member.name in members:
            raise InputError(f"{path} holds two pictures named {_named(member.name)}: keep one")
        members[member.name] = entry
    return Pictures(path=path, stamps={name: entry.CRC for name, entry in members.items()}, members=members)


def settings(config: Config) -> dict[str, object]:
    """What the store depends on beside the files."""
    keys = ("dataset", "image_size", "crop", "split")
    made_of = {key: getattr(config.data, key) for key in keys}
    return {**made_of, "skip_corrupt": config.skip_corrupt, **balance.settings(config.data)}


def needed(names: Sequence[str], config: Config) -> list[str]:
    """Which of the files below a folder, by their names with slashes, are read."""
    texts = [place + name for name in annotation_files(config.data) for place in ("", "Anno/", "Eval/")]
    folders = [f"{PICTURES}/{PICTURES}/", f"{PICTURES}/", f"Img/{PICTURES}/"]
    pictures = next((folder for folder in folders if any(name.startswith(folder) for name in names)), None)
    zips = [name for name in (f"{PICTURES}.zip", f"Img/{PICTURES}.zip") if pictures is None and name in names][:1]
    return [name for name in names if name in texts or name in zips or (pictures and name.startswith(pictures))]


def digest_of(pictures: Pictures, files: dict[str, Path], *, settings: dict[str, object]) -> str:
    """16 hexadecimal digits that change whenever the store would: settings, annotations, names and sizes of the pictures."""
    total = hashlib.sha256(json.dumps([store.FORMAT, settings]).encode())
    for name, path in files.items():
        total.update(f"\n{name} {hashlib.sha256(_read(path)).hexdigest()}\n".encode())
    kind = "sizes" if pictures.members is None else "checksums"
    total.update(
        "\n".join([kind, *(f"{name} {stamp}" for name, stamp in sorted(pictures.stamps.items()))]).encode("utf-8", "replace")
    )
    return total.hexdigest()[:16]


# Annotations


def read_annotations(files: dict[str, Path], *, labels: Sequence[str] = ()) -> Annotations:
    """Read and check the text files; `labels` are checked against the attributes before the rows are read.

    Raises:
        InputError: names the file, and where one line is at fault its number and what was expected there.
    """
    path = files[ATTRIBUTES]
    lines = _lines(path)
    count, header = (lines[i].split() if i < len(lines) else [] for i in range(2))
    if len(count) != 1 or not _is_number(count[0]):
        raise InputError(f"{path}, line 1: expected the number of pictures, got {_short(' '.join(count))}")
    if not header or len(set(header)) < len(header) or {"image", "identity"} & set(header):
        raise InputError(f"{path}, line 2: expected the names of the attributes, each once, got {_short(' '.join(header))}")
    columns_of(header, labels)
    names: list[str] = []
    values = bytearray()
    for number, line in enumerate(lines[2:], 3):
        fields = line.split()
        if len(fields) != len(header) + 1:
            raise InputError(f"{path}, line {number}: expected a name and {len(header)} values, got {_short(line)}")
        try:
            values.extend(map(SPELLINGS.__getitem__, fields[1:]))
        except KeyError as e:
            attribute = header[next(i for i, v in enumerate(fields[1:]) if v not in SPELLINGS)]
            raise InputError(f"{path}, line {number}: expected 1 or -1 for {attribute}, got {_short(e.args[0])}") from e
        names.append(fields[0])
    if int(count[0]) != len(names):
        raise InputError(f"{path}: line 1 promises {count[0]} pictures, {len(names)} lines follow: the file is cut or was edited")
    _check_unique(path, names, first_line=3)
    return Annotations(
        names=names,
        label_names=tuple(header),
        labels=np.frombuffer(bytes(values), np.int8).reshape(len(names), len(header)),
        identity=_numbers(files[IDENTITIES], names, expected="the number of a person"),
        partition=_numbers(files[PARTITION], names, expected="0, 1 or 2", below=3) if PARTITION in files else None,
    )


def _numbers(path: Path, names: list[str], *, expected: str, below: int = 2**63) -> np.ndarray:
    """The number that a two-column file has for each of `names`: (N,) int64."""
    found: list[str] = []
    numbers: list[int] = []
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if len(fields) != 2 or not _is_number(fields[1]) or int(fields[1]) >= below:
            raise InputError(f"{path}, line {number}: expected a name and {expected}, got {_short(line)}")
        found.append(fields[0])
        numbers.append(int(fields[1]))
    if found == names:
        return np.array(numbers, np.int64)
    _check_unique(path, found, first_line=1)
    number_of = dict(zip(found, numbers, strict=True))
    if absent := [name for name in names if name not in number_of]:
        raise InputError(
            f"{path}: {len(absent)} pictures of {ATTRIBUTES} are not in it, the first is {_named(absent[0])}: use matching files"
        )
    if extra := number_of.keys() - set(names):
        one = _named(min(extra))
        raise InputError(f"{path}: {len(extra)} pictures are not in {ATTRIBUTES}, one is {one}: use matching files")
    return np.array([number_of[name] for name in names], np.int64)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}): mend the file or its permissions") from e


def _lines(path: Path) -> list[str]:
    try:
        return _read(path).decode("utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not UTF-8 text (byte {e.start} is 0x{e.object[e.start]:02x}): download it again") from e


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _named(name: str) -> str:
    return name if name.isprintable() and len(name) <= 60 else _short(name)


def _check_unique(path: Path, names: list[str], *, first_line: int) -> None:
    if len(set(names)) == len(names):
        return
    line_of: dict[str, int] = {}
    for line, name in enumerate(names, first_line):
        if line_of.setdefault(name, line) != line:
            raise InputError(
                f"{path}, line {line}: {_named(name)} is listed twice, before in line {line_of[name]} "
                f"({len(names) - len(set(names))} such lines): keep one line each"
            )


def columns_of(label_names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Column numbers of `labels`, all columns where none are given: int64 (L,)

    Raises:
        InputError: a label does not exist (says which come near) or is given twice.
    """
    for i, label in enumerate(labels):
        if label not in label_names:
            near = difflib.get_close_matches(label, label_names, n=1, cutoff=0.5)
            hint = f": did you mean {near[0]}?" if near else ":"
            raise InputError(f"data.labels: there is no attribute {label!r}{hint} Choose from {', '.join(label_names)}")
        if label in labels[:i]:
            raise InputError(f"data.labels: {label!r} is given twice: give it once")
    return np.array([list(label_names).index(label) for label in labels or label_names], np.int64)


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


def decode(blob: bytes, *, image_size: int, crop: float) -> np.ndarray:
    """The centred square of a picture, `crop` times its shorter side, resized: uint8 (image_size, image_size, 3).

    Raises whatever Pillow raises on bytes that are no whole picture; ValueError where there are too many pixels.
    """
    try:
        opened = Image.open(io.BytesIO(blob), formats=FORMATS)
    except UnidentifiedImageError as e:
        raise ValueError(f"it is no {', '.join(FORMATS)} file") from e
    with opened as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels are more than the limit of {MAX_PIXELS}")
        if picture.format == "JPEG" and (scans := blob.count(b"\xff\xda")) > MAX_SCANS:
            raise ValueError(f"it has {scans} scans, the limit is {MAX_SCANS}")
        # Lets the JPEG decoder halve large pictures as it goes; twice the final resolution is left to the filter.
        scale = 2 * image_size / (crop * min(picture.size))
        picture.draft("RGB", (int(picture.width * scale) + 1, int(picture.height * scale) + 1))
        side = crop * min(picture.size)
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        square = (left, top, left + side, top + side)
        if picture.mode.startswith("I;16"):  # which Pillow would clip at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        return np.asarray(picture.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC, box=square))


def decode_block(files: Sequence[Path | bytes | str], *, image_size: int, crop: float) -> list[np.ndarray | str]:
    """Several pictures, from their path or bytes (a string is a reason why there are none); the reason for each that fails."""
    decoded: list[np.ndarray | str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about odd metadata
        for file in files:
            try:
                if isinstance(file, str):
                    raise ValueError(file)
                if isinstance(file, Path) and file.stat().st_size > MAX_FILE_BYTES:
                    raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes")
                blob = file.read_bytes() if isinstance(file, Path) else file
                decoded.append(decode(blob, image_size=image_size, crop=crop))
            except Exception as e:  # Pillow's decoders raise nearly every kind
                decoded.append(" ".join(f"{e}".split()) or type(e).__name__)
    return decoded


@contextlib.contextmanager
def _decoder(
    pictures: Pictures, names: Sequence[str], config: Config, *, processes: int | None
) -> Iterator[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]:
    """What `store.Plan.fetch` is for these pictures. By processes: threads were measured to gain nothing on small pictures."""
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if len(names) >= POOL_FROM else 1
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
            for name in [names[int(row)] for row in rows]:
                size = pictures.members[name].file_size if pictures.members is not None else 0
                if task and (len(task) == PER_TASK or size > room):
                    yield task
                    task, room = [], TASK_BYTES
                task.append(name)
                room -= size
            yield task

        def decode_all(rows: np.ndarray) -> Iterator[np.ndarray | str]:
            """A few tasks at a time, for the files that wait for a process are in memory."""
            waiting = tasks(rows)
            while some := list(itertools.islice(waiting, 4 * processes)):
                for task in run(work, ([file(name) for name in task] for task in some)):
                    yield from task

        def fetch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            out, kept = np.empty((len(rows), *shape), np.uint8), np.zeros(len(rows), bool)
            for i, one in enumerate(decode_all(rows)):
                if not isinstance(one, str):
                    out[i], kept[i] = one, True
                elif not config.skip_corrupt:
                    path = pictures.path / names[int(rows[i])]
                    raise InputError(f"{path} cannot be decoded ({one}): mend it, or leave such pictures out with --skip-corrupt")
            return out, kept

        yield fetch


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A file of a zip; never more of it than the zip declares, whatever it would inflate to.

    Raises ValueError where that is too much or the compression has no such bound; what zipfile raises on a damaged file.
    """
    if member.file_size > MAX_FILE_BYTES:
        raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is compressed by another method than deflate")
    with archive.open(member) as file:
        return file.read(member.file_size)


def _leave_with_parent() -> None:
    """Run in each decoding process: Ctrl-C is the parent's to handle, and none outlives a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

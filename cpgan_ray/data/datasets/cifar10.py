"""Read CIFAR-10 as it is downloaded: 60,000 colour pictures of ten kinds of object, 32 x 32.

    cifar-10-batches-py/     data_batch_1 ... data_batch_5, test_batch             Python pickles
    cifar-10-batches-bin/    data_batch_1.bin ... data_batch_5.bin, test_batch.bin records of a label and 3,072 values
    cifar-10-python.tar.gz   cifar-10-binary.tar.gz                                the same, read without unpacking

The first of these that exists is read; the data folder may also be one of these two folders. Validation: the last 5,000 pictures of
the training files.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cpgan_ray.data.formats.pickles import Array, unpickle
from cpgan_ray.data.samples import Samples, max_unpacked_bytes, read_bytes, unreadable_error, validate_samples
from cpgan_ray.errors import InputError

PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
ARCHIVES = {"cifar-10-python.tar.gz": PYTHON, "cifar-10-binary.tar.gz": BINARY}
TRAINING = tuple(f"data_batch_{i}" for i in range(1, 6))
FILES = {PYTHON: (*TRAINING, "test_batch"), BINARY: tuple(f"{name}.bin" for name in (*TRAINING, "test_batch"))}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_VALIDATION = 5000
"""At most a tenth of the training files."""
VALUES = 3 * 32 * 32
MAX_FILE_BYTES = 64 << 20
"""A batch has 30 MB, or 45 MB if Python 3 wrote it."""
MAX_ARCHIVE_BYTES = 512 << 20
"""Maximum size of an unpacked archive; the official archives have 186 MB."""


def files(source: Path) -> list[Path]:
    """The six batches, or the archive.

    Raises:
        InputError: a file is missing; names the first one.
    """
    if not source.is_dir():
        raise InputError(
            f"data folder {source} does not exist or is not a folder: give the folder that holds {PYTHON}/ with --data-dir"
        )
    for kind, names in FILES.items():
        for folder in (source / kind, source):
            paths = [folder / name for name in names]
            if paths[0].is_file() or (folder != source and folder.is_dir()):
                if missing := [path for path in paths if not path.is_file()]:
                    archive = next(name for name, holds in ARCHIVES.items() if holds == kind)
                    raise InputError(f"{missing[0]} is missing: unpack {archive} again")
                return paths
    for archive in ARCHIVES:
        if (source / archive).is_file():
            return [source / archive]
    raise InputError(
        f"{source} holds neither {PYTHON}/ nor {BINARY}/ nor their archives {' and '.join(ARCHIVES)}:"
        " download one from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def read(source: Path) -> Samples:
    """All pictures, (N, 32, 32, 3), the training batches first. No code in a pickle is executed (see `unpickle`).

    Raises:
        InputError: a file is missing or is not a batch of pictures; the training batches differ in length.
    """
    paths = files(source)
    batches = [read_batch(blob, name) for name, blob in (_read_archive(paths[0]) if len(paths) == 1 else _read_batch_files(paths))]
    counts = [len(labels) for _, labels in batches]
    if len(set(counts[:-1])) > 1:
        raise InputError(
            f"{paths[0].parent}: the training batches have different numbers of rows, {counts[:-1]}: download them again"
        )
    num_train, num_rows = sum(counts[:-1]), sum(counts)
    values = np.empty((num_rows, 32, 32, 3), np.uint8)
    for end, (planes, labels) in zip(np.cumsum(counts), batches, strict=True):
        values[end - len(labels) : end] = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    start = num_train - min(NUM_VALIDATION, num_train // 10)
    samples = Samples(
        values=values,
        labels=np.concatenate([labels for _, labels in batches]).astype(np.int8),
        label_name="object",
        classes=CLASSES,
        identity=np.arange(num_rows),
        rows={"train": np.arange(start), "val": np.arange(start, num_train), "test": np.arange(num_train, num_rows)},
    )
    return validate_samples(samples, source)


def _read_batch_files(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        yield str(path), read_bytes(path, limit=MAX_FILE_BYTES)


def _read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """The six batches of an archive, which is unpacked only in memory and within limits."""
    try:
        limit = min(MAX_ARCHIVE_BYTES, max_unpacked_bytes(path.stat().st_size))
        with gzip.open(path) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise InputError(f"{path} unpacks to more than {limit} bytes: download it again")
        kind = ARCHIVES[path.name]
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = {member.name: member for member in archive if member.isreg()}
            for name in FILES[kind]:
                member = members.get(f"{kind}/{name}")
                member_file = archive.extractfile(member) if member and member.size <= MAX_FILE_BYTES else None
                if member_file is None:
                    raise InputError(f"{path} holds no {kind}/{name} of at most {MAX_FILE_BYTES} bytes: download it again")
                yield f"{path}/{kind}/{name}", member_file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as e:
        raise InputError(f"{path} is not a complete archive ({e}): download it again") from e
    except OSError as e:
        raise unreadable_error(path, e) from e


def read_batch(blob: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Channel planes (n, 3072) and labels (n,) of one batch, both uint8. The batch is a pickle unless its name ends in .bin.

    Raises:
        InputError: it is not a batch of CIFAR-10.
    """
    try:
        data, labels = _parse_records(blob) if name.endswith(".bin") else _parse_pickle(blob)
        if len(labels) and labels.max() > 9:
            raise ValueError(f"label {labels.max()} of row {labels.argmax()} is not one of the ten classes")
    except Exception as e:  # a damaged pickle may raise any error
        reason = " ".join(f"{e}".split())[:200] if isinstance(e, ValueError) else "its steps make no sense"
        raise InputError(f"{name} is not a batch of CIFAR-10 ({reason}): download it again") from e
    return data, labels


def _parse_records(blob: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(blob) % (1 + VALUES) or not blob:
        raise ValueError(f"{len(blob)} bytes are not a multiple of the record size {1 + VALUES}")
    records = np.frombuffer(blob, np.uint8).reshape(-1, 1 + VALUES)
    return records[:, 1:], records[:, 0]


def _parse_pickle(blob: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = unpickle(blob)
    if not isinstance(batch, dict):
        raise ValueError(f"it holds a {type(batch).__name__}, not a dictionary")
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, Array) or data.value is None or data.value.shape[1:] != (VALUES,):
        raise ValueError(f"its data are not a uint8 array (n, {VALUES})")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label <= 255 for label in labels):
        raise ValueError("its labels are not a list of numbers from 0 to 255")
    if len(labels) != len(data.value):
        raise ValueError(f"it has {len(data.value)} pictures and {len(labels)} labels")
    return data.value, np.array(labels, np.uint8)

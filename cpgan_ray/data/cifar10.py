"""CIFAR-10 as it is downloaded: 60,000 pictures of ten kinds of object, 32 x 32, colour.

    cifar-10-batches-py/     data_batch_1 ... data_batch_5, test_batch             Python pickles
    cifar-10-batches-bin/    data_batch_1.bin ... data_batch_5.bin, test_batch.bin records of a label and 3,072 values
    cifar-10-python.tar.gz   cifar-10-binary.tar.gz                                the same, read as they are

The first of them that is there is read; the folder may be given itself. Validation: the last 5,000 pictures of the training files.
"""

import gzip
import io
import math
import pickletools
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from cpgan_ray.data.samples import Samples, checked, most_unpacked, read_bytes, unreadable
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
"""A batch has 30 MB, 45 MB where Python 3 wrote it."""
MAX_ARCHIVE_BYTES = 512 << 20
"""Unpacked; the official ones have 186 MB."""
MAX_STEPS = 1_000_000
"""Of a pickle; an official one has some 40,000."""


def files(source: Path) -> list[Path]:
    """The six batches, or the archive.

    Raises:
        InputError: names the first one missing.
    """
    if not source.is_dir():
        raise InputError(f"data folder {source} does not exist or is no folder: give one that holds {PYTHON}/ with --data-dir")
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
    """All pictures, (N, 32, 32, 3), the training batches first. Of a pickle nothing is executed (see `unpickle`).

    Raises:
        InputError: a file is missing or is no batch of pictures; the training batches differ in length.
    """
    paths = files(source)
    batches = [read_batch(blob, name) for name, blob in (_packed(paths[0]) if len(paths) == 1 else _loose(paths))]
    counts = [len(labels) for _, labels in batches]
    if len(set(counts[:-1])) > 1:
        raise InputError(
            f"{paths[0].parent}: the training batches have {counts[:-1]} rows, not the same number: download them again"
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
    return checked(samples, source)


def _loose(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        yield str(path), read_bytes(path, limit=MAX_FILE_BYTES)


def _packed(path: Path) -> Iterator[tuple[str, bytes]]:
    """The six batches of an archive, which is unpacked in memory within limits: nothing is written anywhere."""
    try:
        limit = min(MAX_ARCHIVE_BYTES, most_unpacked(path.stat().st_size))
        with gzip.open(path) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise InputError(f"{path} has more than {limit} bytes unpacked: download it again")
        kind = ARCHIVES[path.name]
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = {member.name: member for member in archive if member.isreg()}
            for name in FILES[kind]:
                member = members.get(f"{kind}/{name}")
                opened = archive.extractfile(member) if member and member.size <= MAX_FILE_BYTES else None
                if opened is None:
                    raise InputError(f"{path} holds no {kind}/{name} of at most {MAX_FILE_BYTES} bytes: download it again")
                yield f"{path}/{kind}/{name}", opened.read()
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as e:
        raise InputError(f"{path} is no whole archive ({e}): download it again") from e
    except OSError as e:
        raise unreadable(path, e) from e


def read_batch(blob: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Channel planes (n, 3072) and labels (n,) of one batch, both uint8; a pickle unless its name ends in .bin.

    Raises:
        InputError: it is none.
    """
    try:
        data, labels = _records(blob) if name.endswith(".bin") else _pickled(blob)
        if len(labels) and labels.max() > 9:
            raise ValueError(f"label {labels.max()} of row {labels.argmax()} is none of the ten classes")
    except Exception as e:  # a pickle's damage shows in as many ways as there are kinds of steps
        why = " ".join(f"{e}".split())[:200] if isinstance(e, ValueError) else "its steps make no sense"
        raise InputError(f"{name} is no batch of CIFAR-10 ({why}): download it again") from e
    return data, labels


def _records(blob: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(blob) % (1 + VALUES) or not blob:
        raise ValueError(f"{len(blob)} bytes are no whole number of records of {1 + VALUES}")
    records = np.frombuffer(blob, np.uint8).reshape(-1, 1 + VALUES)
    return records[:, 1:], records[:, 0]


def _pickled(blob: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = unpickle(blob)
    if not isinstance(batch, dict):
        raise ValueError(f"it holds a {type(batch).__name__}, not a dictionary")
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, Array) or data.value is None or data.value.shape[1:] != (VALUES,):
        raise ValueError(f"its data are no uint8 array (n, {VALUES})")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label <= 255 for label in labels):
        raise ValueError("its labels are no list of small numbers")
    if len(labels) != len(data.value):
        raise ValueError(f"it has {len(data.value)} pictures and {len(labels)} labels")
    return data.value, np.array(labels, np.uint8)


@dataclass(eq=False)
class Array:
    """A uint8 array in the making."""

    value: np.ndarray | None = None


@dataclass(frozen=True)
class Name:
    """A thing that a pickle asks for by its name; never looked up."""

    name: str


NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype", "_codecs encode")
"""What a pickle of uint8 arrays and of bytes may ask for."""


def unpickle(blob: bytes) -> object:
    """Dictionaries, lists, tuples, numbers, strings and uint8 `Array`s out of a pickle of protocol 2, as CIFAR-10's are.

    A pickle is a program. Here its steps are read as data by the standard library's disassembler, and the few that such
    values need are followed: nothing is imported, looked up or called, whatever the file asks for. (A `pickle.Unpickler`
    that allows NumPy's names alone would still hand NumPy unchecked numbers, and a deeply nested key makes it crash.)

    Raises:
        ValueError: any other step. A damaged pickle may also lead to IndexError, KeyError and others.
    """
    stack: list[object] = []
    marks: list[int] = []
    memo: dict[int, object] = {}

    def since_mark() -> list[object]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    steps = cast(Iterable[tuple[pickletools.OpcodeInfo, Any, int]], pickletools.genops(blob))
    for step, (opcode, value, position) in enumerate(steps):
        if step > MAX_STEPS:
            raise ValueError(f"it takes more than {MAX_STEPS} steps")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "BININT" | "BININT1" | "BININT2" | "BINUNICODE":
                stack.append(value)
            case "SHORT_BINSTRING" | "BINSTRING":  # bytes, of Python 2
                stack.append(value.encode("latin-1"))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                for key, item in zip(items[::2], items[1::2], strict=True):
                    _expect(stack[-1], dict)[_expect(key, bytes)] = item
            case "GLOBAL":
                name = value.replace("numpy._core.", "numpy.core.")  # as NumPy 2 calls it
                if name not in NAMES:
                    raise ValueError(f"it asks for {name.replace(' ', '.', 1)}, which no picture needs")
                stack.append(Name(name))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Array):
                    stack[-1].value = _filled(_expect(state, tuple))
                elif stack[-1] is not np.uint8:  # whose state says nothing more
                    raise ValueError(f"it gives a {type(stack[-1]).__name__} a state")
            case "PROTO" if value == 2:
                pass
            case "STOP" if len(stack) == 1 and not marks and position == len(blob) - 1:
                return stack[0]
            case other:
                raise ValueError(f"step {other} at byte {position} is not one of a pickle of pictures")
    raise ValueError("it has no end")


T = TypeVar("T")


def _expect(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} is where a {kind.__name__} should be")
    return value


def _made(what: object, arguments: object) -> object:
    """What a call in a pickle stands for."""
    match _expect(what, Name).name, arguments:
        case "_codecs encode", (str() as text, "latin1"):
            return text.encode("latin-1")
        case "numpy.core.multiarray _reconstruct", (Name(name="numpy ndarray"), _, _):
            return Array()
        case "numpy dtype", (b"u1" | "u1", *_):
            return np.uint8
        case name, _:
            raise ValueError(f"it calls {name} with other arguments than for an array of uint8")


def _filled(state: tuple) -> np.ndarray:
    """An array from its state: version, shape, type, whether columns come first, bytes."""
    match state:
        case (int(), tuple() as shape, kind, bool() as columns_first, bytes() as content) if kind is np.uint8:
            sizes = [_expect(size, int) for size in shape]
            if min(sizes, default=0) < 0 or math.prod(sizes) != len(content):
                raise ValueError(f"an array of shape {sizes[:9]} has {len(content)} bytes")
            return np.frombuffer(content, np.uint8).reshape(sizes, order="F" if columns_first else "C")
    raise ValueError("an array's state is not one of uint8")

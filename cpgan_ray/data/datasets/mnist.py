"""MNIST as it is downloaded: four idx files of handwritten digits, 28 x 28, grey.

    train-images-idx3-ubyte   train-labels-idx1-ubyte     60,000 pictures and their digits
    t10k-images-idx3-ubyte    t10k-labels-idx1-ubyte      10,000

each as it is or with .gz, in the folder itself or where torchvision puts them (`MNIST/raw/`). An idx file is big-endian: two
zero bytes, 8 for uint8, the number of dimensions; an int32 for each dimension; the values.

Validation: the last 5,000 pictures of the training files. The files do not say who wrote a digit, so each row is on its own.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from cpgan_ray.data.samples import Samples, checked, find, most_unpacked, unreadable
from cpgan_ray.errors import InputError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PLACES = ("", "MNIST/raw/", "raw/")
NUM_VALIDATION = 5000
"""At most a tenth of the training files."""
MAX_ROWS = 1 << 20
"""No header is believed that promises more."""


def files(source: Path) -> list[Path]:
    """The four files.

    Raises:
        InputError: names the first one missing.
    """
    remedy = "download the four MNIST files (torchvision: MNIST(folder, download=True)) and give the folder with --data-dir"
    return [find(source, [f"{place}{name}{end}" for place in PLACES for end in ("", ".gz")], remedy=remedy) for name in FILES]


def read(source: Path) -> Samples:
    """All pictures, (N, 28, 28, 1), those of the training file first.

    Raises:
        InputError: a file is missing, cut, too long or contradicts another; says which.
    """
    paths = files(source)
    pictures = [read_idx(path, shape=(28, 28)) for path in paths[::2]]
    labels = [read_idx(path, shape=()) for path in paths[1::2]]
    for i, (x, y) in enumerate(zip(pictures, labels, strict=True)):
        if len(x) != len(y):
            raise InputError(f"{paths[2 * i + 1]} has {len(y)} labels, {paths[2 * i].name} {len(x)} pictures: use matching files")
        if len(y) and y.max() > 9:
            raise InputError(f"{paths[2 * i + 1]}: label {y.max()} of row {y.argmax()} is no digit: download it again")
    num_train, num_rows = len(labels[0]), len(labels[0]) + len(labels[1])
    start = num_train - min(NUM_VALIDATION, num_train // 10)
    samples = Samples(
        values=np.concatenate(pictures)[..., None],
        labels=np.concatenate(labels).astype(np.int8),
        label_name="digit",
        classes=tuple("0123456789"),
        identity=np.arange(num_rows),
        rows={"train": np.arange(start), "val": np.arange(start, num_train), "test": np.arange(num_train, num_rows)},
    )
    return checked(samples, source)


def read_idx(path: Path, *, shape: tuple[int, ...]) -> np.ndarray:
    """An idx file of items of a given shape, gzipped if its name ends in .gz: uint8 (n, *shape).

    Raises:
        InputError: it is something else; it is shorter or longer than its header promises (no more than that is unpacked).
    """
    expected = (0x800 + 1 + len(shape), *shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 * (2 + len(shape)))
            if len(head) < 4 * (2 + len(shape)):
                raise InputError(f"{path} ends after {len(head)} bytes, within its header: download it again")
            magic, count, *sizes = struct.unpack(f">{2 + len(shape)}I", head)
            if (magic, *sizes) != expected:
                raise InputError(f"{path} begins with {(magic, *sizes)}, not {expected} (magic number, sizes): it is another file")
            if count > MAX_ROWS:
                raise InputError(f"{path} promises {count} rows, at most {MAX_ROWS} are believed: download it again")
            promised = count * math.prod(shape)
            if promised > most_unpacked(size := path.stat().st_size):
                raise InputError(f"{path} promises {promised} bytes in a file of {size}, as no pictures pack: download it again")
            content = file.read(promised + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise InputError(f"{path} is no whole gzip file ({e}): download it again") from e
    except OSError as e:
        raise unreadable(path, e) from e
    if len(content) != promised:
        got = f"more than {promised}" if len(content) > promised else f"{len(content)} of {promised}"
        raise InputError(f"{path} promises {count} rows and has {got} bytes of them: download it again")
    return np.frombuffer(content, np.uint8).reshape(count, *shape)

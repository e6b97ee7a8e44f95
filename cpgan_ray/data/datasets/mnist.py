"""Read MNIST as it is downloaded: four idx files of handwritten digits, 28 x 28, grey.

    train-images-idx3-ubyte   train-labels-idx1-ubyte     60,000 pictures and their digits
    t10k-images-idx3-ubyte    t10k-labels-idx1-ubyte      10,000

Each file may be unpacked or gzipped (.gz), in the folder itself or in torchvision's subfolder (`MNIST/raw/`). An idx file is
big-endian: two zero bytes, 8 for uint8, the number of dimensions; an int32 for each dimension; the values.

Validation: the last 5,000 pictures of the training files. The files do not name the writer of a digit, so each row has its own
identity.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from cpgan_ray.data.samples import Samples, find_file, max_unpacked_bytes, unreadable_error, validate_samples
from cpgan_ray.errors import InputError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SUBFOLDERS = ("", "MNIST/raw/", "raw/")
NUM_VALIDATION = 5000
"""At most a tenth of the training files."""
MAX_ROWS = 1 << 20
"""Files whose header announces more rows are refused."""


def files(source: Path) -> list[Path]:
    """The four files.

    Raises:
        InputError: a file is missing; names the first one.
    """
    remedy = "download the four MNIST files (torchvision: MNIST(folder, download=True)) and give the folder with --data-dir"
    return [
        find_file(source, [f"{folder}{name}{end}" for folder in SUBFOLDERS for end in ("", ".gz")], remedy=remedy) for name in FILES
    ]


def read(source: Path) -> Samples:
    """All pictures, (N, 28, 28, 1), the training file first.

    Raises:
        InputError: a file is missing, truncated, too long or contradicts another; names it.
    """
    paths = files(source)
    pictures = [read_idx(path, shape=(28, 28)) for path in paths[::2]]
    labels = [read_idx(path, shape=()) for path in paths[1::2]]
    for i, (x, y) in enumerate(zip(pictures, labels, strict=True)):
        if len(x) != len(y):
            raise InputError(
                f"{paths[2 * i + 1]} has {len(y)} labels, but {paths[2 * i].name} has {len(x)} pictures: use matching files"
            )
        if len(y) and y.max() > 9:
            raise InputError(f"{paths[2 * i + 1]}: label {y.max()} of row {y.argmax()} is not a digit: download it again")
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
    return validate_samples(samples, source)


def read_idx(path: Path, *, shape: tuple[int, ...]) -> np.ndarray:
    """Read an idx file of items of a given shape, gzipped if its name ends in .gz: uint8 (n, *shape).

    Raises:
        InputError: it is another kind of file, or shorter or longer than its header announces (no more than that is unpacked).
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
                raise InputError(f"{path} announces {count} rows, the limit is {MAX_ROWS}: download it again")
            num_bytes = count * math.prod(shape)
            if num_bytes > max_unpacked_bytes(size := path.stat().st_size):
                raise InputError(
                    f"{path} announces {num_bytes} bytes in a file of {size}; pictures do not compress so well: download it again"
                )
            content = file.read(num_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise InputError(f"{path} is not a complete gzip file ({e}): download it again") from e
    except OSError as e:
        raise unreadable_error(path, e) from e
    if len(content) != num_bytes:
        actual = f"more than {num_bytes}" if len(content) > num_bytes else f"{len(content)} of {num_bytes}"
        raise InputError(f"{path} announces {count} rows, but has {actual} bytes of them: download it again")
    return np.frombuffer(content, np.uint8).reshape(count, *shape)

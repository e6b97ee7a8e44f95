"""Arrays in the content of an `.npz` file, whatever is wrong with it."""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

DAMAGED = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    SyntaxError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    OverflowError,
    UnicodeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for damaged files."""


def read_arrays(content: bytes, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays in the content of an `.npz` file by name. names: only these; None: all.

    Raises: ValueError with a short reason if an array is missing, or the file is damaged.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if isinstance(arrays, np.ndarray):
                raise ValueError("one array without a name")
            return {name: arrays[name] for name in (arrays.files if names is None else names)}
    except DAMAGED as e:
        raise ValueError(type(e).__name__) from e

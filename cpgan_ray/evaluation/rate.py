"""Bits on the wire: the coded length of codes under a table that was made from training codes beforehand.

The coder is that of the bundle (common/codec.py). A client sends each code by itself in the shorter of two forms, entropy-coded or
packed; `code_bits` is the mean length over the test pictures.

By the source coding theorem no table codes Z in fewer bits than its entropy H(Z) on average. The mean information of the codes
under the table, -log2 q(z), is the length without the coder's padding to whole words. It is an upper bound on H(Z), and so on what
Z gives away about the picture, I(X; Z) <= H(Z). This holds only if the table has every level that occurs: the client limits other
levels to the table's, but what is attacked are the codes before that.
"""

from dataclasses import dataclass

import numpy as np

from cpgan_ray.common.codec import RANGE, BytesError, FloatCodec, LevelCodec, codec_of
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.scoring import mean_interval

MAX_VALUES = 256
"""Codes without a step that have at most so many different values in all are coded as the numbers of their values."""
ROWS_PER_VALUE = 4
"""There must be so many times more training pictures than values."""
FLOAT_BITS = 32
CONTINUOUS = "the code is not rounded, so that it has no coded length"
NO_LEVELS = "the codes are not whole multiples of the step, or have too many levels for a table"


@dataclass(frozen=True, kw_only=True)
class CodeRate:
    """The bits of a code on the wire, for one picture."""

    bits: float | None = None
    """Mean coded length on the test pictures, with its 95 % interval over people; None if the codes are not coded."""
    low: float | None = None
    high: float | None = None
    val_bits: float | None = None
    """Mean coded length on the validation split, by which a search chooses."""
    raw: float
    """Length without entropy coding: k * ceil(log2 levels); 32 k for codes that are not rounded."""
    levels: int | None = None
    """Number of levels in the table."""
    information: float | None = None
    """Mean information -log2 q(z) under the table, an upper bound on H(Z); None if a held-out code has a level that the table does
    not have."""
    log2_codes: float | None = None
    """Base-2 logarithm of the number of different codes that can be sent; None in the same case."""
    not_coded: str | None = None
    """Why the codes have no coded length; None if they have one."""


def code_rate(codes: Codes, identity: np.ndarray, *, step: float, levels: int = 0, seed: int, raw: float | None = None) -> CodeRate:
    """The rate of codes with a table of those of `train`, measured on `test`.

    step: that the codes are multiples of; 0: they are coded only if they have few values; levels: of finite codes, otherwise 0;
    identity: of the test pictures; raw: the length without entropy coding, if it is known otherwise.

    Raises: InputError if the package of the range coder is missing.
    """
    train, val, test = (codes[name] for name in ("train", "val", "test"))
    k = train.shape[1]
    symbols = None
    if step:
        symbols = (train, val, test) if all(is_multiple(z, step) for z in (train, val, test)) else None
    elif (values := few_values(train)) is not None and all(np.isin(z, values).all() for z in (val, test)):
        step, symbols = 1.0, tuple(nearest(z, values) for z in (train, val, test))
    if symbols is None:
        return CodeRate(raw=FLOAT_BITS * k if raw is None else raw, not_coded=NO_LEVELS if step else CONTINUOUS)
    try:
        codec = codec_of(symbols[0], step=step, levels=levels)
    except BytesError as e:
        return CodeRate(raw=FLOAT_BITS * k if raw is None else raw, not_coded=str(e))
    if isinstance(codec, FloatCodec):
        return CodeRate(raw=FLOAT_BITS * k if raw is None else raw, not_coded=NO_LEVELS)
    complete = all(codec.lowest <= np.rint(z.min() / step) and np.rint(z.max() / step) <= codec.highest for z in symbols[1:])
    lengths = coded_bits(symbols[2], codec)
    low, high = mean_interval(lengths, identity, seed=seed)
    return CodeRate(
        bits=float(lengths.mean()),
        low=low,
        high=high,
        val_bits=float(coded_bits(symbols[1], codec).mean()),
        raw=float(k * codec.bits) if raw is None else raw,
        levels=len(codec.frequencies),
        information=float(codec.information(symbols[2]).mean()) if complete else None,
        log2_codes=float(k * np.log2(len(codec.frequencies))) if complete else None,
    )


def coded_bits(z: np.ndarray, codec: LevelCodec) -> np.ndarray:
    """The length in bits of each code (N, k), sent by itself in the shorter of the two forms: (N,) float64."""
    return np.array([8 * min(len(codec.encode(code[None], RANGE)), codec.plain_bytes) for code in z], np.float64)


def is_multiple(z: np.ndarray, step: float) -> bool:
    """Whether all numbers of z are whole multiples of a step, up to float32 rounding."""
    levels = z / np.float32(step)
    return bool(np.allclose(levels, np.rint(levels), rtol=0, atol=1e-3))


def few_values(z: np.ndarray) -> np.ndarray | None:
    """The values in z (N, k), ascending, if there are 2 to MAX_VALUES and far fewer than rows; None otherwise."""
    if len(np.unique(z[:1])) > MAX_VALUES:
        return None
    values = np.unique(z)
    return values if 2 <= len(values) <= min(MAX_VALUES, len(z) // ROWS_PER_VALUE) else None


def nearest(z: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The number of the nearest of ascending values (V,), for each number of z: float32."""
    return np.searchsorted((values[1:] + values[:-1]) / 2, z).astype(np.float32)

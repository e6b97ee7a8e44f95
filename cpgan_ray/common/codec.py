"""Codes as bytes: packed bits of a fixed size, or entropy-coded with a table that the bundle contains.

A rounded code consists of whole multiples of a step. The *levels* are these whole numbers. They are limited to the range in
`codec.json`, which also has the frequency of each level. docs/wire-format.md specifies the bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpgan_ray.errors import InputError

FORMAT = 1
PRECISION = 24
"""The frequencies of the levels add up to 2^PRECISION."""
MAX_K, MAX_LEVELS = 1 << 20, 4096
PLAIN, RANGE = "plain", "range"
CODINGS = (PLAIN, RANGE)
"""Names of the codings, by their number in a message."""


class BytesError(ValueError):
    """Bytes that are no codes; the message is the reason in a few words."""


@dataclass(frozen=True, kw_only=True)
class LevelCodec:
    """The bytes of rounded codes: multiples of `step`, as levels from `lowest` on."""

    k: int
    step: float
    lowest: int
    frequencies: tuple[int, ...]
    """Of each level, at least 1; their sum is 2^PRECISION."""

    codings = CODINGS

    @property
    def highest(self) -> int:
        return self.lowest + len(self.frequencies) - 1

    @property
    def bits(self) -> int:
        """Bits of a level in plain coding."""
        return max(1, (len(self.frequencies) - 1).bit_length())

    @property
    def plain_bytes(self) -> int:
        """Bytes of a code in plain coding."""
        return (self.k * self.bits + 7) // 8

    def levels(self, z: np.ndarray) -> np.ndarray:
        """Codes z (B, k) float32 -> levels (B, k) int32, each the nearest one in the range.

        Raises: BytesError if z has another length or is not finite.
        """
        ensure_codes(z, self.k)
        return np.clip(np.rint(z / np.float32(self.step)), self.lowest, self.highest).astype(np.int32)

    def codes(self, levels: np.ndarray) -> np.ndarray:
        """Levels (B, k) -> codes z (B, k) float32.

        Raises: BytesError if they are not whole numbers in the range, or not k of them.
        """
        if levels.ndim != 2 or levels.shape[1] != self.k or levels.dtype.kind not in "iu":
            raise BytesError(f"levels of shape {levels.shape} and type {levels.dtype}; they must be whole numbers (B, {self.k})")
        if levels.size and not self.lowest <= levels.min() <= levels.max() <= self.highest:
            raise BytesError(f"levels from {levels.min()} to {levels.max()}; they must be from {self.lowest} to {self.highest}")
        return levels.astype(np.float32) * np.float32(self.step)

    def information(self, z: np.ndarray) -> np.ndarray:
        """The information -log2 q(z) of codes z (B, k) under the frequencies, in bits: (B,) float64. It is the length of the
        entropy-coded form without padding to whole words.

        Raises: BytesError as `levels` does.
        """
        bits = PRECISION - np.log2(np.asarray(self.frequencies, np.float64))
        return bits[self.levels(z) - self.lowest].sum(axis=1)

    def encode(self, z: np.ndarray, coding: str = RANGE) -> bytes:
        """The bytes of codes z (B, k).

        Raises: BytesError as `levels` does; InputError if the package of the range coder is missing.
        """
        symbols = self.levels(z) - self.lowest
        if coding == PLAIN:
            bits = (symbols[:, :, None] >> np.arange(self.bits)[::-1]) & 1
            return np.packbits(bits.reshape(len(z), -1).astype(np.uint8), axis=1).tobytes()
        coder = _constriction().queue.RangeEncoder()
        coder.encode(symbols.ravel(), self._model())
        return coder.get_compressed().astype("<u4").tobytes()

    def decode(self, payload: bytes, count: int, coding: str) -> np.ndarray:
        """The levels (count, k) int32 in the bytes of `encode`.

        Raises: BytesError if they are not exactly the bytes of that many codes.
        """
        if coding == PLAIN:
            if len(payload) != count * self.plain_bytes:
                raise BytesError(f"{len(payload)} bytes; {count} codes have {count * self.plain_bytes}")
            bits = np.unpackbits(np.frombuffer(payload, np.uint8).reshape(count, -1), axis=1)
            if bits[:, self.k * self.bits :].any():
                raise BytesError("the bits after the last number are not 0")
            values = bits[:, : self.k * self.bits].reshape(count, self.k, self.bits) @ (1 << np.arange(self.bits)[::-1])
            if values.size and values.max() >= len(self.frequencies):
                raise BytesError(f"a number is {values.max()}; the largest is {len(self.frequencies) - 1}")
            return values.astype(np.int32) + self.lowest
        return self._decode_range(payload, count) + self.lowest

    def _decode_range(self, payload: bytes, count: int) -> np.ndarray:
        least_bits = count * self.k * (PRECISION - math.log2(max(self.frequencies)))
        if len(payload) % 4 or 8 * len(payload) + 64 < least_bits:  # before any work is done
            raise BytesError(f"{len(payload)} bytes; they must be words of 4 bytes, enough for {count} codes")
        words, model, coder = np.frombuffer(payload, "<u4").astype(np.uint32), self._model(), _constriction().queue
        try:
            symbols = coder.RangeDecoder(words).decode(model, count * self.k)
        except AssertionError as e:  # raised by constriction for a state that no encoder reaches
            raise BytesError("the bytes are not entropy-coded with this table") from e
        again = coder.RangeEncoder()
        again.encode(symbols, model)
        if not np.array_equal(again.get_compressed(), words):
            raise BytesError(f"the bytes are not those of {count} entropy-coded codes")
        return symbols.reshape(count, self.k)

    def _model(self) -> Any:
        """The entropy model with exactly these frequencies: constriction gives each level 1, and shares the rest in proportion."""
        return _constriction().model.Categorical(np.asarray(self.frequencies, np.float64) - 1, perfect=False)

    def as_json(self) -> dict[str, Any]:
        """The content of `codec.json`."""
        return {
            "format": FORMAT,
            "kind": "levels",
            "k": self.k,
            "step": self.step,
            "lowest": self.lowest,
            "highest": self.highest,
            "precision": PRECISION,
            "frequencies": list(self.frequencies),
        }


@dataclass(frozen=True, kw_only=True)
class FloatCodec:
    """The bytes of codes that are not rounded: each number as float32."""

    k: int

    codings = (PLAIN,)

    @property
    def plain_bytes(self) -> int:
        return 4 * self.k

    def encode(self, z: np.ndarray, coding: str = PLAIN) -> bytes:
        """The bytes of codes z (B, k).

        Raises: BytesError if z has another length or is not finite.
        """
        ensure_codes(z, self.k)
        return z.astype("<f4").tobytes()

    def decode(self, payload: bytes, count: int, coding: str) -> np.ndarray:
        """The codes (count, k) float32 in the bytes of `encode`.

        Raises: BytesError if they are not exactly the bytes of that many codes.
        """
        if coding != PLAIN:
            raise BytesError(f"coding {coding!r}; codes that are not rounded have only {PLAIN!r}")
        if len(payload) != count * self.plain_bytes:
            raise BytesError(f"{len(payload)} bytes; {count} codes have {count * self.plain_bytes}")
        return self.codes(np.frombuffer(payload, "<f4").astype(np.float32).reshape(count, self.k))

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Values (B, k) as they come -> codes z (B, k) float32.

        Raises: BytesError if they are not finite, or not k of them.
        """
        ensure_codes(values, self.k)
        return values.astype(np.float32)

    def as_json(self) -> dict[str, Any]:
        """The content of `codec.json`."""
        return {"format": FORMAT, "kind": "float32", "k": self.k}


Codec = LevelCodec | FloatCodec


def level_range(levels: int) -> tuple[int, int]:
    """The lowest and the highest level of finite codes with so many levels: -1 to 1 for 3, -2 to 1 for 4."""
    return -(levels // 2), levels - 1 - levels // 2


def codec_of(z: np.ndarray, *, step: float, levels: int = 0) -> Codec:
    """The codec of a privatizer, from its codes z (N, k) of pictures that no result is measured on.

    The levels are those of these codes, at least two; other codes are limited to them. Every level counts once more than it occurs.

    step: of the privatizer's rounding; 0 if its codes are not rounded. levels: their number, for finite codes: the table then has
    all of them, whether or not they occur.

    Raises: BytesError if there are no codes, or they are not finite.
    """
    if not len(z):
        raise BytesError("there are no codes")
    ensure_codes(z, z.shape[1])
    k, numbers = z.shape[1], np.rint(z / np.float32(step or 1))
    if not step or numbers.max() - numbers.min() + 1 > MAX_LEVELS:
        return FloatCodec(k=k)
    lowest, highest = level_range(levels) if levels else (int(numbers.min()), max(int(numbers.max()), int(numbers.min()) + 1))
    symbols = np.clip(numbers, lowest, highest).astype(np.int64) - lowest
    counts = np.bincount(symbols.ravel(), minlength=highest - lowest + 1) + 1
    return LevelCodec(k=k, step=float(step), lowest=lowest, frequencies=frequencies_of(counts))


def frequencies_of(counts: np.ndarray) -> tuple[int, ...]:
    """Whole frequencies in proportion to counts (L,), each at least 1, with the sum 2^PRECISION. The most frequent level takes what
    rounding leaves."""
    total = 1 << PRECISION
    frequencies = 1 + np.floor(counts / counts.sum() * (total - len(counts))).astype(np.int64)
    frequencies[np.argmax(counts)] += total - frequencies.sum()
    return tuple(frequencies.tolist())


def codec_from_json(values: Any) -> Codec:
    """The codec in a `codec.json`.

    Raises: ValueError with a short reason if it is none.
    """
    if not isinstance(values, Mapping) or values.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    k: Any = values.get("k")
    if type(k) is not int or not 1 <= k <= MAX_K:
        raise ValueError(f"k is not a whole number from 1 to {MAX_K}")
    if values.get("kind") == "float32":
        return FloatCodec(k=k)
    step: Any = values.get("step")
    lowest: Any = values.get("lowest")
    frequencies: Any = values.get("frequencies")
    if type(step) not in (int, float) or not 0 < step < 1e6:
        raise ValueError("step is not a positive number")
    if type(lowest) is not int or abs(lowest) > 1 << 24:
        raise ValueError("lowest is not a whole number of at most 2^24")
    if not valid_frequencies(frequencies) or values.get("precision") != PRECISION:
        raise ValueError(f"frequencies are not 2 to {MAX_LEVELS} whole numbers from 1 on with the sum 2^{PRECISION}")
    codec = LevelCodec(k=k, step=float(step), lowest=lowest, frequencies=tuple(frequencies))
    if values.get("kind") != "levels" or values.get("highest") != codec.highest:
        raise ValueError("kind or highest does not fit the frequencies")
    return codec


def valid_frequencies(values: Any) -> bool:
    if not isinstance(values, Sequence) or isinstance(values, str) or not 2 <= len(values) <= MAX_LEVELS:
        return False
    return all(type(v) is int and v >= 1 for v in values) and sum(values) == 1 << PRECISION


def ensure_codes(z: np.ndarray, k: int) -> None:
    """Raises: BytesError if z is not (B, k) finite numbers."""
    if z.ndim != 2 or z.shape[1] != k or z.dtype.kind not in "fiu":
        raise BytesError(f"codes of shape {z.shape} and type {z.dtype}; they must be numbers (B, {k})")
    if not np.isfinite(z).all():
        raise BytesError("codes that are not finite")


def _constriction() -> Any:
    """The package with the range coder: `constriction.stream`, which has no type information.

    Raises: InputError if it is missing.
    """
    try:
        import constriction
    except ImportError as e:
        raise InputError(
            "package constriction is missing, which codes the entropy-coded form: pip install constriction, or use coding 'plain'"
        ) from e
    return constriction.stream  # pyright: ignore[reportAttributeAccessIssue]

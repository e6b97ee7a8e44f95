"""From the outputs of an encoder, arrays of any rank, to codes (B, k)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.sandbox import Arrays, array_sizes, one_line

MAX_EXACT_INT = 2**24
"""Integers up to this size are exact in float32."""


def selected(outputs: Arrays, names: Sequence[str], *, rows: int, subject: str) -> Arrays:
    """The outputs with these names, or all if there are none; each with one row per picture. What a call with a single picture
    returns belongs to that picture, whatever its shape is.

    Raises: InputError if there is no such output, or if one has another number of rows.
    """
    for name in names:
        if name not in outputs:
            choices = ", ".join(one_line(choice, 80) for choice in list(outputs)[:50]) or "none"
            raise InputError(f"{subject} has no output {name!r}: choose --encoder.outputs from {choices}")
    chosen = {name: outputs[name] for name in names or outputs}
    for name, values in chosen.items():
        if rows > 1 and (values.ndim < 1 or values.shape[0] != rows):
            raise InputError(
                f"{subject} returns shape {values.shape} for {rows} pictures in output {one_line(name, 80)!r}: it must be (B, k), "
                "one row per picture; select other outputs with --encoder.outputs, or call it with --encoder.batch-size 1"
            )
    return {name: values.reshape(rows, -1) if values.size else np.zeros((rows, 0), values.dtype) for name, values in chosen.items()}


def sizes_of(arrays: Arrays) -> list[tuple[str, int]]:
    """Name of each output, and its number of values per picture."""
    return list(array_sizes(arrays))


def as_codes(arrays: Arrays, *, subject: str) -> np.ndarray:
    """Outputs (B, ...) side by side: (B, k) float32.

    Raises: InputError if float32 cannot represent a value, or a value is not finite.
    """
    codes = np.concatenate([_as_float32(name, values, subject) for name, values in arrays.items()], axis=1)
    if not np.isfinite(codes).all():
        raise InputError(f"{subject} returns codes that are not finite")
    return codes


def _as_float32(name: str, values: np.ndarray, subject: str) -> np.ndarray:
    output = f"{subject}: output {one_line(name, 80)!r}"
    if values.dtype.kind in "iu" and values.size and max(int(values.max()), -int(values.min())) > MAX_EXACT_INT:
        raise InputError(f"{output} holds integers above 2^24, which float32 cannot represent: scale them, or select other outputs")
    with np.errstate(over="ignore"):
        converted = values.astype(np.float32)
    if values.dtype == np.float64 and len(values) > 1:
        with np.errstate(invalid="ignore", over="ignore"):
            error, spread = np.abs(values - converted).max(axis=0), values.std(axis=0)
        if np.any(error > 1e-3 * spread) and np.any(values != values[:1]):
            raise InputError(f"{output} holds float64 values whose differences are lost in float32: export it as float32")
    return converted


def names_and_sizes(outputs: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """The report's entry about outputs."""
    return [{"name": one_line(name, 80), "size": size} for name, size in outputs]

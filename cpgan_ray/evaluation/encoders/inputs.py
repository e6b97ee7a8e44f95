"""From pictures as stored to the input of an encoder: axes, colours, the values of black and white, type and size.

A file declares the shape and the type of its input. Everything else its author knows and the file does not say: the order of the
colours, and what black and white are. Flags say it (`EncoderConfig`); what no flag says is assumed, and the report states it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpgan_ray.config import EncoderConfig
from cpgan_ray.config.data import MAX_SIDE
from cpgan_ray.errors import InputError

COLOURS = (1, 3)
"""Numbers of channels of pictures: grey, or three colours."""
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("uint8", "int8", "uint16", "int16", "int32", "int64")
LUMA = np.array([299, 587, 114], np.float32) / 1000
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


@dataclass(frozen=True, eq=False)
class EncoderInput:
    """What an encoder takes, and how pictures become it."""

    declared: tuple[Any, ...]
    """Shape in the file; a variable size is not an integer."""
    dtype: str
    last: bool
    """Whether the channels are the last axis."""
    size: tuple[int, int] | None
    """Height and width; None: any, so that the pictures keep the size of the store."""
    channels: int
    batch: int | None
    """Number of pictures in each call; None: any number."""
    bgr: bool
    table: np.ndarray
    """(channels or 1, 256): the value of each level of a stored picture, in the encoder's type and order of channels."""
    scaled: bool
    """Whether `table` was set by a flag, so that it cannot be applied to signals."""
    assumed: tuple[str, ...]
    """What no flag and no file says, one clause each."""

    def prepare(self, pictures: np.ndarray, *, subject: str) -> np.ndarray:
        """Pictures (B, C, H, W) as stored, uint8 or float32 -> the encoder's input (B, ...).

        Raises: InputError if the encoder does not take such values or so many channels.
        """
        channels = pictures.shape[1]
        if channels != self.channels and not (pictures.dtype == np.uint8 and {channels, self.channels} == set(COLOURS)):
            raise InputError(
                f"{subject} takes pictures with {self.channels} channels, the store has {channels}: choose the data set that it "
                "was made for, or set --encoder.layout if it takes the channels in another place"
            )
        is_picture = pictures.dtype == np.uint8
        values = self._levels(self._channels(pictures)) if is_picture else self._signals(pictures, subject)
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1) if self.last else values)

    def _channels(self, pictures: np.ndarray) -> np.ndarray:
        """The pictures with the encoder's number and order of channels."""
        if pictures.shape[1] == 3 and self.channels == 1:
            grey = np.tensordot(pictures.astype(np.float32), LUMA, axes=(1, 0))
            return np.clip(grey.round(), 0, 255).astype(np.uint8)[:, None]
        if pictures.shape[1] == 1 and self.channels == 3:
            return np.repeat(pictures, 3, axis=1)
        return pictures[:, ::-1] if self.bgr else pictures

    def _levels(self, pictures: np.ndarray) -> np.ndarray:
        if len(self.table) == 1:
            return self.table[0][pictures]
        return np.stack([row[pictures[:, channel]] for channel, row in enumerate(self.table)], axis=1)

    def _signals(self, values: np.ndarray, subject: str) -> np.ndarray:
        if self.dtype not in FLOATS:
            raise InputError(f"{subject} takes {self.dtype}, but the samples are {values.dtype} signals: export it for these")
        if self.scaled or self.bgr:
            raise InputError(
                f"{subject}: --encoder.scale, mean, std and channel-order are for pictures, but the samples are signals: leave "
                "them out"
            )
        return values.astype(self.dtype, copy=False)

    def description(self) -> dict[str, Any]:
        """The report's entry."""
        return {
            "shape": [side if isinstance(side, int) else "any" for side in self.declared],
            "type": self.dtype,
            "layout": "nhwc" if self.last else "nchw",
            "size": list(self.size) if self.size else None,
            "channels": "bgr" if self.bgr else {1: "grey", 3: "rgb"}.get(self.channels, str(self.channels)),
            "black": [float(row[0]) for row in self.table],
            "white": [float(row[255]) for row in self.table],
            "batch": self.batch,
            "assumed": list(self.assumed),
        }


def encoder_input(subject: str, shape: tuple[Any, ...], dtype: str, settings: EncoderConfig) -> EncoderInput:
    """What the input of a file is, by its declared shape and type, and by the flags.

    Raises: InputError if they contradict each other, or leave a doubt that a flag must settle.
    """
    if len(shape) != 4:
        raise InputError(f"{subject} takes an input of shape {list(shape)[:10]}: it must be (B, C, H, W) or (B, H, W, C)")
    if dtype not in (*FLOATS, *INTEGERS):
        choices = ", ".join((*INTEGERS, *FLOATS))
        raise InputError(f"{subject} takes {dtype}: export it with an input of type {choices}")
    shape = tuple(side if isinstance(side, int) and side > 0 else "?" for side in shape)  # -1 also stands for any
    last = _channels_last(subject, shape, settings)
    height, width, channels = (shape[1], shape[2], shape[3]) if last else (shape[2], shape[3], shape[1])
    assumed: list[str] = []
    if not isinstance(channels, int):
        channels = 3
        assumed.append("it takes three channels, because its file names no number")
    size = _size(subject, (height, width), settings)
    batch = _batch(subject, shape[0], settings)
    _ensure_fits(subject, (batch or 1, *size, channels), dtype, settings)
    return _with_values(subject, dtype, settings, channels, assumed, declared=shape, last=last, size=size, batch=batch)


def black_box_input(subject: str, settings: EncoderConfig, given: tuple[str, ...]) -> EncoderInput:
    """What a black box gets: uint8 pictures (B, H, W, 3), RGB.

    given: fields of `EncoderConfig` that a flag has set.

    Raises: InputError if a flag says how to prepare the input of a file.
    """
    if given:
        flag = given[0].replace("_", "-")
        raise InputError(
            f"{subject} gets pictures as they are, uint8 (B, H, W, 3): leave out --encoder.{flag}, and prepare them in your program"
        )
    shape = ("B", *(settings.size or ("H", "W")), 3)
    table = np.arange(256, dtype=np.uint8)[None]
    assumed = () if settings.size else ("pictures have the size of the store (--encoder.size)",)
    size, batch = settings.size, settings.batch_size
    return EncoderInput(shape, "uint8", True, size, 3, batch, False, table, scaled=False, assumed=assumed)


def _with_values(subject: str, dtype: str, settings: EncoderConfig, channels: int, assumed: list[str], **more: Any) -> EncoderInput:
    """The input with the values of black and white, and the order of the colours."""
    if settings.channel_order is not None and channels == 1:
        raise InputError(f"{subject} takes one channel, so colours have no order: leave out --encoder.channel-order")
    if channels == 3 and settings.channel_order is None:
        assumed.append("its colours are red, green, blue (--encoder.channel-order)")
    if channels == 1:
        assumed.append("its only channel is the luminance")
    black, white = settings.scale or ((-1.0, 1.0) if dtype in FLOATS else (0.0, 255.0))
    if settings.scale is None and channels in COLOURS:
        assumed.append(f"black is {black:g} and white is {white:g} (--encoder.scale)")
    # in float32, in this order: black is exact, and -1 1 is v / 127.5 - 1, as exported privatizers are trained
    values = np.arange(256, dtype=np.float32) / np.float32(255 / (white - black)) + np.float32(black)
    for name in ("mean", "std"):
        if len(getattr(settings, name)) not in (0, 1, channels):
            raise InputError(
                f"encoder.{name} is {getattr(settings, name)!r}, but {subject} takes {channels} channels: give one number"
            )
    mean, std = (np.array(given or (neutral,), np.float32)[:, None] for given, neutral in ((settings.mean, 0), (settings.std, 1)))
    table = (values - mean) / std
    if dtype in INTEGERS:
        limits, whole = np.iinfo(dtype), table.round()
        if np.abs(table - whole).max() > 1e-3 or whole.min() < limits.min or whole.max() > limits.max:
            raise InputError(
                f"{subject} takes {dtype}, whole numbers from {limits.min} to {limits.max}, but black is {table.min():g} and white "
                f"{table.max():g}: set --encoder.scale to its own range, such as 0 255, without mean and std"
            )
        table = whole
    with np.errstate(over="ignore"):
        table = table.astype(dtype)
    if not np.isfinite(table).all():
        raise InputError(f"{subject} takes {dtype}, which cannot represent the values of --encoder.scale, mean and std")
    scaled, bgr = settings.scale is not None, settings.channel_order == "bgr"
    return EncoderInput(dtype=dtype, channels=channels, bgr=bgr, table=table, scaled=scaled, assumed=tuple(assumed), **more)


def _channels_last(subject: str, shape: tuple[Any, ...], settings: EncoderConfig) -> bool:
    """Whether the channels are the last axis.

    Raises: InputError if the shape leaves that open and no flag says it.
    """
    if settings.layout != "auto":
        return settings.layout == "nhwc"
    first, last = shape[1], shape[3]
    if first in COLOURS and last not in COLOURS:
        return False
    if last == 3 and first not in COLOURS:
        return True
    raise InputError(
        f"{subject} takes an input of shape {list(shape)}, from which the place of the channels is not clear: set "
        "--encoder.layout nchw or nhwc"
    )


def _size(subject: str, sides: tuple[Any, Any], settings: EncoderConfig) -> tuple[int, int]:
    """Height and width, from the file or from the flag.

    Raises: InputError if they differ, or if neither says it.
    """
    if settings.size is None:
        if all(isinstance(side, int) for side in sides):
            return sides
        names = " and ".join(name for name, side in zip(("height", "width"), sides, strict=True) if not isinstance(side, int))
        raise InputError(
            f"{subject} takes pictures of any {names}: set the size with which it is used, --encoder.size HEIGHT WIDTH"
        )
    for side, given in zip(sides, settings.size, strict=True):
        if isinstance(side, int) and side != given:
            height, width = (side if isinstance(side, int) else "any" for side in sides)
            raise InputError(
                f"encoder.size is {settings.size[0]} {settings.size[1]}, but {subject} takes pictures of {height} x {width}: leave "
                "the flag out, or set --encoder.layout"
            )
    return settings.size


def _ensure_fits(subject: str, shape: tuple[int, int, int, int], dtype: str, settings: EncoderConfig) -> None:
    """A file may declare any shape. Raises: InputError if no store has such pictures, or if a batch (B, H, W, C) exceeds the memory
    limit."""
    batch, height, width, channels = shape
    if max(height, width) > MAX_SIDE:
        raise InputError(
            f"{subject} takes pictures of {height} x {width}, but the sides of a store have at most {MAX_SIDE} pixels: set "
            "--encoder.layout if these are not height and width, or export it with a smaller size"
        )
    if (gigabytes := math.prod(shape) * np.dtype(dtype).itemsize / 2**30) > settings.memory_gb:
        raise InputError(
            f"{subject} takes batches of {batch} pictures with {channels} channels, which need {gigabytes:.3g} GB, more than "
            f"--encoder.memory-gb {settings.memory_gb:g}: export it with a smaller batch"
        )


def _batch(subject: str, declared: Any, settings: EncoderConfig) -> int | None:
    """Number of pictures in each call.

    Raises: InputError if the flag contradicts the file.
    """
    if not isinstance(declared, int):
        return settings.batch_size
    if settings.batch_size not in (None, declared):
        raise InputError(
            f"encoder.batch_size is {settings.batch_size}, but {subject} takes exactly {declared} pictures at a time: leave it out"
        )
    return declared

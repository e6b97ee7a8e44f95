"""A picture file, or values in memory, as the privatizer's input. docs/wire-format.md states the resampling exactly."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cpgan_ray.deploy.manifest import Preprocessing
from cpgan_ray.errors import InputError

Picture = str | Path | bytes | Image.Image | np.ndarray
"""A picture: a path, the bytes of a file, an opened picture, or the values themselves."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Formats that Pillow may open. Some of its other decoders start programs."""
MAX_FILE_BYTES, MAX_PIXELS = 64 << 20, 1 << 26
"""Larger files are not read, and pictures with more pixels are not decoded."""
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
"""Pillow's modes whose values have 8 bits or fewer."""


def prepare(pictures: list[Picture], how: Preprocessing) -> np.ndarray:
    """The privatizer's input (B, C, H, W), of type `how.dtype`.

    pictures: of any kind and size. An array is taken as it is, if it has the shape and type of the input: (C, H, W), or (H, W, C)
    for pictures; another array of type uint8, (H, W) or (H, W, 3), is a picture of any size.

    Raises: InputError that names the picture and the reason if one of them cannot be used.
    """
    inputs = np.empty((len(pictures), *how.shape), how.dtype)
    for i, picture in enumerate(pictures):
        name = str(picture) if isinstance(picture, str | Path) else f"picture {i}"
        try:
            inputs[i] = _input(picture, how)
        except InputError:
            raise
        except Exception as e:  # Pillow's decoders raise nearly every kind of error
            reason = (e.strerror if isinstance(e, OSError) and e.strerror else " ".join(str(e).split())[:200]) or type(e).__name__
            raise InputError(f"{name} cannot be used: {reason}: give a picture ({', '.join(FORMATS)})") from e
    return inputs


def _input(picture: Picture, how: Preprocessing) -> np.ndarray:
    """Raises: ValueError with the reason, or any exception of Pillow."""
    if isinstance(picture, np.ndarray):
        if picture.dtype == how.dtype and picture.shape == how.shape:
            return picture
        if how.kind == "picture" and picture.dtype == np.uint8 and picture.shape == (how.height, how.width, how.channels):
            return picture.transpose(2, 0, 1)
    if how.kind == "array":
        got = f"shape {picture.shape} and type {picture.dtype}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise ValueError(f"it is of {got}; this privatizer takes arrays {how.shape} of type {how.dtype}")
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8:
            raise ValueError(f"it is an array of type {picture.dtype}; pictures are uint8")
        return cut(Image.fromarray(picture), how)
    if isinstance(picture, Image.Image):
        return cut(picture, how)
    content = picture if isinstance(picture, bytes) else _read(Path(picture).expanduser())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return cut(opened, how)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    return content


def cut(picture: Image.Image, how: Preprocessing) -> np.ndarray:
    """The largest centred rectangle of the input's shape, times `crop`, upright, resized: uint8 (C, H, W).

    Raises: ValueError if it has too many pixels, none, or values of more than 8 bits; any exception of Pillow.
    """
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"it has {picture.width} x {picture.height} pixels, the limit is {MAX_PIXELS}")
    if not picture.width * picture.height:
        raise ValueError("it has no pixels")
    if picture.mode not in EIGHT_BIT:
        raise ValueError(f"its values have more than 8 bits (mode {picture.mode}): convert it to 8 bits")
    upright = ImageOps.exif_transpose(picture).convert("RGB" if how.channels == 3 else "L")
    if upright.width * how.height <= upright.height * how.width:
        width, height = how.crop * upright.width, how.crop * (upright.width * how.height / how.width)
    else:
        width, height = how.crop * (upright.height * how.width / how.height), how.crop * upright.height
    left, top = (upright.width - width) / 2, (upright.height - height) / 2
    box = (left, top, left + width, top + height)
    pixels = np.asarray(upright.resize((how.width, how.height), Image.Resampling.BICUBIC, box=box))
    return pixels.reshape(how.height, how.width, how.channels).transpose(2, 0, 1)

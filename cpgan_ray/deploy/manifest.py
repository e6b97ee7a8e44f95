"""The manifest of a bundle, `manifest.json`: what the privatizer takes, what the answers mean, and the files with their SHA-256.

docs/wire-format.md describes every field.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FORMAT = 1
"""Version of the bundle's format."""
NOISY_FORMAT = 2
"""The same with noise, which the client adds: a reader that does not know `noise` must refuse the bundle."""
SHA256 = re.compile("[0-9a-f]{64}")
MAX_SIDE, MAX_LABELS, MAX_VALUES, MAX_NAME = 8192, 10_000, 10_000, 200


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the privatizer's input."""

    kind: Literal["picture", "array"]
    """`array`: the values of the prepared store (signals, vectors), which no picture file holds."""
    channels: int
    """3 for RGB, 1 for grey; for arrays any number."""
    height: int
    width: int
    crop: float
    """The largest centred rectangle of the shape `width` x `height` is cut from the picture, times this factor."""
    dtype: Literal["uint8", "float32"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one input."""
        return (self.channels, self.height, self.width)

    def as_json(self) -> dict[str, Any]:
        values = {"kind": self.kind, "dtype": self.dtype, "layout": "CHW"}
        values |= {"channels": self.channels, "height": self.height, "width": self.width}
        if self.kind == "picture":
            values |= {"color": "RGB" if self.channels == 3 else "L", "orientation": "EXIF", "crop": self.crop}
            values |= {"crop_position": "centre", "resampling": "Pillow bicubic"}
        return values


@dataclass(frozen=True)
class Label:
    """A label that Bob answers, and the logits that belong to it: one for two values, else one for each value."""

    name: str
    values: tuple[str, ...]
    first_logit: int

    @property
    def binary(self) -> bool:
        """Whether it has one logit, which is positive for the second of two values."""
        return len(self.values) == 2

    @property
    def logits(self) -> slice:
        return slice(self.first_logit, self.first_logit + (1 if self.binary else len(self.values)))

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "values": list(self.values), "logits": [self.logits.start, self.logits.stop]}


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of each number of a code, which the client draws again for each picture."""

    std: float
    clip: float
    """The privatizer returns numbers in [-clip, clip]."""


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    name: str
    k: int
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    files: Mapping[str, tuple[int, str]]
    """Name -> size in bytes and SHA-256."""
    noise: Noise | None
    """What the client adds to a code before it is rounded; None: nothing."""
    values: Mapping[str, Any]
    """The whole content, also what only people read."""

    @property
    def num_logits(self) -> int:
        return self.labels[-1].logits.stop


def manifest_of(values: Any) -> Manifest:
    """Check the content of a `manifest.json`.

    Raises: ValueError with the field and the reason.
    """
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    if values.get("format") not in (FORMAT, NOISY_FORMAT):
        raise ValueError(f"its format is {str(values.get('format'))[:40]!r}, this version reads {FORMAT} and {NOISY_FORMAT}")
    return Manifest(
        name=_text(values, "name"),
        k=_whole(values, "k", 1, 1 << 20),
        preprocessing=_preprocessing(values.get("preprocessing")),
        labels=_labels(values.get("labels")),
        files=_files(values.get("files")),
        noise=_noise(values),
        values=values,
    )


def _preprocessing(values: Any) -> Preprocessing:
    if not isinstance(values, dict):
        raise ValueError("preprocessing is missing")
    kind, dtype = values.get("kind"), values.get("dtype")
    if kind not in ("picture", "array") or dtype not in ("uint8", "float32") or values.get("layout") != "CHW":
        raise ValueError("preprocessing has an unknown kind, dtype or layout")
    crop = values.get("crop", 1.0)
    if type(crop) not in (int, float) or not 0 < crop <= 1:
        raise ValueError("preprocessing.crop is not a number in (0, 1]")
    sides = {name: _whole(values, name, 1, MAX_SIDE) for name in ("channels", "height", "width")}
    result = Preprocessing(kind=kind, dtype=dtype, crop=float(crop), **sides)
    if kind == "picture" and (sides["channels"] not in (1, 3) or dtype != "uint8"):
        raise ValueError("preprocessing: pictures have 1 or 3 channels and dtype uint8")
    for name in ("color", "orientation", "crop_position", "resampling"):
        if kind == "picture" and values.get(name) != result.as_json()[name]:
            raise ValueError(
                f"preprocessing.{name} is {str(values.get(name))[:40]!r}, this version knows {result.as_json()[name]!r}"
            )
    return result


def _labels(values: Any) -> tuple[Label, ...]:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_LABELS:
        raise ValueError(f"labels are not a list of 1 to {MAX_LABELS}")
    labels: list[Label] = []
    for value in values:
        if not isinstance(value, dict) or not isinstance(names := value.get("values"), list) or not 2 <= len(names) <= MAX_VALUES:
            raise ValueError(f"a label has no list of 2 to {MAX_VALUES} values")
        if not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in names) or len(set(names)) < len(names):
            raise ValueError("the values of a label are not different texts")
        label = Label(_text(value, "name"), tuple(names), labels[-1].logits.stop if labels else 0)
        if value.get("logits") != [label.logits.start, label.logits.stop]:
            raise ValueError(f"label {label.name[:80]!r} does not have the logits that follow the label before it")
        labels.append(label)
    if len({label.name for label in labels}) < len(labels):
        raise ValueError("two labels have the same name")
    return tuple(labels)


def _files(values: Any) -> dict[str, tuple[int, str]]:
    if not isinstance(values, dict):
        raise ValueError("files are missing")
    files: dict[str, tuple[int, str]] = {}
    for name, entry in values.items():
        if not isinstance(entry, dict) or not isinstance(sha := entry.get("sha256"), str) or not SHA256.fullmatch(sha):
            raise ValueError(f"files: {name[:80]!r} has no SHA-256")
        files[name] = (_whole(entry, "bytes", 0, 1 << 40), sha)
    return files


def _noise(values: Mapping[str, Any]) -> Noise | None:
    noise = values.get("noise")
    if (values["format"] == NOISY_FORMAT) != (noise is not None):
        raise ValueError(f"format {NOISY_FORMAT}, and only that, has noise")
    if noise is None:
        return None
    if not isinstance(noise, dict) or noise.get("kind") != "gaussian":
        raise ValueError("noise is of an unknown kind")
    return Noise(_positive(noise, "std"), _positive(noise, "clip"))


def _positive(values: Mapping[str, Any], name: str) -> float:
    value: Any = values.get(name)
    if type(value) not in (int, float) or not 0 < value < 1e6:
        raise ValueError(f"noise.{name} is not a positive number")
    return float(value)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise ValueError(f"{name} is not a text of 1 to {MAX_NAME} characters")
    return value


def _whole(values: Mapping[str, Any], name: str, lowest: int, highest: int) -> int:
    value = values.get(name)
    if type(value) is not int or not lowest <= value <= highest:
        raise ValueError(f"{name} is not a whole number from {lowest} to {highest}")
    return value

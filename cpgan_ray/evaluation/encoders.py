"""Encoders as files: torch.export programs (`.pt2`) and ONNX models (`.onnx`), ours and other people's.

An encoder takes what lies in the store, (B, C, H, W): uint8 pictures or float32 signals, and returns codes (B, k). One that takes
float32 pictures is taken to want them scaled to [-1, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpgan_ray.data import Dataset, Split
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.programs import Unsafe, load_program
from cpgan_ray.evaluation.protocol import Codes

BLOCK = 250


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder, open."""

    path: Path
    image_shape: tuple[int, int, int]  # (H, W, C) that it takes
    encode: Callable[[np.ndarray], np.ndarray]  # (B, C, H, W) as stored -> float32 (B, k)


def open_encoder(path: Path) -> Encoder:
    """Raises: InputError where the file is missing, is neither kind, or takes something else than pictures."""
    if not path.is_file():
        raise InputError(f"encoder {path} is no file: give a torch.export .pt2 or an ONNX file")
    openers = {".pt2": _open_program, ".onnx": _open_onnx}
    if path.suffix not in openers:
        raise InputError(f"encoder {path} ends in {path.suffix!r}: give a torch.export .pt2 or an ONNX file")
    return openers[path.suffix](path)


def open_program(path: Path, *, what: str) -> torch.export.ExportedProgram:
    """Raises: InputError where the file is damaged, or holds anything that could be made to run."""
    try:
        return load_program(path)
    except Unsafe as e:
        raise InputError(f"{what} {path} is not loaded: {e}") from e
    except Exception as e:  # torch raises whatever the damaged part leads to
        raise InputError(f"{what} {path} cannot be read as a torch.export program ({type(e).__name__}): export it again") from e


def _open_program(path: Path) -> Encoder:
    program = open_program(path, what="encoder")
    examples: tuple[Any, ...] = (program.example_inputs or ((), {}))[0]
    if len(examples) != 1 or not isinstance(examples[0], torch.Tensor):
        raise InputError(f"encoder {path} takes {len(examples)} inputs: export one that takes pictures (B, 3, H, W) alone")
    shape = _image_shape(path, tuple(examples[0].shape))
    raw = _takes_raw(path, str(examples[0].dtype).removeprefix("torch."))
    module = program.module(check_guards=False)

    def encode(pictures: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.require(pictures, requirements=["C", "W"]))
        with torch.no_grad():
            return module(x if raw or x.dtype != torch.uint8 else x.float() / 127.5 - 1).float().numpy()

    return Encoder(path, shape, encode)


def _open_onnx(path: Path) -> Encoder:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's errors have no common base
        raise InputError(f"encoder {path} cannot be read as an ONNX model ({type(e).__name__}): export it again") from e
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InputError(f"encoder {path} takes {len(inputs)} inputs: export one that takes pictures (B, 3, H, W) alone")
    shape = _image_shape(path, tuple(inputs[0].shape))
    name, kind = inputs[0].name, str(inputs[0].type)
    raw = _takes_raw(path, {"tensor(float)": "float32", "tensor(uint8)": "uint8"}.get(kind, kind))

    def encode(pictures: np.ndarray) -> np.ndarray:
        x: Any = pictures if raw or pictures.dtype != np.uint8 else pictures.astype(np.float32) / 127.5 - 1
        return np.asarray(session.run(None, {name: x})[0], np.float32)

    return Encoder(path, shape, encode)


def _image_shape(path: Path, shape: tuple[Any, ...]) -> tuple[int, int, int]:
    if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
        raise InputError(f"encoder {path} takes an input of shape {list(shape)}: it must be (B, C, H, W) with fixed C, H and W")
    return (int(shape[2]), int(shape[3]), int(shape[1]))


def _takes_raw(path: Path, dtype: str) -> bool:
    """Whether it takes the pictures' bytes as they are; else it takes them scaled to [-1, 1]."""
    if dtype not in ("uint8", "float32"):
        raise InputError(f"encoder {path} takes {dtype}: it must take uint8 pictures, or float32 ones in [-1, 1]")
    return dtype == "uint8"


def encode_split(encoder: Encoder, split: Split, *, mirrored: bool = False) -> np.ndarray:
    """Codes (N, k) of a whole split, of its mirrored pictures if wanted.

    Raises: InputError where the pictures have another size than it takes, or its codes are not (B, k) or not finite.
    """
    if split.image_shape != encoder.image_shape:
        has, wanted = split.image_shape, encoder.image_shape
        raise InputError(
            f"encoder {encoder.path} takes pictures of {wanted}, the store has {has}: set --data.image-size {wanted[0]}, or "
            "give the data set that it was made for"
        )
    parts = []
    for block in split.iter_batches(BLOCK):
        pictures = block[:, :, ::-1] if mirrored else block
        try:
            z = encoder.encode(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        except Exception as e:
            raise InputError(
                f"encoder {encoder.path} fails on {len(block)} pictures ({type(e).__name__}): export a dynamic batch"
            ) from e
        if z.shape[0] != len(block) or z.ndim < 2:
            raise InputError(f"encoder {encoder.path} answers {len(block)} pictures with shape {z.shape}: it must be (B, k)")
        parts.append(z.reshape(len(block), -1))
    codes = np.concatenate(parts)
    if not np.isfinite(codes).all():
        raise InputError(f"encoder {encoder.path} answers codes that are not finite on {split.path.name}")
    return codes


def encode_all(encoder: Encoder, dataset: Dataset) -> Codes:
    """Codes of all splits, and of the mirrored pictures of those an attack is fitted on."""
    codes = {name: encode_split(encoder, getattr(dataset, name)) for name in ("train", "val", "test")}
    if not dataset.nature.mirrored:
        return codes
    return codes | {f"{name}_mirrored": encode_split(encoder, getattr(dataset, name), mirrored=True) for name in ("train", "val")}

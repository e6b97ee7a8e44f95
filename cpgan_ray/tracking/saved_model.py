"""An ONNX model in MLflow's own format, for `mlflow models serve`."""

from pathlib import Path

import numpy as np
import onnx
from mlflow import onnx as mlflow_onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec


def save_onnx(content: bytes, folder: Path, *, k: int, num_logits: int) -> None:
    """Write a utility head, z (B, k) float32 -> logits (B, num_logits) float32, as a model of MLflow into a new folder."""
    numbers = np.dtype(np.float32)
    signature = ModelSignature(
        Schema([TensorSpec(numbers, (-1, k), "z")]), Schema([TensorSpec(numbers, (-1, num_logits), "logits")])
    )
    model = onnx.load_model_from_string(content)
    # Without a list MLflow would start a process to find out what the model imports.
    mlflow_onnx.save_model(model, folder, signature=signature, pip_requirements=["onnxruntime"], save_as_external_data=False)

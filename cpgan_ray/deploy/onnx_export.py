"""Exported torch programs as ONNX models: one file with a dynamic batch, standard operators, small weights, no metadata.

torch's exporter folds batch norms into convolutions. It writes stack traces with the paths of the machine into the model; they are
removed, together with the names of layers, so that the same weights give the same bytes on any machine.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cpgan_ray.errors import InputError

OPSET = 20
"""Version of the standard operators. onnxruntime 1.17 and its build for browsers know it."""
Weights = Literal["float32", "float16", "int8"]
MIN_PACKED = 64
"""Tensors with fewer numbers stay float32."""
AXIS = {"Conv": 0, "Gemm": 0, "MatMul": 1}
"""Operator -> the axis of its weights along which each output has its own scale. `Gemm` holds them transposed (`transB`)."""


def onnx_model(program: torch.export.ExportedProgram, *, input_name: str, output_name: str, weights: Weights) -> bytes:
    """The ONNX model of a program with one input (B, ...) and one output (B, ...), with a dynamic batch.

    weights: how numbers are stored. The model computes in float32 in any case.

    Raises: InputError if a package is missing; RuntimeError if the program has an operator that ONNX does not have.
    """
    try:
        with quiet():
            converted: Any = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=({0: "batch"},),
                opset_version=OPSET,
                verbose=False,
            )
    except ImportError as e:
        raise InputError(f"package {e.name or 'onnxscript'} is missing: install the extra, pip install 'cpgan_ray[deploy]'") from e
    except torch.onnx.errors.OnnxExporterError as e:
        raise RuntimeError(f"torch cannot convert the program to ONNX ({type(e).__name__})") from e
    model: ModelProto = converted.model_proto
    strip(model)
    if weights != "float32":
        pack_weights(model, weights)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings about its own deprecations, and without its lines about a package that it does not need."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def strip(model: ModelProto) -> None:
    """Remove everything that does not take part in the computation, and give nodes and tensors short names."""
    model.producer_name = model.producer_version = model.doc_string = model.domain = ""
    graph = model.graph
    graph.name, graph.doc_string = "main", ""
    for holder in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        holder.ClearField("metadata_props")
        if hasattr(holder, "doc_string"):
            holder.doc_string = ""
    graph.ClearField("value_info")
    outside = {value.name for value in (*graph.input, *graph.output)} | {""}
    short: dict[str, str] = {}

    def rename(name: str) -> str:
        return name if name in outside else short.setdefault(name, f"t{len(short)}")

    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        for names in (node.input, node.output):
            names[:] = [rename(name) for name in names]


def pack_weights(model: ModelProto, weights: Weights) -> None:
    """Store large float32 tensors as float16, or as int8 with a scale for each output of the layer. A node in front of their use
    turns them back into float32. A tensor that would lose its range stays as it is."""
    graph, nodes = model.graph, []
    users = {name: node for node in graph.node for name in node.input}
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < MIN_PACKED or tensor.name not in users:
            continue
        axis = _scale_axis(users[tensor.name], values) if weights == "int8" else None
        made = _as_int8(tensor.name, values, axis) if axis is not None else _as_float16(tensor.name, values)
        if made is None:
            continue
        stored, node = made
        graph.initializer.remove(tensor)
        graph.initializer.extend(stored)
        nodes.append(node)
    rest = list(graph.node)
    graph.ClearField("node")
    graph.node.extend([*nodes, *rest])


def _scale_axis(user: onnx.NodeProto, values: np.ndarray) -> int | None:
    """The axis of the outputs; None for tensors that are not the weights of a layer."""
    if user.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in user.attribute):
        return None
    return AXIS.get(user.op_type) if values.ndim >= 2 else None


def _as_float16(name: str, values: np.ndarray) -> tuple[list[TensorProto], onnx.NodeProto] | None:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        return None
    stored = numpy_helper.from_array(half, f"{name}_half")
    return [stored], helper.make_node("Cast", [stored.name], [name], name=f"{name}_cast", to=TensorProto.FLOAT)


def _as_int8(name: str, values: np.ndarray, axis: int) -> tuple[list[TensorProto], onnx.NodeProto]:
    largest = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis))
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    whole = np.clip(np.rint(values / scale.reshape(shape)), -127, 127).astype(np.int8)
    stored = [numpy_helper.from_array(whole, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]
    return stored, helper.make_node("DequantizeLinear", [t.name for t in stored], [name], name=f"{name}_float", axis=axis)

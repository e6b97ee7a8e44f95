"""Check of ONNX models of unknown origin before onnxruntime reads them: only standard operators, no state, one file."""

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from cpgan_ray.evaluation.encoders.programs import Unsafe

STANDARD = ("", "ai.onnx")
"""The two names of the domain of standard operators."""
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
CONTROL = {"If", "Loop", "Scan", "SequenceMap"}
STATEFUL = {"SplitToSequence", "ConcatFromSequence", "CausalConvWithState", "LinearAttention", "TensorScatter", "ImageDecoder"}
MAX_DEPTH = 20
"""Maximal nesting depth of graphs."""


def checked_model(content: bytes, *, stochastic: bool) -> bytes:
    """Check a model, and return it without inputs that it holds itself or does not use: some tools list weights among the inputs.

    stochastic: whether it may draw random numbers.

    Raises: Unsafe with a message for the user; for a damaged file, any exception of onnx.
    """
    model = onnx.load_model_from_string(content)
    local = {(function.domain, function.name) for function in model.functions}
    for tensor in _tensors(model):
        _check_tensor(tensor, len(content))
    always_false = _always_false(model)
    top = {id(node) for node in model.graph.node}
    for node in _nodes(model):
        if (node.domain, node.op_type) in local:
            continue
        if node.domain not in STANDARD:
            raise Unsafe(f"its operator {_quoted(node)} of the domain {node.domain[:80]!r} is not a standard ONNX operator")
        _check_node(node, stochastic, always_false if id(node) in top else set())
    held = {tensor.name for tensor in model.graph.initializer}
    used = {name for node in _nodes(model) for name in node.input} | {value.name for value in model.graph.output}
    inputs = [value for value in model.graph.input if value.name not in held and value.name in used]
    if not inputs or len(inputs) == len(model.graph.input):
        return content
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model.SerializeToString()


def _check_node(node: NodeProto, stochastic: bool, always_false: set[str]) -> None:
    kind, attributes = node.op_type, {a.name: a for a in node.attribute}
    if kind in CONTROL or kind in STATEFUL or kind.startswith(("Sequence", "Optional")):
        raise Unsafe(f"its operator {_quoted(node)} can have a state or a loop, which no encoder of pictures needs")
    training = (
        ("training_mode" in attributes and attributes["training_mode"].i)
        or (kind in ("Dropout", "BatchNormalization") and "is_test" in attributes and not attributes["is_test"].i)
        or (kind == "Dropout" and len(node.input) > 2 and node.input[2] and node.input[2] not in always_false)
    )
    if training and not (stochastic and kind == "Dropout"):
        raise Unsafe(f"its operator {_quoted(node)} is in training mode: export the network in eval mode")
    if kind in RANDOM and not stochastic:
        raise Unsafe(f"its operator {_quoted(node)} draws random numbers: declare a stochastic release with --encoder.stochastic")
    if (kind in RANDOM or training) and "seed" in attributes:
        raise Unsafe(f"its operator {_quoted(node)} has a fixed seed, so its noise is predictable: export it without the seed")


def _check_tensor(tensor: TensorProto, size: int) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        raise Unsafe(f"its tensor {tensor.name[:80]!r} is in another file, {location[:80]!r}: save the model as one file")
    elements = 1
    for side in tensor.dims:
        elements *= max(side, 0)
    if elements > 2 * size:  # the smallest type has two elements per byte
        raise Unsafe(f"its tensor {tensor.name[:80]!r} declares {elements} elements in a file of {size} bytes")


def _quoted(node: NodeProto) -> str:
    return repr(node.op_type[:80])


def _always_false(model: ModelProto) -> set[str]:
    """Names of the scalar values of the outer graph that are always false."""
    constants = [(t.name, t) for t in model.graph.initializer]
    constants += [(n.output[0], a.t) for n in model.graph.node if n.op_type == "Constant" and n.output for a in n.attribute]
    single = [(name, t) for name, t in constants if t.data_type == TensorProto.BOOL and not t.dims]
    fixed = {name for name, t in single if not onnx.numpy_helper.to_array(t).item()}
    return fixed - {value.name for value in model.graph.input}


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from _inner(model.graph.node)
    for function in model.functions:
        yield from _inner(function.node)


def _inner(nodes: Iterable[NodeProto], depth: int = 0) -> Iterator[NodeProto]:
    if depth > MAX_DEPTH:
        raise Unsafe(f"its graphs are nested more than {MAX_DEPTH} deep")
    for node in nodes:
        yield node
        for graph in _graphs(node):
            yield from _inner(graph.node, depth + 1)


def _graphs(node: NodeProto) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """All tensors with data: initializers, also sparse ones, and tensors in attributes."""
    graphs = [model.graph]
    for node in _nodes(model):
        graphs += _graphs(node)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (*attribute.sparse_tensors, *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ())):
                yield from (sparse.values, sparse.indices)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)

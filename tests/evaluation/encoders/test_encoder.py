"""Tests of encoders in files: their input and output, and the errors for bad files."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cpgan_ray.config import AttackConfig, Config, EncoderConfig
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.batching import augment
from cpgan_ray.data.code_sets import set_batch
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import BLOCK, encode_all, open_encoder

K = 5
SIDE = 16
WEIGHT = np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, K)).astype(np.float32)


class Linear(nn.Module):
    """Pictures (B, 3, H, W) -> the product of their flattened values with WEIGHT."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().flatten(1) @ torch.from_numpy(WEIGHT[: x[0].numel()])


class Through(nn.Module):
    """A module from any function of tensors."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Any:
        return self.function(*x)


def export(
    path: Path, module: nn.Module, *shape: int, dtype: torch.dtype = torch.float32, inputs: int = 1, dynamic: bool = True
) -> Path:
    """A torch.export program; `shape` is that of a picture."""
    examples = tuple(torch.zeros(2, *shape, dtype=dtype) for _ in range(inputs))
    batch = ({0: torch.export.Dim("batch", min=1)},)
    sizes = ((batch * inputs,) if isinstance(module, Through) else batch * inputs) if dynamic else None
    torch.export.save(torch.export.export(module, examples, dynamic_shapes=sizes), path)
    return path


def write_onnx(
    path: Path,
    *shape: int | str,
    kind: int = TensorProto.FLOAT,
    batch: int | str = "batch",
    inputs: tuple[str, ...] = ("x",),
    reshaped: tuple[int, ...] = (),
) -> Path:
    """An ONNX model: Linear, as Cast, Flatten and Gemm. reshaped: a shape that the values get in between."""
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["z"]),
    ]
    if len(inputs) > 1:
        nodes[0:1] = [
            helper.make_node("Add", list(inputs), ["sum"]),
            helper.make_node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
        ]
    if reshaped:
        constant = helper.make_tensor("shape", TensorProto.INT64, [len(reshaped)], reshaped)
        nodes[1:2] = [
            helper.make_node("Constant", [], ["shape"], value=constant),
            helper.make_node("Reshape", ["float", "shape"], ["other"]),
            helper.make_node("Flatten", ["other"], ["flat"]),
        ]
    taken = [helper.make_tensor_value_info(name, kind, [batch, *shape]) for name in inputs]
    given = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch, K])]
    graph = helper.make_graph(nodes, "encoder", taken, given, [numpy_helper.from_array(WEIGHT, "weight")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


KINDS: dict[str, Callable[[Path], Path]] = {
    "float32 program": lambda folder: export(folder / "e.pt2", Linear(), 3, SIDE, SIDE),
    "uint8 program": lambda folder: export(folder / "e.pt2", Linear(), 3, SIDE, SIDE, dtype=torch.uint8),
    "float32 onnx": lambda folder: write_onnx(folder / "e.onnx", 3, SIDE, SIDE),
    "uint8 onnx": lambda folder: write_onnx(folder / "e.onnx", 3, SIDE, SIDE, kind=TensorProto.UINT8),
}


@pytest.fixture
def dataset(tiny: Callable[..., Config]) -> Dataset:
    return load(tiny())


def by_hand(pictures: np.ndarray, *, raw: bool) -> np.ndarray:
    """Linear's codes of pictures as stored, in numpy."""
    pictures = pictures.astype(np.float64)
    values = pictures if raw else pictures / 127.5 - 1
    return values.transpose(0, 3, 1, 2).reshape(len(values), -1) @ WEIGHT


@pytest.mark.parametrize("kind", KINDS)
def test_encode_all_matches_numpy_for_each_input_type(kind, dataset, tmp_path):
    encoder = open_encoder(KINDS[kind](tmp_path))
    assert encoder.image_shape == (SIDE, SIDE, 3)
    assert len(dataset.train) > BLOCK, "more than one block"
    attacks = AttackConfig(num_shifted=2, max_shift_px=2)
    codes = encode_all(encoder, dataset, attacks)
    assert codes.keys() - encode_all(encoder, dataset).keys() == {
        "train_shifted1",
        "val_shifted1",
        "train_shifted2",
        "val_shifted2",
    }
    for name, z in codes.items():
        split = getattr(dataset, name.partition("_")[0])
        pictures = split.take(np.arange(len(split)))
        if name.endswith("_mirrored"):
            pictures = pictures[:, :, ::-1]
        if "shifted" in name:
            pictures = augment(pictures, set_batch(name, dataset, shift=2))
        expected = by_hand(pictures, raw="uint8" in kind)
        assert z.dtype == np.float32
        assert z.shape == expected.shape == (len(split), K)
        assert np.abs(z - expected).max() < 1e-5 * np.abs(expected).max(), name


def test_encode_all_flattens_codes(dataset, tmp_path):
    pool = Through(lambda x: nn.functional.avg_pool2d(x, 8))
    codes = encode_all(open_encoder(export(tmp_path / "e.pt2", pool, 3, SIDE, SIDE)), dataset)["test"]
    pictures = dataset.test.take(np.arange(len(dataset.test))).astype(np.float64) / 127.5 - 1
    pooled = pictures.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    assert codes == pytest.approx(pooled.reshape(len(pooled), 12), abs=1e-5)


def test_encode_all_reduces_long_codes_and_says_so(dataset, tmp_path):
    flat = Through(lambda x: x.flatten(1))
    encoder = open_encoder(export(tmp_path / "e.pt2", flat, 3, SIDE, SIDE))
    encoder.check((SIDE, SIDE))
    codes = encode_all(encoder, dataset, max_numbers=100)
    assert {z.shape[1] for z in codes.values()} == {100}
    assert (encoder.description()["reduced_to"], encoder.k) == (100, 3 * SIDE * SIDE)
    assert encode_all(encoder, dataset, max_numbers=768)["test"].shape[1] == 768


def text(path: Path) -> Path:
    path.write_text("this is no model " * 50)
    return path


def torn(path: Path) -> Path:
    whole = KINDS["float32 onnx" if path.suffix == ".onnx" else "float32 program"](path.parent).rename(path)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "e.pt2", "is not a file"),
    "a folder": (lambda folder: folder, "is not a file"),
    "another suffix": (lambda folder: text(folder / "e.pth"), r"ends in '\.pth'"),
    "no suffix": (lambda folder: text(folder / "e"), "ends in ''"),
    "torn program": (lambda folder: torn(folder / "e.pt2"), "cannot be read as a torch.export program"),
    "text for a program": (lambda folder: text(folder / "e.pt2"), "cannot be read as a torch.export program"),
    "torn onnx": (lambda folder: torn(folder / "e.onnx"), "cannot be read as an ONNX model"),
    "text for onnx": (lambda folder: text(folder / "e.onnx"), "cannot be read as an ONNX model"),
    "two inputs": (
        lambda folder: export(folder / "e.pt2", Through(lambda a, b: (a + b).flatten(1)), 3, SIDE, SIDE, inputs=2),
        "takes 2 inputs",
    ),
    "two inputs of onnx": (lambda folder: write_onnx(folder / "e.onnx", 3, SIDE, SIDE, inputs=("x", "y")), "takes 2 inputs"),
    "flat pictures": (lambda folder: export(folder / "e.pt2", Linear(), 3 * SIDE * SIDE), r"shape \['\?', 768\]"),
    "any size": (lambda folder: write_onnx(folder / "e.onnx", 3, "height", "width"), "any height and width: .*--encoder.size"),
    "booleans": (
        lambda folder: export(folder / "e.pt2", Linear(), 3, SIDE, SIDE, dtype=torch.bool),
        "takes bool: .*uint8.*float32",
    ),
    "booleans in onnx": (lambda folder: write_onnx(folder / "e.onnx", 3, SIDE, SIDE, kind=TensorProto.BOOL), "takes bool: "),
    "channels in doubt": (
        lambda folder: write_onnx(folder / "e.onnx", 3, "h", 3),
        r"shape \['\?', 3, '\?', 3\], .*--encoder.layout",
    ),
    "no channel axis": (lambda folder: write_onnx(folder / "e.onnx", "h", "w", 4), r"is not clear: set --encoder.layout"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_open_encoder_bad_file_raises_with_reason(case, tmp_path, caplog):
    make, message = UNREADABLE[case]
    path = make(tmp_path)
    caplog.clear()
    with pytest.raises(InputError) as raised:
        open_encoder(path)
    assert re.fullmatch(rf"encoder {re.escape(str(path))} .*{message}.*", str(raised.value))
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == [], (
        "torch logs a traceback before it raises; one line is enough"
    )


UNUSABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "fixed in a reshape": (
        lambda folder: write_onnx(folder / "e.onnx", 3, SIDE, SIDE, reshaped=(3, -1)),
        r"fails on 250 pictures .*it got float32 \(250, 3, 16, 16\); export a dynamic batch, or try --encoder.batch-size 1",
    ),
    "no numbers": (
        lambda folder: export(folder / "e.pt2", Through(lambda x: x.flatten(1)[:, :0]), 3, SIDE, SIDE),
        r"returns no numbers: it must return codes \(B, k\)",
    ),
    "one code for all": (
        lambda folder: export(folder / "e.pt2", Through(lambda x: x.flatten(1).mean(0, keepdim=True)), 3, SIDE, SIDE),
        r"returns shape \(1, 768\) for 250 pictures in output 'z': it must be \(B, k\)",
    ),
    "not a number": (
        lambda folder: export(folder / "e.pt2", Through(lambda x: (x.flatten(1) - 2).log()), 3, SIDE, SIDE),
        "returns codes that are not finite",
    ),
    "endless": (
        lambda folder: export(folder / "e.pt2", Through(lambda x: x.flatten(1) / 0), 3, SIDE, SIDE),
        "returns codes that are not finite",
    ),
    "another size": (
        lambda folder: export(folder / "e.pt2", Linear(), 3, 8, 8),
        "takes pictures of 8 x 8, the store has 16 x 16: set --data.image-size 8",
    ),
    "not square": (
        lambda folder: export(folder / "e.pt2", Linear(), 3, 8, SIDE),
        "takes pictures of 8 x 16, the store has 16 x 16: set --data.image-size 8 --data.image-width 16",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_encode_all_failing_encoder_raises_with_reason(case, dataset, tmp_path):
    make, message = UNUSABLE[case]
    encoder = open_encoder(make(tmp_path))
    with pytest.raises(InputError, match=rf"{re.escape(encoder.subject)} {message}"):
        encode_all(encoder, dataset)


# -------------------------------------------------------------------------------------------------------------- several outputs


class Outputs(nn.Module):
    """The left half of a picture's values, the right half in float64, their mean as one number."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        flat = x.float().flatten(1)
        return {"left": flat[:, :384], "rest": (flat[:, 384:].double(), x.float().mean((1, 2, 3)))}


def saved_onnx(path: Path, graph: onnx.GraphProto, **more: Any) -> Path:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9, **more), path)
    return path


PIXELS = np.random.default_rng(1).integers(0, 256, (7, 3, SIDE, SIDE)).astype(np.uint8)


def scaled(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1) / 127.5 - 1


def test_encode_concatenates_all_or_selected_outputs(tmp_path):
    path = export(tmp_path / "e.pt2", Outputs(), 3, SIDE, SIDE)
    encoder = open_encoder(path)
    codes = encoder.encode(PIXELS)
    assert encoder.outputs == [("left", 384), ("rest.0", 384), ("rest.1", 1)]
    np.testing.assert_allclose(codes[:, :768], scaled(PIXELS), atol=1e-6)
    np.testing.assert_allclose(codes[:, 768], scaled(PIXELS).mean(axis=1), atol=1e-5)
    assert codes.dtype == np.float32
    chosen = open_encoder(path, EncoderConfig(outputs=("rest.1", "left")))
    np.testing.assert_array_equal(chosen.encode(PIXELS), np.concatenate([codes[:, 768:], codes[:, :384]], axis=1))
    about = chosen.description()
    assert about["outputs"] == [{"name": "rest.1", "size": 1}, {"name": "left", "size": 384}]
    assert about["left_out"] == ["rest.0"]


def test_encode_onnx_concatenates_outputs_of_any_name(tmp_path):
    path = tmp_path / "e.onnx"
    nodes = [
        helper.make_node("Flatten", ["x"], ["lambda"]),
        helper.make_node("ReduceMean", ["x"], ["a b"], axes=[1, 2, 3], keepdims=0),
    ]
    nodes += [helper.make_node("Cast", ["lambda"], ["half"], to=TensorProto.FLOAT16)]
    given = [
        helper.make_tensor_value_info("lambda", TensorProto.FLOAT, ["batch", 768]),
        helper.make_tensor_value_info("a b", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["batch", 768]),
    ]
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    saved_onnx(path, helper.make_graph(nodes, "g", [taken], given))
    encoder = open_encoder(path)
    codes = encoder.encode(PIXELS)
    assert encoder.outputs == [("lambda", 768), ("a b", 1), ("half", 768)]
    np.testing.assert_allclose(codes[:, :768], scaled(PIXELS), atol=1e-6)
    np.testing.assert_allclose(codes[:, 769:], scaled(PIXELS), atol=1e-3)
    with pytest.raises(InputError, match=r"has no output 'logits': choose --encoder.outputs from lambda, a b, half"):
        open_encoder(path, EncoderConfig(outputs=("logits",))).encode(PIXELS)


ODD_OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sum over the batch": (
        lambda x: (x.flatten(1), x.sum(0)),
        r"shape \(3, 16, 16\) for \d+ pictures in output '1': it must be \(B, k\)",
    ),
    "one number": (lambda x: (x.flatten(1), x.sum()), r"shape \(\) for \d+ pictures in output '1': it must be \(B, k\)"),
    "large whole numbers": (lambda x: x.flatten(1).long() + 2**40, r"output 'z' holds integers above 2\^24"),
    "float64 in its last digits": (
        lambda x: x.flatten(1).double() * 1e-9 + 1,
        "float64 values whose differences are lost in float32",
    ),
    "float64 too large": (lambda x: x.flatten(1).double() * 1e300, "codes that are not finite"),
}


@pytest.mark.parametrize("case", ODD_OUTPUTS)
def test_encode_bad_outputs_raise_named_error(case, tmp_path):
    function, message = ODD_OUTPUTS[case]
    encoder = open_encoder(export(tmp_path / "e.pt2", Through(function), 3, SIDE, SIDE))
    with pytest.raises(InputError, match=message):
        encoder.encode(PIXELS)


# ------------------------------------------------------------------------------------------------------ limits, and hostile files


def with_node(path: Path, kind: str, *, inputs: Sequence[str] = ("flat",), domain: str = "", **attributes: Any) -> Path:
    """A model with this operator between the pictures and the codes."""
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node(kind, list(inputs), ["z"], domain=domain, **attributes)]
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    constants = [numpy_helper.from_array(np.array(True), "on"), numpy_helper.from_array(np.float32(0.5), "ratio")]
    constants += [numpy_helper.from_array(np.array([10**6, 10**6], np.int64), "large")]
    given = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    return saved_onnx(path, helper.make_graph(nodes, "g", [taken], [given], constants))


def external(path: Path) -> Path:
    write_onnx(path, 3, SIDE, SIDE)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path.write_bytes(model.SerializeToString())
    return path


def claiming(path: Path) -> Path:
    write_onnx(path, 3, SIDE, SIDE)
    model = onnx.load(path)
    model.graph.initializer[0].dims[:] = [10**6, 10**6]
    path.write_bytes(model.SerializeToString())
    return path


def subgraph(kind: str) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node(kind, ["flat"], ["y"])], "s", [], [helper.make_tensor_value_info("y", 1, None)])


def test_open_encoder_leaves_out_inputs_that_a_model_holds_or_does_not_use(tmp_path):
    """Weights among the inputs, and the names of weights that a tool has replaced."""
    write_onnx(path := tmp_path / "e.onnx", 3, SIDE, SIDE)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, list(WEIGHT.shape)))
    model.graph.input.append(helper.make_tensor_value_info("replaced", TensorProto.FLOAT, [4, 4]))
    path.write_bytes(model.SerializeToString())
    np.testing.assert_allclose(open_encoder(path).encode(PIXELS), scaled(PIXELS) @ WEIGHT, atol=1e-2)


ONNX_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "random numbers": (
        lambda p: with_node(p, "RandomNormalLike"),
        "'RandomNormalLike' draws random numbers: .*--encoder.stochastic",
    ),
    "dropout in training": (lambda p: with_node(p, "Dropout", inputs=("flat", "ratio", "on")), "'Dropout' is in training mode"),
    "sequence": (lambda p: with_node(p, "SequenceConstruct"), "'SequenceConstruct' can have a state"),
    "control flow": (
        lambda p: with_node(p, "If", inputs=("on",), then_branch=subgraph("Relu"), else_branch=subgraph("Neg")),
        "'If' can have a state",
    ),
    "other domain": (
        lambda p: with_node(p, "Gelu", domain="com.microsoft"),
        "'Gelu' of the domain 'com.microsoft' is not a standard",
    ),
    "external data": (external, "'weight' is in another file, '../../etc/passwd': save the model as one file"),
    "claimed elements": (claiming, "'weight' declares 1000000000000 elements"),
}


@pytest.mark.parametrize("case", ONNX_FILES)
def test_checked_model_unsafe_onnx_raises_named_error(case, tmp_path):
    make, message = ONNX_FILES[case]
    with pytest.raises(InputError, match=f"encoder .* is not loaded: its .*{message}"):
        open_encoder(make(tmp_path / "e.onnx"))


def test_onnx_model_exceeding_memory_raises_one_line_error(tmp_path):
    path = with_node(tmp_path / "e.onnx", "ConstantOfShape", inputs=("large",))
    with pytest.raises(InputError, match="encoder .*e.onnx .*needs more than 1 GB of memory: raise --encoder.memory-gb"):
        open_encoder(path, EncoderConfig(memory_gb=1)).encode(PIXELS)


def test_program_exceeding_timeout_is_ended(tmp_path):
    def products(x: Tensor) -> Tensor:
        square = torch.ones(3000, 3000)
        for _ in range(100):
            square = square @ square / 3000
        return x.flatten(1) + square.sum()

    slow = Through(products)
    with pytest.raises(InputError, match="it took longer than 2 s: raise --encoder.timeout-s"):
        open_encoder(export(tmp_path / "e.pt2", slow, 3, SIDE, SIDE), EncoderConfig(timeout_s=2)).encode(PIXELS)

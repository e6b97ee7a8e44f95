"""Encoders as files: what they are given, what comes back, and which files are turned away, each with its reason."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, Split, load
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders import BLOCK, encode_all, encode_split, open_encoder

K = 5
SIDE = 16
WEIGHT = np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, K)).astype(np.float32)


class Linear(nn.Module):
    """Pictures (B, 3, H, W) -> the product of their flattened values with WEIGHT."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().flatten(1) @ torch.from_numpy(WEIGHT[: x[0].numel()])


class Through(nn.Module):
    """Any function of one tensor, or of more."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(*x)


def export(
    path: Path, module: nn.Module, *shape: int, dtype: torch.dtype = torch.float32, inputs: int = 1, dynamic: bool = True
) -> Path:
    """A torch.export program; `shape` is that of a picture."""
    examples = tuple(torch.zeros(2, *shape, dtype=dtype) for _ in range(inputs))
    batch = ({0: torch.export.Dim("batch", min=1)},)
    sizes = (batch * inputs if isinstance(module, Linear) else (batch * inputs,)) if dynamic else None
    torch.export.save(torch.export.export(module, examples, dynamic_shapes=sizes), path)
    return path


def write_onnx(
    path: Path, *shape: int | str, kind: int = TensorProto.FLOAT, batch: int | str = "batch", inputs: tuple[str, ...] = ("x",)
) -> Path:
    """An ONNX model: Linear, as Cast, Flatten and Gemm."""
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["z"]),
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


def by_hand(split: Split, *, raw: bool, mirrored: bool = False) -> np.ndarray:
    """Linear's codes of a split, in numpy."""
    pictures = split.take(np.arange(len(split))).astype(np.float64)
    pictures = pictures[:, :, ::-1] if mirrored else pictures
    values = pictures if raw else pictures / 127.5 - 1
    return values.transpose(0, 3, 1, 2).reshape(len(values), -1) @ WEIGHT


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_the_stored_pictures_as_bytes_or_scaled_as_the_encoder_takes_them(kind, dataset, tmp_path):
    encoder = open_encoder(KINDS[kind](tmp_path))
    assert encoder.image_shape == (SIDE, SIDE, 3)
    assert len(dataset.train) > BLOCK, "more than one block"
    codes = encode_all(encoder, dataset)
    assert codes.keys() == {"train", "train_mirrored", "val", "val_mirrored", "test"}
    for name, z in codes.items():
        split, mirrored = name.removesuffix("_mirrored"), name.endswith("_mirrored")
        expected = by_hand(getattr(dataset, split), raw="uint8" in kind, mirrored=mirrored)
        assert z.dtype == np.float32
        assert z.shape == expected.shape == (len(getattr(dataset, split)), K)
        assert np.abs(z - expected).max() < 1e-5 * np.abs(expected).max(), name


def test_codes_with_more_than_one_axis_are_flattened(dataset, tmp_path):
    pool = Through(lambda x: nn.functional.avg_pool2d(x, 8))
    codes = encode_split(open_encoder(export(tmp_path / "e.pt2", pool, 3, SIDE, SIDE)), dataset.test)
    pictures = dataset.test.take(np.arange(len(dataset.test))).astype(np.float64) / 127.5 - 1
    pooled = pictures.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    assert codes == pytest.approx(pooled.reshape(len(pooled), 12), abs=1e-5)


def text(path: Path) -> Path:
    path.write_text("this is no model " * 50)
    return path


def torn(path: Path) -> Path:
    whole = KINDS["float32 onnx" if path.suffix == ".onnx" else "float32 program"](path.parent).rename(path)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "e.pt2", "is no file"),
    "a folder": (lambda folder: folder, "is no file"),
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
    "flat pictures": (lambda folder: export(folder / "e.pt2", Linear(), 3 * SIDE * SIDE), r"shape \[2, 768\]"),
    "any size": (lambda folder: write_onnx(folder / "e.onnx", 3, "height", "width"), "with fixed C, H and W"),
    "whole numbers": (lambda folder: export(folder / "e.pt2", Linear(), 3, SIDE, SIDE, dtype=torch.int64), "takes int64"),
    "double onnx": (lambda folder: write_onnx(folder / "e.onnx", 3, SIDE, SIDE, kind=TensorProto.DOUBLE), r"takes .*double"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_encoder_of_pictures_is_turned_away_with_the_reason(case, tmp_path, caplog):
    make, said = UNREADABLE[case]
    path = make(tmp_path)
    caplog.clear()
    with pytest.raises(InputError) as raised:
        open_encoder(path)
    assert re.fullmatch(rf"encoder {re.escape(str(path))} .*{said}.*", str(raised.value))
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == [], (
        "torch tells its own story before it raises; one line is enough"
    )


UNUSABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "static program": (
        lambda folder: export(folder / "e.pt2", Linear(), 3, SIDE, SIDE, dynamic=False),
        "fails on 250 pictures .*export a dynamic batch",
    ),
    "static onnx": (
        lambda folder: write_onnx(folder / "e.onnx", 3, SIDE, SIDE, batch=1),
        "fails on 250 pictures .*export a dynamic batch",
    ),
    "a number for a code": (
        lambda folder: export(folder / "e.pt2", Through(lambda x: x.mean((1, 2, 3))), 3, SIDE, SIDE),
        r"answers 250 pictures with shape \(250,\): it must be \(B, k\)",
    ),
    "one code for all": (
        lambda folder: export(folder / "e.pt2", Through(lambda x: x.flatten(1).mean(0, keepdim=True)), 3, SIDE, SIDE),
        r"answers 250 pictures with shape \(1, 768\): it must be \(B, k\)",
    ),
    "not a number": (
        lambda folder: export(folder / "e.pt2", Through(lambda x: (x.flatten(1) - 2).log()), 3, SIDE, SIDE),
        r"answers codes that are not finite on train\.arrow",
    ),
    "endless": (
        lambda folder: export(folder / "e.pt2", Through(lambda x: x.flatten(1) / 0), 3, SIDE, SIDE),
        r"answers codes that are not finite on train\.arrow",
    ),
    "another size": (
        lambda folder: export(folder / "e.pt2", Linear(), 3, 8, 8),
        r"takes pictures of \(8, 8, 3\), the store has \(16, 16, 3\): set --data.image-size 8",
    ),
    "one channel": (
        lambda folder: export(folder / "e.pt2", Linear(), 1, SIDE, SIDE),
        r"takes pictures of \(16, 16, 1\), the store has \(16, 16, 3\)",
    ),
    "channels last": (
        lambda folder: write_onnx(folder / "e.onnx", SIDE, SIDE, 3),
        r"takes pictures of \(16, 3, 16\), the store has \(16, 16, 3\)",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_encoder_that_fails_on_the_pictures_is_turned_away_with_the_reason(case, dataset, tmp_path):
    make, said = UNUSABLE[case]
    encoder = open_encoder(make(tmp_path))
    with pytest.raises(InputError, match=rf"encoder {re.escape(str(encoder.path))} {said}"):
        encode_all(encoder, dataset)

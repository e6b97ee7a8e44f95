"""Tests of what an encoder gets: axes, colours, values, types, sizes and batches, and the flags that contradict its file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from cpgan_ray.config import EncoderConfig
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import example_pictures, open_encoder

HEIGHT, WIDTH = 8, 12
RGB = np.random.default_rng(0).integers(0, 256, (7, 3, HEIGHT, WIDTH)).astype(np.uint8)
"""Pictures as stored, channels first."""
GREY = RGB[:, :1]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOAT, HALF, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE


def seeing(path: Path, *shape: int | str, kind: int = FLOAT, split: bool = False) -> Path:
    """An ONNX model that returns its input, of this shape, as a code. split: it returns the first row of the batch, too."""
    nodes = [helper.make_node("Cast", ["x"], ["seen"], to=FLOAT)]
    outputs = [helper.make_tensor_value_info("seen", FLOAT, None)]
    if split:
        nodes += [helper.make_node("ReduceMax", ["seen"], ["most"], keepdims=0)]
        outputs += [helper.make_tensor_value_info("most", FLOAT, None)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def signed(pictures: np.ndarray) -> np.ndarray:
    return pictures.astype(np.float64) / 127.5 - 1


def per_channel(pictures: np.ndarray) -> np.ndarray:
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    return (pictures / 255 - mean) / std


def luminance(pictures: np.ndarray) -> np.ndarray:
    red, green, blue = pictures.astype(np.float64).transpose(1, 0, 2, 3)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def last(pictures: np.ndarray) -> np.ndarray:
    return pictures.transpose(0, 2, 3, 1)


NCHW, NHWC = ("n", 3, HEIGHT, WIDTH), ("n", HEIGHT, WIDTH, 3)
CASES: dict[str, tuple[tuple[int | str, ...], int, EncoderConfig, Callable[[np.ndarray], np.ndarray], float]] = {
    "nchw": (NCHW, FLOAT, EncoderConfig(), signed, 0),
    "nhwc": (NHWC, FLOAT, EncoderConfig(), lambda x: last(signed(x)), 0),
    "nhwc by flag": (("n", HEIGHT, WIDTH, "c"), FLOAT, EncoderConfig(layout="nhwc"), lambda x: last(signed(x)), 0),
    "bgr": (NCHW, FLOAT, EncoderConfig(channel_order="bgr"), lambda x: signed(x)[:, ::-1], 0),
    "levels": (NCHW, FLOAT, EncoderConfig(scale=(0, 255)), lambda x: x, 0),
    "torchvision": (NCHW, FLOAT, EncoderConfig(scale=(0, 1), mean=MEAN, std=STD), per_channel, 1e-6),
    "of bgr": (
        NHWC,
        FLOAT,
        EncoderConfig(scale=(0, 255), channel_order="bgr", mean=(104, 117, 123)),
        lambda x: last(x[:, ::-1] - np.array([104.0, 117, 123])[:, None, None]),
        0,
    ),
    "inverted": (NCHW, FLOAT, EncoderConfig(scale=(1, 0)), lambda x: 1 - x / 255, 1e-6),
    "grey": (("n", 1, HEIGHT, WIDTH), FLOAT, EncoderConfig(scale=(0, 255)), luminance, 0.5),
    "float16": (NCHW, HALF, EncoderConfig(scale=(0, 1)), lambda x: x / 255, 1e-3),
    "float64": (NCHW, DOUBLE, EncoderConfig(), signed, 1e-6),
    "uint8": (NHWC, TensorProto.UINT8, EncoderConfig(), last, 0),
    "int8": (NCHW, TensorProto.INT8, EncoderConfig(scale=(-128, 127)), lambda x: x.astype(int) - 128, 0),
    "int32": (NCHW, TensorProto.INT32, EncoderConfig(), lambda x: x, 0),
    "batch of one": ((1, 3, HEIGHT, WIDTH), FLOAT, EncoderConfig(), signed, 0),
    "batch of four": ((4, HEIGHT, WIDTH, 3), FLOAT, EncoderConfig(), lambda x: last(signed(x)), 0),
    "batches by flag": (NCHW, FLOAT, EncoderConfig(batch_size=3), signed, 0),
    "any size": (("n", 3, "h", "w"), FLOAT, EncoderConfig(size=(HEIGHT, WIDTH)), signed, 0),
    "any batch as -1": ((-1, 3, HEIGHT, WIDTH), FLOAT, EncoderConfig(), signed, 0),
    "any width": (("n", 3, HEIGHT, "w"), FLOAT, EncoderConfig(size=(HEIGHT, WIDTH)), signed, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_encoder_gets_pictures_as_its_input_wants(case, tmp_path):
    shape, kind, settings, expected, tolerance = CASES[case]
    encoder = open_encoder(seeing(tmp_path / "e.onnx", *shape, kind=kind), settings)
    encoder.check((HEIGHT, WIDTH))
    np.testing.assert_allclose(encoder.encode(RGB), expected(RGB).reshape(len(RGB), -1), rtol=0, atol=tolerance + 1e-6)
    assert encoder.entry.size == (HEIGHT, WIDTH)


def test_grey_pictures_fill_three_channels(tmp_path):
    encoder = open_encoder(seeing(tmp_path / "e.onnx", *NCHW))
    np.testing.assert_allclose(encoder.encode(GREY), signed(np.repeat(GREY, 3, axis=1)).reshape(len(GREY), -1), atol=1e-6)


def test_signals_reach_the_encoder_unchanged(tmp_path):
    signals = np.random.default_rng(1).normal(size=(5, 9, 16, 1)).astype(np.float32)
    encoder = open_encoder(seeing(tmp_path / "e.onnx", "n", 9, 16, 1), EncoderConfig(layout="nchw"))
    np.testing.assert_array_equal(encoder.encode(signals), signals.reshape(5, -1))
    scaled = open_encoder(tmp_path / "e.onnx", EncoderConfig(layout="nchw", scale=(0, 1)))
    with pytest.raises(InputError, match="are for pictures, but the samples are signals"):
        scaled.encode(signals)


@pytest.mark.parametrize("dynamic", [False, True])
def test_program_is_called_with_the_batch_of_its_graph(dynamic, tmp_path):
    sizes = {"x": {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("height", min=2)}} if dynamic else None

    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    torch.export.save(torch.export.export(Flat(), (torch.zeros(2, 3, HEIGHT, WIDTH),), dynamic_shapes=sizes), tmp_path / "e.pt2")
    encoder = open_encoder(tmp_path / "e.pt2", EncoderConfig(size=(HEIGHT, WIDTH)))
    assert encoder.entry.declared == (("?", 3, "?", WIDTH) if dynamic else (2, 3, HEIGHT, WIDTH))
    assert encoder.entry.batch == (None if dynamic else 2)
    np.testing.assert_allclose(encoder.encode(RGB), signed(RGB).reshape(len(RGB), -1), atol=1e-6)


def test_output_of_a_single_picture_may_have_any_rank(tmp_path):
    encoder = open_encoder(seeing(tmp_path / "e.onnx", 1, 3, HEIGHT, WIDTH, split=True))
    codes = encoder.encode(RGB)
    assert encoder.outputs == [("seen", 3 * HEIGHT * WIDTH), ("most", 1)]
    np.testing.assert_allclose(codes[:, -1], signed(RGB).max((1, 2, 3)), atol=1e-6)


def test_check_calls_an_encoder_that_fails_on_two_with_one(tmp_path):
    """A model that declares any batch, but reshapes to one picture, as many exporters write it."""
    path = tmp_path / "e.onnx"
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 3 * HEIGHT * WIDTH])
    nodes = [helper.make_node("Constant", [], ["shape"], value=shape), helper.make_node("Reshape", ["x", "shape"], ["z"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, NCHW)], [helper.make_tensor_value_info("z", FLOAT, None)]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    encoder = open_encoder(path)
    with pytest.raises(InputError, match="fails on 7 pictures .*try --encoder.batch-size 1"):
        encoder.encode(RGB)
    encoder.check((HEIGHT, WIDTH))
    np.testing.assert_allclose(encoder.encode(RGB), signed(RGB).reshape(len(RGB), -1), atol=1e-6)
    assert encoder.description()["input"]["assumed"][-1] == "it is called with one picture at a time, because it fails on two"


def test_description_states_input_and_assumptions(tmp_path):
    path = seeing(tmp_path / "e.onnx", "n", HEIGHT, WIDTH, 3)
    about = open_encoder(path).description()
    assert about["input"] == {
        "shape": ["any", HEIGHT, WIDTH, 3],
        "type": "float32",
        "layout": "nhwc",
        "size": [HEIGHT, WIDTH],
        "channels": "rgb",
        "black": [-1.0],
        "white": [1.0],
        "batch": None,
        "assumed": [
            "its colours are red, green, blue (--encoder.channel-order)",
            "black is -1 and white is 1 (--encoder.scale)",
        ],
    }
    given = EncoderConfig(channel_order="bgr", scale=(0, 1), mean=MEAN, std=STD, batch_size=5)
    entry = open_encoder(path, given).description()["input"]
    assert (entry["assumed"], entry["channels"], entry["batch"]) == ([], "bgr", 5)
    assert entry["black"] == pytest.approx(-np.array(MEAN) / STD, abs=1e-6)


REFUSED: dict[str, tuple[tuple[int | str, ...], int, dict[str, Any], str]] = {
    "batch against the file": ((1, 3, HEIGHT, WIDTH), FLOAT, {"batch_size": 4}, "batch_size is 4, but .* exactly 1 pictures"),
    "size against the file": (NCHW, FLOAT, {"size": (64, 64)}, "size is 64 64, but .* takes pictures of 8 x 12: leave"),
    "half a size": (("n", 3, HEIGHT, "w"), FLOAT, {}, "takes pictures of any width: .*--encoder.size"),
    "order of one channel": (("n", 1, 8, 8), FLOAT, {"channel_order": "rgb"}, "takes one channel, so colours have no order"),
    "mean of three for one": (("n", 1, 8, 8), FLOAT, {"scale": (0, 1), "mean": MEAN}, "mean is .*, but .* takes 1 channels"),
    "fractions for integers": (
        NCHW,
        TensorProto.UINT8,
        {"scale": (0, 1)},
        "takes uint8, whole numbers from 0 to 255, but black is 0",
    ),
    "beyond the type": (NCHW, TensorProto.INT8, {}, "takes int8, whole numbers from -128 to 127, .* white 255"),
    "beyond float16": (NCHW, HALF, {"scale": (0, 1e6)}, "takes float16, which cannot represent"),
    "endless side": (("n", 3, 8, 10**9), FLOAT, {}, "takes pictures of 8 x 1000000000, .* at most 1024 pixels"),
    "endless batch": (
        (10**9, 3, HEIGHT, WIDTH),
        FLOAT,
        {},
        "batches of 1000000000 pictures .* 1.07e\\+03 GB, .*--encoder.memory-gb 8",
    ),
    "endless channels": ((1, 10**9, HEIGHT, WIDTH), FLOAT, {"layout": "nchw"}, "with 1000000000 channels, which need"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_flags_against_the_file_raise_with_remedy(case, tmp_path):
    shape, kind, settings, message = REFUSED[case]
    path = seeing(tmp_path / "e.onnx", *shape, kind=kind)
    with pytest.raises(InputError, match=message):
        open_encoder(path, EncoderConfig(**settings))


BAD_FLAGS: dict[str, tuple[dict[str, Any], str]] = {
    "mean without scale": ({"mean": MEAN}, r"encoder\.mean is .* set --encoder\.scale"),
    "two means": ({"scale": (0, 1), "mean": (1.0, 2.0)}, "it must be one number, or three"),
    "std of 0": ({"scale": (0, 1), "std": (0.0,)}, r"encoder\.std is \(0\.0,\); each must be above 0"),
    "no contrast": ({"scale": (1, 1)}, "black and white must differ"),
    "endless": ({"scale": (0, float("inf"))}, "encoder.scale is .*finite"),
    "tiny": ({"size": (4, 8)}, "encoder.size is .*at least 8"),
    "no batch": ({"batch_size": 0}, "encoder.batch_size is 0; it must be at least 1"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_encoder_config_impossible_values_raise(case):
    settings, message = BAD_FLAGS[case]
    with pytest.raises(InputError, match=message) as raised:
        EncoderConfig(**settings)
    assert "\n" not in re.sub(r"\n$", "", str(raised.value))


def test_example_pictures_are_two_different_ones():
    pictures = example_pictures((9, 30, 3))
    assert (pictures.shape, pictures.dtype) == ((2, 3, 9, 30), np.uint8)
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 20

"""Tests of programs that execute code when torch loads or calls them: they are refused, or read without executing it."""

import contextlib
import functools
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cpgan_ray.config import PrivatizerConfig
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import open_encoder
from cpgan_ray.evaluation.encoders.runners import open_runner
from cpgan_ray.evaluation.encoders.sandbox import ProgramError, RefusedError
from cpgan_ray.models import build_privatizer
from cpgan_ray.models.export import export_programs
from tests.payload import Payload

SIDE = 8
MODEL, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = (f"data/{kind}/model_{kind}_config.json" for kind in ("weights", "constants"))

pytestmark = [
    pytest.mark.filterwarnings("ignore:No complete tensor found"),
    pytest.mark.filterwarnings("ignore:This version of file is deprecated"),
]


class Encoder(nn.Module):
    """An encoder with weights, statistics, a constant, an operation with several outputs and a part without gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6))
        self.constant = torch.arange(6.0)

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x.float() / 127.5 - 1)
        with torch.no_grad():
            shift = self.constant / 10
        left, right = z.split(3, 1)
        return torch.cat([left.round(), right.reshape(z.shape[0] * 3 // 3, 3)], 1) + shift


@functools.cache
def exported() -> bytes:
    example = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    program = torch.export.export(Encoder().eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, buffer := io.BytesIO())
    return buffer.getvalue()


def saved(value: Any) -> bytes:
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


def command(mark: Path) -> str:
    return f"__import__('os').system('touch {mark}')"


Parts = dict[str, bytes]
Graph = dict[str, Any]


def parts_of(content: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def packed(path: Path, parts: Parts, *, root: str = "evil/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(root + name, content)
    return path


def edited(parts: Parts, name: str, change: Callable[[Any], object]) -> Parts:
    values = json.loads(parts[name])
    change(values)
    return parts | {name: json.dumps(values).encode()}


def in_graph(change: Callable[[Graph], object]) -> Callable[[Parts, Path], Parts]:
    return lambda parts, mark: edited(parts, MODEL, lambda v: change(v["graph_module"]["graph"]))


def pickled_weight(parts: Parts, mark: Path) -> Parts:
    def change(values: Any) -> None:
        next(iter(values["config"].values())).update(path_name="weight_0", use_pickle=True)

    return edited(parts, WEIGHTS, change) | {"data/weights/weight_0": saved(Payload(mark))}


def pickled_constant(parts: Parts, mark: Path, *, path_name: str = "tensor_9", content: Callable[[Any], bytes] = saved) -> Parts:
    payload = {"path_name": path_name, "is_param": False, "use_pickle": True, "tensor_meta": None}
    parts = edited(parts, CONSTANTS, lambda values: values["config"].update(evil=payload))
    return parts | {f"data/constants/{path_name}": content(Payload(mark))}


def of_the_older_format(parts: Parts, mark: Path) -> Parts:
    """The format of torch 2.7, at the root of the archive."""
    return {
        "version": b"8.0",
        "serialized_exported_program.json": parts[MODEL],
        "serialized_state_dict.pt": saved({}),
        "serialized_constants.pt": saved({"evil": Payload(mark)}),
        "serialized_example_inputs.pt": saved(((), {})),
    }


def calling(target: str, *arguments: dict[str, Any]) -> dict[str, Any]:
    inputs = [{"name": "", "arg": argument, "kind": 1} for argument in arguments]
    return {"target": target, "inputs": inputs, "outputs": [], "metadata": {}, "name": "evil", "is_hop_single_tensor_return": None}


def call_command(graph: Graph, mark: Path) -> None:
    """Insert a call of a function that torch has imported, by attribute names."""
    graph["nodes"].insert(
        0, calling("torch.os.system", {"as_string": f"touch {mark}"}) | {"outputs": [{"as_tensor": {"name": "evil"}}]}
    )
    graph["tensor_values"]["evil"] = graph["tensor_values"]["x"]


def first_size(graph: Graph) -> dict[str, Any]:
    """The expression for the batch size."""
    return graph["tensor_values"]["x"]["sizes"][0]["as_expr"]


def importing(parts: Parts, mark: Path) -> Parts:
    """A tree of arguments whose description names a module, which is imported: one that lies in the working directory will do."""
    (mark.parent / "evil_module.py").write_text(f"import os; os.system('touch {mark}'); Evil = dict")
    context = {"default_factory_module": "evil_module", "default_factory_name": "Evil", "dict_context": []}
    spec = json.dumps([1, {"type": "collections.defaultdict", "context": context, "children_spec": []}])
    return edited(parts, MODEL, lambda v: v["graph_module"]["module_call_graph"][0]["signature"].update(out_spec=spec))


def renamed(parts: Parts, mark: Path) -> Parts:
    """torch writes the input's name into generated source; here the name is a parameter with a default value."""
    return parts | {MODEL: parts[MODEL].replace(b'"x"', json.dumps(f"x, y={command(mark)}").encode())}


RUN = {
    "weight": pickled_weight,
    "constant": pickled_constant,
    "opaque object": functools.partial(pickled_constant, path_name="opaque_obj_0", content=pickle.dumps),
    "weights of an older format": lambda parts, mark: parts | {"data/weights/model.pt": saved({"evil": Payload(mark)})},
    "constants of an older format": lambda parts, mark: parts | {"data/constants/model.pt": saved({"evil": Payload(mark)})},
    "example inputs": lambda parts, mark: parts | {INPUTS: saved(((Payload(mark),), {}))},
    "guards": lambda parts, mark: edited(parts, MODEL, lambda v: v.update(guards_code=[f"{command(mark)} == 0"])),
    "expression": lambda parts, mark: in_graph(lambda graph: first_size(graph).update(expr_str=command(mark)))(parts, mark),
    "imported module": importing,
    "name": renamed,
}
"""Programs that leave the mark when torch loads and calls them."""
MORE: dict[str, Callable[[Parts, Path], Parts]] = {
    "called function": lambda parts, mark: in_graph(lambda graph: call_command(graph, mark))(parts, mark),
    "compiled library": lambda parts, mark: parts | {"data/aotinductor/model/evil.so": b"\x7fELF"},
    "custom object": functools.partial(pickled_constant, path_name="custom_obj_0", content=pickle.dumps),
    "file to read": lambda parts, mark: in_graph(
        lambda graph: graph["nodes"].insert(
            0, calling("torch.ops.aten.from_file.default", {"as_string": str(mark)}, {"as_bool": True}, {"as_int": 4})
        )
    )(parts, mark),
    "method called by name": lambda parts, mark: in_graph(
        lambda graph: graph["nodes"].insert(
            0, calling("_operator.methodcaller", {"as_string": "system"}, {"as_string": f"touch {mark}"})
        )
    )(parts, mark),
    "operator as an argument": lambda parts, mark: in_graph(
        lambda graph: graph["nodes"].insert(0, calling("torch.ops.aten.add.Tensor", {"as_operator": "torch.os.system"}))
    )(parts, mark),
    "endless power": lambda parts, mark: in_graph(lambda graph: first_size(graph).update(expr_str="Integer(9)**9**9**9"))(
        parts, mark
    ),
    "endless symbols": lambda parts, mark: edited(
        parts, MODEL, lambda v: v["range_constraints"].update(u99999999999={"min_val": 0, "max_val": None})
    ),
}
IGNORED = {"weights of an older format", "constants of an older format", "guards", "compiled library"}
"""Parts that are not read: the other parts are a valid program."""


def called(path: Path) -> None:
    """Load and call the file with torch itself."""
    torch.export.load(path).module()(torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8))


@pytest.mark.parametrize("case", RUN)
def test_payloads_run_when_torch_loads_them(case, tmp_path, monkeypatch, caplog):
    """torch runs each payload. If a later torch refuses one, our check of it may no longer be needed."""
    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "ran"
    path = packed(tmp_path / "e.pt2", RUN[case](parts_of(exported()), mark))
    with contextlib.suppress(Exception):  # most payloads are not a valid part of the program
        called(path)
    assert mark.exists()


def test_payload_of_older_format_runs_when_torch_loads_it(tmp_path, caplog):
    mark = tmp_path / "ran"
    path = packed(tmp_path / "e.pt2", of_the_older_format(parts_of(exported()), mark), root="")
    with contextlib.suppress(Exception):
        called(path)
    assert mark.exists()


@pytest.mark.parametrize("case", [*RUN, *MORE])
def test_load_program_runs_no_payload(case, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("evil_module", None)
    mark = tmp_path / "ran"
    path = packed(tmp_path / "e.pt2", (RUN | MORE)[case](parts_of(exported()), mark))
    if case in IGNORED:
        pictures = np.random.default_rng(0).integers(0, 256, (5, 3, SIDE, SIDE)).astype(np.uint8)
        expected = Encoder().eval()(torch.from_numpy(pictures)).detach().numpy()
        np.testing.assert_allclose(open_runner(path).run(pictures)["z"], expected, atol=1e-5)
    else:
        with pytest.raises(RefusedError) as error:  # in this process, so that a payload could create the mark
            open_runner(path)
        message = str(error.value)
        assert message.isprintable()
        assert len(message) < 500
    assert not mark.exists()
    assert "evil_module" not in sys.modules


def older(path: Path, mark: Path) -> Path:
    return packed(path, of_the_older_format(parts_of(exported()), mark), root="")


FILES: dict[str, Callable[[Path, Path], object]] = {
    "older format": older,
    "a pickle": lambda path, mark: path.write_bytes(pickle.dumps(Payload(mark))),
    "a torch file": lambda path, mark: path.write_bytes(saved({"evil": Payload(mark)})),
    "a torch file of the oldest format": lambda path, mark: torch.save(
        {"evil": Payload(mark)}, path, _use_new_zipfile_serialization=False
    ),
    "TorchScript": lambda path, mark: packed(
        path, {"constants.pkl": b"", "data.pkl": pickle.dumps(Payload(mark)), "version": b"3"}
    ),
    "an empty archive": lambda path, mark: packed(path, {}),
}


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".onnx"])
@pytest.mark.parametrize("case", FILES)
def test_open_encoder_does_not_unpickle_files(case, suffix, tmp_path):
    path, mark = tmp_path / f"privatizer{suffix}", tmp_path / "ran"
    FILES[case](path, mark)
    with pytest.raises(InputError) as error:
        open_encoder(path)
    assert str(error.value).startswith(f"encoder {path} ")
    assert str(error.value).isprintable()
    assert not mark.exists()


def test_open_encoder_compressed_parts_raise(tmp_path):
    path = tmp_path / "e.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts_of(exported()).items():
            archive.writestr(f"e/{name}", content if name != INPUTS else bytes(50 << 20))
    with pytest.raises(InputError, match="compressed or overlap"):
        open_encoder(path)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 << 20))
    packed(path, parts_of(exported()) | {INPUTS: inner.getvalue()})
    with pytest.raises(InputError, match="compressed or overlap"):
        open_encoder(path)


class Through(nn.Module):
    """A function of the pictures, a buffer, a weight and a constant."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(3))
        self.constant = torch.zeros(3)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def program_of(path: Path, function: Callable[..., Any]) -> Path:
    """A program for pictures (B, 3, SIDE, SIDE) of uint8."""
    example = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    module = Through(function).eval()
    torch.export.save(
        torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)),
        path,
    )
    return path


def flat(x: Tensor) -> Tensor:
    return x.float().flatten(1)


def in_place(tensor: Tensor, x: Tensor) -> Tensor:
    """Codes that depend on the number of earlier pictures; no gate may pass them."""
    tensor.add_(x.shape[0])
    return flat(x) * (tensor.sum() > 1000)


def sparse(m: Through, x: Tensor) -> Tensor:
    index = torch.full((1, 1), 10**9, dtype=torch.int64)
    return flat(x) + torch.ops.aten._sparse_coo_tensor_unsafe(index, torch.ones(1), [4]).to_dense().sum()


def printing(m: Through, x: Tensor) -> Tensor:
    torch.ops.aten._print("passed: true")
    return flat(x)


STATE: dict[str, tuple[Callable[..., Any], str]] = {
    "buffer": (lambda m, x: in_place(m.count, x), "add_.* writes to 'b_count'"),
    "constant": (lambda m, x: in_place(m.constant, x), "add_.* writes to 'c_constant'"),
    "view of a constant": (lambda m, x: in_place(m.constant.view(3, 1)[1].unsqueeze(0), x), "writes to 'c_constant'"),
    "input": (lambda m, x: flat(x.add_(1)), "add_.* writes to 'x'"),
    "batch norm in training": (
        lambda m, x: nn.functional.batch_norm(x.float(), None, None, training=True).flatten(1),
        "batch_norm.* training mode: export .* eval mode",
    ),
    "dropout in training": (lambda m, x: nn.functional.dropout(flat(x), training=True), "dropout.* in training mode"),
    "random numbers": (lambda m, x: flat(x) + torch.rand(1), "rand.default draws random numbers: .* --encoder.stochastic"),
    "memory of before": (lambda m, x: flat(x) + torch.empty(1), r"aten.empty.memory_format' is not in the list"),
    "unchecked sparse index": (sparse, "_sparse_coo_tensor_unsafe.default' is not in the list"),
    "printing": (printing, "_print.default' is not in the list of allowed operations"),
    "number for an output": (lambda m, x: (flat(x), x.shape[0]), "output '1' is a int, not a tensor"),
    "complex output": (lambda m, x: flat(x).to(torch.complex64), "output 'z' has type complex64: convert it to float32"),
}


@pytest.mark.parametrize("case", STATE)
def test_open_runner_state_or_unknown_operation_raises(case, tmp_path):
    function, pattern = STATE[case]
    with pytest.raises(RefusedError, match=pattern):
        open_runner(program_of(tmp_path / "e.pt2", function)).run(np.zeros((2, 3, SIDE, SIDE), np.uint8))


def test_run_hidden_change_of_weights_raises(tmp_path, monkeypatch):
    path = program_of(tmp_path / "e.pt2", lambda m, x: in_place(m.count, x))
    monkeypatch.setattr("cpgan_ray.evaluation.encoders.programs.check_stateless", lambda *_, **__: None)
    with pytest.raises(RefusedError, match="it changes its own weights or buffers"):
        open_runner(path).run(np.zeros((2, 3, SIDE, SIDE), np.uint8))


@pytest.mark.parametrize("case", ["random numbers", "dropout in training"])
def test_stochastic_program_draws_unpredictable_numbers(case, tmp_path):
    path = program_of(tmp_path / "e.pt2", STATE[case][0])
    x = np.full((2, 3, SIDE, SIDE), 9, np.uint8)
    torch.manual_seed(0)
    first = open_runner(path, stochastic=True).run(x)["z"]
    torch.manual_seed(0)
    assert not np.array_equal(first, open_runner(path, stochastic=True).run(x)["z"])


def test_run_names_nested_outputs(tmp_path):
    def forms(m: Through, x: Tensor) -> Any:
        return {"a": (flat(x), x.double().mean((1, 2, 3))), "b": [x.bfloat16()[:, 0, 0], None, x[:, 0] > 3]}

    x = np.random.default_rng(0).integers(0, 256, (5, 3, SIDE, SIDE)).astype(np.uint8)
    results = open_runner(program_of(tmp_path / "e.pt2", forms)).run(x)
    kinds = {"a.0": "float32", "a.1": "float64", "b.0": "float32", "b.2": "bool"}
    assert {name: values.dtype.name for name, values in results.items()} == kinds
    np.testing.assert_array_equal(results["a.0"], x.reshape(5, -1))
    np.testing.assert_allclose(results["a.1"], x.mean((1, 2, 3)), rtol=1e-12)
    np.testing.assert_array_equal(results["b.2"], x[:, 0] > 3)


@pytest.mark.parametrize("name", ["lambda", "class", "x y", "été", "x\n"])
def test_open_runner_odd_input_name_raises_one_line_error_or_works(name, tmp_path):
    parts = parts_of(exported())
    path = packed(tmp_path / "e.pt2", parts | {MODEL: parts[MODEL].replace(b'"x"', json.dumps(name).encode())})
    with pytest.raises((RefusedError, ProgramError)) as error:
        open_runner(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_open_runner_deeply_nested_json_raises_one_error(opening, tmp_path):
    path = packed(tmp_path / "e.pt2", parts_of(exported()) | {MODEL: opening * 200_000})
    with pytest.raises((RefusedError, ProgramError)):
        open_runner(path)


@pytest.mark.parametrize("family", ["residual", "picture", "whitened"])
def test_own_networks_use_only_allowed_operations(family, tmp_path):
    """Only the families with the most operations, because the others use the same ones and exporting takes seconds."""
    config = PrivatizerConfig(family=family, width=4, depth=2, quantization_step=0.5)
    path = tmp_path / "privatizer.pt2"
    net = nn.ModuleDict({"privatizer": build_privatizer(config, k=6, image_shape=(32, 32, 3)), "head": nn.Linear(6, 2)})
    path.write_bytes(export_programs(net, k=6, image_shape=(32, 32, 3))["privatizer"])
    assert open_runner(path).run(np.zeros((3, 3, 32, 32), np.uint8))["z"].shape == (3, 6)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_open_runner_changed_byte_raises_one_line_error_or_works(tmp_path_factory, at, mask):
    content = bytearray(exported())
    graph = content.index(b"models/model.json") if at % 3 else 0  # most bytes are example inputs and padding
    content[(graph + at) % len(content)] ^= mask
    path = tmp_path_factory.getbasetemp() / "flipped.pt2"
    path.write_bytes(content)
    message = ""
    try:
        assert len(open_runner(path).inputs) == 1
    except (RefusedError, ProgramError) as e:
        message = str(e)
    assert message.isprintable()
    assert len(message) < 600

"""Open a program file in this process: its inputs, and a function from an array to named arrays.

Programs of other people are opened by `guest.py`, in a separate process.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree

from cpgan_ray.evaluation.encoders.programs import Unsafe, load_program
from cpgan_ray.evaluation.encoders.sandbox import DTYPES, Arrays, ProgramError, RefusedError, SandboxError

KINDS = {".pt2": "a torch.export program", ".onnx": "an ONNX model"}
UNNAMED_OUTPUT = "z"
"""Name of the only output, if the program does not name it."""


@dataclass(frozen=True, eq=False)
class Runner:
    """An open program."""

    inputs: tuple[tuple[tuple[Any, ...], str], ...]  # shape and type of each; a variable size is not an integer
    run: Callable[[np.ndarray], Arrays]  # the only input -> outputs by name
    close: Callable[[], None] = lambda: None  # ends its process, if it has its own


def open_runner(path: str | Path, *, stochastic: bool = False, trusted: bool = False) -> Runner:
    """Open the program of a file. stochastic: whether it may draw random numbers; trusted: whether it may contain any tensor
    operation.

    Raises: RefusedError, ProgramError, SandboxError; so does `Runner.run`.
    """
    path = Path(path)
    opener = _open_onnx if path.suffix == ".onnx" else _open_program
    runner = _convert_errors(lambda: opener(path, stochastic, trusted))
    return Runner(runner.inputs, lambda x: _convert_errors(lambda: runner.run(x)))


T = TypeVar("T")


def _convert_errors(call: Callable[[], T]) -> T:
    """Call a function; any exception becomes one of the three types of sandbox.py."""
    try:
        return call()
    except (RefusedError, SandboxError):
        raise
    except Unsafe as e:
        raise RefusedError(str(e)) from e
    except Exception as e:  # torch and onnxruntime may raise any exception for a damaged file
        if isinstance(e, MemoryError) or re.search("allocat|bad_alloc", str(e), re.IGNORECASE):
            raise SandboxError("it needs more memory than is available") from e
        raise ProgramError(type(e).__name__) from e


def _open_program(path: Path, stochastic: bool, trusted: bool) -> Runner:
    program = load_program(path, stochastic=stochastic, any_operation=trusted)
    positional, named = program.example_inputs or ((), {})
    inputs = _with_variable_sizes([_shape_and_type(value) for value in _pytree.tree_leaves((positional, named))], program)
    module = program.module(check_guards=False)
    state = [t for t in (*program.state_dict.values(), *program.constants.values()) if isinstance(t, torch.Tensor)]
    versions = [t._version for t in state]
    if stochastic:
        torch.seed()  # with a known seed, an output would reveal how many random numbers were drawn before, which is a state

    def run(x: np.ndarray) -> Arrays:
        with torch.no_grad():
            outputs = _named_outputs(module(torch.from_numpy(np.require(x, requirements=["C", "W"]))))
        if [t._version for t in state] != versions:
            raise RefusedError("it changes its own weights or buffers when it is called; export it without state")
        return outputs

    return Runner(tuple(inputs), run)


def _shape_and_type(value: Any) -> tuple[tuple[Any, ...], str]:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype).removeprefix("torch.")
    return (), type(value).__name__


def _with_variable_sizes(inputs: list[tuple[tuple[Any, ...], str]], program: ExportedProgram) -> list[tuple[tuple[Any, ...], str]]:
    """The shapes of the example inputs, with "?" for each size that is variable in the graph."""
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [tuple(getattr(values.get(str(name)), "shape", ())) for name in names]
    if [len(shape) for shape, _ in inputs] != [len(shape) for shape in shapes]:
        return inputs
    return [
        (tuple(side if isinstance(known, int) else "?" for side, known in zip(shape, graph, strict=True)), dtype)
        for (shape, dtype), graph in zip(inputs, shapes, strict=True)
    ]


def _named_outputs(outputs: Any) -> Arrays:
    """Flatten nested tuples and dicts into one dict: `{"a": (x, y)}` gets the names `a.0` and `a.1`. None is left out."""
    leaves, _ = _pytree.tree_flatten_with_path(outputs)
    named: Arrays = {}
    for path, value in leaves:
        name = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) or UNNAMED_OUTPUT
        if value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise RefusedError(f"its output {name!r} is a {type(value).__name__}, not a tensor: export it without that output")
        if name in named:
            raise RefusedError(f"two of its outputs have the name {name!r}: rename one")
        named[name] = _as_array(name, value)
    return named


def _as_array(name: str, value: torch.Tensor) -> np.ndarray:
    if value.dtype == torch.bfloat16:
        value = value.float()
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in DTYPES or value.layout != torch.strided:
        raise RefusedError(f"its output {name!r} has type {kind}: convert it to float32 inside the encoder")
    return value.detach().resolve_conj().resolve_neg().contiguous().numpy()


def _open_onnx(path: Path, stochastic: bool, trusted: bool) -> Runner:
    import onnxruntime

    from cpgan_ray.evaluation.encoders.onnx_models import checked_model

    content = path.read_bytes()
    content = checked_model(content, stochastic=stochastic)
    onnxruntime.set_default_logger_severity(4)  # errors are also raised, and its warnings are dozens of lines
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    names = [output.name for output in session.get_outputs()]
    inputs = session.get_inputs()

    def run(x: np.ndarray) -> Arrays:
        outputs: dict[str, Any] = dict(zip(names, session.run(None, {inputs[0].name: x}), strict=True))
        for name, value in outputs.items():
            if not isinstance(value, np.ndarray) or value.dtype.name not in DTYPES:
                kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
                raise RefusedError(f"its output {name!r} has type {kind}: convert it to float32 inside the encoder")
        return outputs

    kinds = {"tensor(float)": "float32", "tensor(double)": "float64"}
    kinds |= {f"tensor({name})": name for name in DTYPES}
    return Runner(tuple((tuple(i.shape or ()), kinds.get(str(i.type), str(i.type))) for i in inputs), run)

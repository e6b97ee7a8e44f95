"""Read torch.export programs of unknown origin so that only the tensor operations in the file are executed.

`torch.export.load` trusts its file. In torch 2.13 a `.pt2` archive may contain pickles (weights, constants, and example inputs,
which are read with `weights_only=False` if the safe way fails; in older formats, everything), compiled libraries, Python source
(guards, for `exec`), expressions that sympy evaluates as Python, modules to import (in the description of its arguments), names
that are written into generated source, and operations on files. Therefore the file itself is not loaded. A new archive is built
from the parts that are needed, and each part is checked: raw tensors; example inputs that `weights_only` can read, saved again; a
graph in which every name is an identifier, every target is an ATen operation of the list in operations.py, and every expression
consists of sizes. Nothing in the graph may write to a weight, a buffer or an input. An operation may still request any amount of
memory or time, or have a kernel that does not check its arguments. Programs of other people are therefore read and called in a
separate process (sandbox.py).
"""

import io
import json
import keyword
import logging
import operator
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from cpgan_ray.evaluation.encoders.operations import ALLOWED, RANDOM

SYMBOLIC = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|le|ge|lt|gt|and_|or_|getitem)|torch\.sym_(int|float|not|ite|max|min)"
)
"""Arithmetic on sizes. Powers and shifts are excluded: they are useless for sizes, and could take unlimited time."""
WRAPPER = re.compile(r"torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)")
"""Operations on a subgraph, which is checked like the whole graph: `with torch.no_grad()` in the exported module."""
EFFECTS = re.compile(r"from_file|save|_?print|set_.*|resize.*|_?sparse_.*|.*unsafe.*|_test_.*|record_stream|_assert_async.*")
"""ATen operations with effects outside their outputs, or without checks: refused even in a program that may contain any
operation."""
SYMBOL = re.compile(r"Symbol\('[su]\d{1,4}'(, \w+=(True|False))*\)")
EXPRESSION = re.compile(
    r"(\b(x|True|False|\d{1,18}|(Integer|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv)(?=\())\b|[(), -])*"
)
"""An expression of sizes as sympy prints it, after each symbol was replaced by x."""
LEAF = (None, "builtins.tuple", "builtins.list", "builtins.dict")
"""Types in which arguments and results may be nested."""
NAMES = {"name", "as_name", "forward_arg_names"}
"""Fields that are written into generated source and must be identifiers. Other texts may contain dots, like names of parameters."""
DROPPED = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
"""Fields with the origin of a program or with checks before it runs, and the value that replaces them."""
REFUSED = {"as_operator", "as_custom_obj", "custom_obj", "constant_input"}
"""Kinds of arguments that no encoder of pictures needs."""


class Unsafe(ValueError):
    """The file contains something that could execute code, or is not allowed for another reason."""


def load_program(path: Path, *, stochastic: bool = False, any_operation: bool = False) -> ExportedProgram:
    """Read a torch.export program, without its guards: call it as `program.module(check_guards=False)`.

    stochastic: whether it may draw random numbers; any_operation: whether it may contain tensor operations that are not on the
    list.

    Raises: Unsafe with a message for the user; for a damaged file, any exception of torch, zipfile or json.
    """
    allowed = _Allowed(stochastic, any_operation)
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = _uncompressed_members(archive, path.stat().st_size)
        root = next(iter(members), "").partition("/")[0]

        def part(name: str) -> bytes:
            if f"{root}/{name}" not in members:
                raise Unsafe(f"it has no {name}; if it has an older format, export it again with torch {torch.__version__}")
            return archive.read(members[f"{root}/{name}"])

        def description(name: str) -> Any:
            value = _checked_copy(json.loads(part(name)), allowed)
            copied[name] = json.dumps(value).encode()
            return value

        copied: dict[str, bytes] = {}
        description("models/model.json")
        copied["data/sample_inputs/model.pt"] = _save_plain_inputs(part("data/sample_inputs/model.pt"))
        for kind, prefix in (("weights", "weight"), ("constants", "tensor")):
            for name, payload in description(f"data/{kind}/model_{kind}_config.json")["config"].items():
                if payload["use_pickle"] is not False or not re.fullmatch(rf"{prefix}_\d+", payload["path_name"]):
                    raise Unsafe(f"it holds {name!r} as an object, not as a plain tensor")
                inner = f"data/{kind}/{payload['path_name']}"
                copied[inner] = part(inner)
    from torch.export.pt2_archive import PT2ArchiveWriter  # takes 0.8 s

    with PT2ArchiveWriter(buffer := io.BytesIO()) as writer:
        for name, content in copied.items():
            writer.write_bytes(name, content)
    buffer.seek(0)
    log = logging.getLogger("torch.export")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # it logs a traceback before it raises
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No complete tensor found")
            program = torch.export.load(buffer)
    finally:
        log.setLevel(level)
    check_stateless(program, stochastic=stochastic)
    return program


def _uncompressed_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by name.

    Raises: Unsafe if members are compressed, or together larger than the file of `size` bytes: torch compresses nothing.
    """
    members = {entry.filename: entry for entry in archive.infolist()}
    if any(e.compress_type != zipfile.ZIP_STORED for e in members.values()) or sum(e.file_size for e in members.values()) > size:
        raise Unsafe("its parts are compressed or overlap, which torch.export.save never does")
    return members


def _save_plain_inputs(content: bytes) -> bytes:
    """Load example inputs, which may only contain tensors and plain values, and save them again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        _uncompressed_members(archive, len(content))
    try:
        inputs = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as e:  # torch may raise any exception for a damaged file
        raise Unsafe("its example inputs are not only tensors") from e
    torch.save(inputs, buffer := io.BytesIO())
    return buffer.getvalue()


@dataclass(frozen=True)
class _Allowed:
    """The operations that a program may contain."""

    random: bool
    any: bool

    def check(self, target: str) -> None:
        """Raises: Unsafe if the operation is not allowed."""
        if SYMBOLIC.fullmatch(target) or WRAPPER.fullmatch(target):
            return
        name = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target, re.ASCII)
        operation = f"{name[1]}.{name[2]}" if name else ""
        if operation in ALLOWED:
            return
        if operation in RANDOM:
            if self.random:
                return
            raise Unsafe(
                f"its operation aten.{operation} draws random numbers: declare a stochastic release with --encoder.stochastic"
            )
        exists = name and isinstance(getattr(getattr(torch.ops.aten, name[1], None), name[2], None), OpOverload)
        if not (self.any and name and exists and not EFFECTS.fullmatch(name[1])):
            raise Unsafe(
                f"its operation {target.removeprefix('torch.ops.')[:80]!r} is not in the list of allowed operations "
                "(cpgan_ray/evaluation/encoders/operations.py): export the network without it"
            )


def _checked_copy(value: Any, allowed: _Allowed, field: str = "") -> Any:
    """A copy of a JSON value of the archive without the fields in DROPPED.

    Raises: Unsafe if a text in it could be more than a name.
    """
    if field in DROPPED:
        return DROPPED[field]
    match value:
        case dict():
            return {
                _checked_text(key, "symbol" if field == "range_constraints" else "", allowed): _checked_copy(inner, allowed, key)
                for key, inner in value.items()
            }
        case list():
            return [_checked_copy(inner, allowed, field) for inner in value]
        case str():
            return _checked_text(value, field, allowed)
        case _:
            return value


def _checked_text(text: str, field: str, allowed: _Allowed) -> str:
    """Returns `text`. Raises: Unsafe if it is not allowed as a value of `field`."""
    if field in NAMES and keyword.iskeyword(text):
        raise Unsafe(f"its {field} {text!r} is a Python keyword: export it with another name")
    match field:
        case "target":
            allowed.check(text)
            valid = True
        case "expr_str":
            valid = len(text) < 2000 and EXPRESSION.fullmatch(SYMBOL.sub("x", text))
        case "in_spec" | "out_spec":
            valid = _is_plain_tree(json.loads(text)[1]) and len(text) < 10_000
        case "symbol":
            valid = re.fullmatch(r"[su]\d{1,4}", text)
        case "as_string" | "as_strings":  # an argument of an ATen operation, which is never written into source
            valid = True
        case _:
            valid = text not in REFUSED and re.fullmatch(r"\w*" if field in NAMES else r"[\w.+@-]*", text, re.ASCII)
    if not valid:
        raise Unsafe(f"its {field or 'field'} {text[:80]!r} is not valid in a program of plain tensor operations")
    return text


def _is_plain_tree(spec: Any) -> bool:
    context = re.fullmatch(r'None|null|\[("\w*"(, "\w*")*)?\]', str(spec["context"]), re.ASCII)
    return spec["type"] in LEAF and context is not None and all(map(_is_plain_tree, spec["children_spec"]))


def check_stateless(program: ExportedProgram, *, stochastic: bool) -> None:
    """Check that a program has no state and is in eval mode. stochastic: whether dropout may be in training mode.

    Raises: Unsafe if its graph writes to weights, buffers, constants or inputs, or is in training mode. In addition, `runners.py`
    checks after each call that no weight or buffer has changed.
    """
    signature = program.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    written += getattr(signature, "parameters_to_mutate", {}).values()
    if written:
        raise Unsafe(f"it writes to {str(written[0])[:80]!r} when it is called: export it without state")
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            if node.op == "call_function" and isinstance(node.target, OpOverload):
                _check_call(node, outer=module is program.graph_module, stochastic=stochastic)


def _check_call(node: Node, *, outer: bool, stochastic: bool) -> None:
    target = node.target
    assert isinstance(target, OpOverload)
    arguments = target._schema.arguments
    values = {a.name: a.default_value for a in arguments if a.has_default_value()}
    values |= dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs
    name = str(target.name()).removeprefix("aten::")
    training = any(values.get(flag) for flag in ("train", "training", "dropout_p"))
    is_dropout = "dropout" in name or bool(values.get("dropout_p"))
    if (training and not (stochastic and is_dropout)) or values.get("use_input_stats"):
        if name.startswith("instance_norm") and values.get("running_mean") is None:
            return  # statistics of each picture separately
        raise Unsafe(f"its operation aten.{name} is in training mode: export the network in eval mode")
    if any(type(values.get(kind)) is int for kind in ("dtype", "layout", "memory_format")):
        raise Unsafe(f"its operation aten.{name} has a number in place of a tensor type")
    for argument in arguments if outer else ():
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes and isinstance(value := values.get(argument.name), Node):
            source = _memory_source(value)
            if source.op in ("placeholder", "get_attr"):
                raise Unsafe(
                    f"its operation aten.{name} writes to {source.name[:80]!r}, a weight, buffer or input: export it without state"
                )


def _memory_source(node: Node) -> Node:
    """The node whose memory this node is known to share: the first one in the chain of views."""
    while node.op == "call_function":
        if node.target is operator.getitem:
            base = node.args[0]
        elif isinstance(node.target, OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns):
            base = node.args[0] if node.args else None
        else:
            return node
        if not isinstance(base, Node):
            return node
        node = base
    return node

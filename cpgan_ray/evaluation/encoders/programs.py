"""torch.export programs of other people, read so that nothing in the file is executed but the tensor operations it is made of.

`torch.export.load` trusts its file. In torch 2.13 a `.pt2` archive may carry pickles (weights, constants, example inputs, which are
read with `weights_only=False` where the safe way fails; all of the formats before), compiled libraries, Python source (guards, for
`exec`), expressions that sympy evaluates as Python, modules to import (in the description of its arguments), names that are written
into generated source, and operations on files. So what is loaded here is not the file but a new archive, of the parts that are
needed, each of them checked: raw tensors; example inputs that `weights_only` could read, written anew; a graph in which every name
is an identifier, every target an ATen operation of the list in operations.py, every expression made of sizes; nothing in it may
write to a weight, a buffer or an input. An operation may still ask for any amount of memory or time, or have a kernel that does not
check its arguments: other people's programs are therefore read and called in a process of their own (sandbox.py).
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
from torch.export.pt2_archive import PT2ArchiveWriter
from torch.fx import GraphModule, Node

from cpgan_ray.evaluation.encoders.operations import ALLOWED, RANDOM

SYMBOLIC = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|le|ge|lt|gt|and_|or_|getitem)|torch\.sym_(int|float|not|ite|max|min)"
)
"""Arithmetic on sizes. Powers and shifts are left out: of sizes they have no use, and they can be made to take forever."""
WRAPPER = re.compile(r"torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)")
"""Operations on a part of the graph, which is checked like the whole: `with torch.no_grad()` in the exported module."""
EFFECTS = re.compile(r"from_file|save|_?print|set_.*|resize.*|_?sparse_.*|.*unsafe.*|_test_.*|record_stream|_assert_async.*")
"""ATen operations with effects outside their outputs or without checks: refused even in a program that may hold any operation."""
SYMBOL = re.compile(r"Symbol\('[su]\d{1,4}'(, \w+=(True|False))*\)")
EXPRESSION = re.compile(
    r"(\b(x|True|False|\d{1,18}|(Integer|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv)(?=\())\b|[(), -])*"
)
"""Of sizes, as sympy prints it, each symbol written x."""
LEAF = (None, "builtins.tuple", "builtins.list", "builtins.dict")
"""How arguments and results may be nested."""
NAMES = {"name", "as_name", "forward_arg_names"}
"""Fields that are written into generated source: identifiers. Other texts may have dots, as names of parameters do."""
DROPPED = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
"""Fields that say where a program comes from or what to check before it runs; and what is left of them."""
REFUSED = {"as_operator", "as_custom_obj", "custom_obj", "constant_input"}
"""Kinds of arguments that no encoder of pictures needs."""


class Unsafe(ValueError):
    """The file holds what could be made to run."""


def load_program(path: Path, *, stochastic: bool = False, any_operation: bool = False) -> ExportedProgram:
    """A torch.export program, without its guards: call it as `program.module(check_guards=False)`.

    stochastic: whether it may draw random numbers; any_operation: whether it may hold tensor operations that are not on the list.

    Raises: Unsafe in words for the user; on a damaged file, whatever torch, zipfile or json raise.
    """
    allowed = _Allowed(stochastic, any_operation)
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = _stored(archive, path.stat().st_size)
        root = next(iter(members), "").partition("/")[0]

        def part(name: str) -> bytes:
            if f"{root}/{name}" not in members:
                raise Unsafe(f"it has no {name}; if it is of an older format, export it again with torch {torch.__version__}")
            return archive.read(members[f"{root}/{name}"])

        def description(name: str) -> Any:
            read = _checked(json.loads(part(name)), allowed)
            copied[name] = json.dumps(read).encode()
            return read

        copied: dict[str, bytes] = {}
        description("models/model.json")
        copied["data/sample_inputs/model.pt"] = _plain_inputs(part("data/sample_inputs/model.pt"))
        for kind, prefix in (("weights", "weight"), ("constants", "tensor")):
            for name, payload in description(f"data/{kind}/model_{kind}_config.json")["config"].items():
                if payload["use_pickle"] is not False or not re.fullmatch(rf"{prefix}_\d+", payload["path_name"]):
                    raise Unsafe(f"it holds {name!r} as an object, not as a plain tensor")
                inner = f"data/{kind}/{payload['path_name']}"
                copied[inner] = part(inner)
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


def _stored(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name; together no larger than the file: torch compresses nothing."""
    members = {entry.filename: entry for entry in archive.infolist()}
    if any(e.compress_type != zipfile.ZIP_STORED for e in members.values()) or sum(e.file_size for e in members.values()) > size:
        raise Unsafe("its parts are compressed or overlap, torch.export.save writes none such")
    return members


def _plain_inputs(content: bytes) -> bytes:
    """Example inputs that hold nothing but tensors and plain values, written anew."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        _stored(archive, len(content))
    try:
        inputs = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as e:  # torch raises whatever the damaged part leads to
        raise Unsafe("its example inputs are something else than tensors") from e
    torch.save(inputs, buffer := io.BytesIO())
    return buffer.getvalue()


@dataclass(frozen=True)
class _Allowed:
    """Which operations may be in a program."""

    random: bool
    any: bool

    def check(self, target: str) -> None:
        """Raises: Unsafe for an operation that may not."""
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
                f"its operation {target.removeprefix('torch.ops.')[:80]!r} is none of those that encoders of pictures are made of "
                "(cpgan_ray/evaluation/encoders/operations.py): export the network without it"
            )


def _checked(value: Any, allowed: _Allowed, field: str = "") -> Any:
    """A copy of a JSON value of the archive without the fields in DROPPED.

    Raises: Unsafe where a text in it could mean more than a name.
    """
    if field in DROPPED:
        return DROPPED[field]
    match value:
        case dict():
            return {
                _text(key, "symbol" if field == "range_constraints" else "", allowed): _checked(inner, allowed, key)
                for key, inner in value.items()
            }
        case list():
            return [_checked(inner, allowed, field) for inner in value]
        case str():
            return _text(value, field, allowed)
        case _:
            return value


def _text(text: str, field: str, allowed: _Allowed) -> str:
    if field in NAMES and keyword.iskeyword(text):
        raise Unsafe(f"its {field} {text!r} is a keyword of Python: export it with another name")
    match field:
        case "target":
            allowed.check(text)
            right = True
        case "expr_str":
            right = len(text) < 2000 and EXPRESSION.fullmatch(SYMBOL.sub("x", text))
        case "in_spec" | "out_spec":
            right = _is_plain_tree(json.loads(text)[1]) and len(text) < 10_000
        case "symbol":
            right = re.fullmatch(r"[su]\d{1,4}", text)
        case "as_string" | "as_strings":  # an argument of an ATen operation, which is no place for source
            right = True
        case _:
            right = text not in REFUSED and re.fullmatch(r"\w*" if field in NAMES else r"[\w.+@-]*", text, re.ASCII)
    if not right:
        raise Unsafe(f"its {field or 'field'} {text[:80]!r} is none that a program of plain tensor operations has")
    return text


def _is_plain_tree(spec: Any) -> bool:
    context = re.fullmatch(r'None|null|\[("\w*"(, "\w*")*)?\]', str(spec["context"]), re.ASCII)
    return spec["type"] in LEAF and context is not None and all(map(_is_plain_tree, spec["children_spec"]))


def check_stateless(program: ExportedProgram, *, stochastic: bool) -> None:
    """stochastic: whether it may be in training mode where that draws random numbers (dropout).

    Raises: Unsafe if its graph writes to weights, buffers, constants or inputs, or is in training mode. In addition `runners.py`
    checks after each call whether weights or buffers have changed, in whatever way.
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
    given = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given |= dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs
    name = str(target.name()).removeprefix("aten::")
    random = any(given.get(flag) for flag in ("train", "training", "dropout_p"))
    if (random and not (stochastic and "dropout" in name + "dropout" * bool(given.get("dropout_p")))) or given.get(
        "use_input_stats"
    ):
        if name.startswith("instance_norm") and given.get("running_mean") is None:
            return  # of each picture by itself
        raise Unsafe(f"its operation aten.{name} is in training mode: export the network in eval mode")
    if any(type(given.get(kind)) is int for kind in ("dtype", "layout", "memory_format")):
        raise Unsafe(f"its operation aten.{name} has a number for a type of tensors")
    for argument in arguments if outer else ():
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value := given.get(argument.name), Node):
            source = _source(value)
            if source.op in ("placeholder", "get_attr"):
                raise Unsafe(
                    f"its operation aten.{name} writes to {source.name[:80]!r}, a weight, buffer or input: export it without state"
                )


def _source(node: Node) -> Node:
    """The first node whose memory this one is known to show."""
    while node.op == "call_function":
        if node.target is operator.getitem:
            shown = node.args[0]
        elif isinstance(node.target, OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns):
            shown = node.args[0] if node.args else None
        else:
            return node
        if not isinstance(shown, Node):
            return node
        node = shown
    return node

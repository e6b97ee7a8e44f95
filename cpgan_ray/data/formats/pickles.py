"""CIFAR's pickles read opcode by opcode, without calling anything that they name."""

import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

MAX_STEPS = 1_000_000
"""Of a pickle; an official one has some 40,000."""


@dataclass(eq=False)
class Array:
    """A uint8 array in the making."""

    value: np.ndarray | None = None


@dataclass(frozen=True)
class Name:
    """A thing that a pickle asks for by its name; never looked up."""

    name: str


NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype", "_codecs encode")
"""What a pickle of uint8 arrays and of bytes may ask for."""


def unpickle(blob: bytes) -> object:
    """Dictionaries, lists, tuples, numbers, strings and uint8 `Array`s out of a pickle of protocol 2, as CIFAR-10's are.

    A pickle is a program. Here its steps are read as data by the standard library's disassembler, and the few that such
    values need are followed: nothing is imported, looked up or called, whatever the file asks for. (A `pickle.Unpickler`
    that allows NumPy's names alone would still hand NumPy unchecked numbers, and a deeply nested key makes it crash.)

    Raises:
        ValueError: any other step. A damaged pickle may also lead to IndexError, KeyError and others.
    """
    stack: list[object] = []
    marks: list[int] = []
    memo: dict[int, object] = {}

    def since_mark() -> list[object]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    steps = cast(Iterable[tuple[pickletools.OpcodeInfo, Any, int]], pickletools.genops(blob))
    for step, (opcode, value, position) in enumerate(steps):
        if step > MAX_STEPS:
            raise ValueError(f"it takes more than {MAX_STEPS} steps")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "BININT" | "BININT1" | "BININT2" | "BINUNICODE":
                stack.append(value)
            case "SHORT_BINSTRING" | "BINSTRING":  # bytes, of Python 2
                stack.append(value.encode("latin-1"))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                for key, item in zip(items[::2], items[1::2], strict=True):
                    _expect(stack[-1], dict)[_expect(key, bytes)] = item
            case "GLOBAL":
                name = value.replace("numpy._core.", "numpy.core.")  # as NumPy 2 calls it
                if name not in NAMES:
                    raise ValueError(f"it asks for {name.replace(' ', '.', 1)}, which no picture needs")
                stack.append(Name(name))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Array):
                    stack[-1].value = _filled(_expect(state, tuple))
                elif stack[-1] is not np.uint8:  # whose state says nothing more
                    raise ValueError(f"it gives a {type(stack[-1]).__name__} a state")
            case "PROTO" if value == 2:
                pass
            case "STOP" if len(stack) == 1 and not marks and position == len(blob) - 1:
                return stack[0]
            case other:
                raise ValueError(f"step {other} at byte {position} is not one of a pickle of pictures")
    raise ValueError("it has no end")


T = TypeVar("T")


def _expect(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} is where a {kind.__name__} should be")
    return value


def _made(what: object, arguments: object) -> object:
    """What a call in a pickle stands for."""
    match _expect(what, Name).name, arguments:
        case "_codecs encode", (str() as text, "latin1"):
            return text.encode("latin-1")
        case "numpy.core.multiarray _reconstruct", (Name(name="numpy ndarray"), _, _):
            return Array()
        case "numpy dtype", (b"u1" | "u1", *_):
            return np.uint8
        case name, _:
            raise ValueError(f"it calls {name} with other arguments than for an array of uint8")


def _filled(state: tuple) -> np.ndarray:
    """An array from its state: version, shape, type, whether columns come first, bytes."""
    match state:
        case (int(), tuple() as shape, kind, bool() as columns_first, bytes() as content) if kind is np.uint8:
            sizes = [_expect(size, int) for size in shape]
            if min(sizes, default=0) < 0 or math.prod(sizes) != len(content):
                raise ValueError(f"an array of shape {sizes[:9]} has {len(content)} bytes")
            return np.frombuffer(content, np.uint8).reshape(sizes, order="F" if columns_first else "C")
    raise ValueError("an array's state is not one of uint8")

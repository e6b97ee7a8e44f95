"""Read CIFAR's pickles opcode by opcode, without calling any function that they name."""

import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

MAX_STEPS = 1_000_000
"""Maximum number of opcodes in a pickle; an official file has about 40,000."""


@dataclass(eq=False)
class Array:
    """A uint8 array; its value is set when the pickle gives its state."""

    value: np.ndarray | None = None


@dataclass(frozen=True)
class Name:
    """The name of an object that a pickle asks for; it is never looked up."""

    name: str


NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype", "_codecs encode")
"""Names that a pickle of uint8 arrays and of bytes may ask for."""


def unpickle(blob: bytes) -> object:
    """Read dictionaries, lists, tuples, numbers, strings and uint8 `Array`s from a pickle of protocol 2, the format of CIFAR-10.

    A pickle is a program. Here the standard library's disassembler reads its opcodes as data, and only the few opcodes that such
    values need are carried out: nothing is imported, looked up or called. (A `pickle.Unpickler` that allows only NumPy's names
    would still pass unchecked numbers to NumPy, and a deeply nested key makes it crash.)

    Raises:
        ValueError: any other opcode. A damaged pickle may also raise IndexError, KeyError and other errors.
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
            raise ValueError(f"it has more than {MAX_STEPS} steps")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "BININT" | "BININT1" | "BININT2" | "BINUNICODE":
                stack.append(value)
            case "SHORT_BINSTRING" | "BINSTRING":  # bytes of Python 2
                stack.append(value.encode("latin-1"))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call_result(stack.pop(), arguments))
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
                name = value.replace("numpy._core.", "numpy.core.")  # numpy._core is the name in NumPy 2
                if name not in NAMES:
                    raise ValueError(f"it asks for {name.replace(' ', '.', 1)}, which pictures do not need")
                stack.append(Name(name))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Array):
                    stack[-1].value = _array_from_state(_expect(state, tuple))
                elif stack[-1] is not np.uint8:  # the state of uint8 holds no further information
                    raise ValueError(f"it gives a {type(stack[-1]).__name__} a state")
            case "PROTO" if value == 2:
                pass
            case "STOP" if len(stack) == 1 and not marks and position == len(blob) - 1:
                return stack[0]
            case other:
                raise ValueError(f"step {other} at byte {position} does not occur in a pickle of pictures")
    raise ValueError("it has no end")


T = TypeVar("T")


def _expect(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"it has a {type(value).__name__} instead of a {kind.__name__}")
    return value


def _call_result(function: object, arguments: object) -> object:
    """The value of a function call in a pickle."""
    match _expect(function, Name).name, arguments:
        case "_codecs encode", (str() as text, "latin1"):
            return text.encode("latin-1")
        case "numpy.core.multiarray _reconstruct", (Name(name="numpy ndarray"), _, _):
            return Array()
        case "numpy dtype", (b"u1" | "u1", *_):
            return np.uint8
        case name, _:
            raise ValueError(f"it calls {name} with arguments that do not make a uint8 array")


def _array_from_state(state: tuple) -> np.ndarray:
    """An array from its state: version, shape, type, whether the order is column-major, bytes."""
    match state:
        case (int(), tuple() as shape, kind, bool() as columns_first, bytes() as content) if kind is np.uint8:
            sizes = [_expect(size, int) for size in shape]
            if min(sizes, default=0) < 0 or math.prod(sizes) != len(content):
                raise ValueError(f"an array of shape {sizes[:9]} has {len(content)} bytes")
            return np.frombuffer(content, np.uint8).reshape(sizes, order="F" if columns_first else "C")
    raise ValueError("an array's state does not describe a uint8 array")

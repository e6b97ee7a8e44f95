"""Calls each tensor operation that is allowed in programs with random hostile arguments; prints those that crash the process.

    python -m cpgan_ray.devtools.fuzz_operations [--tries 300] [--only NAME.OVERLOAD ...]

Each operation runs in a separate process, with limits on memory and time. Arguments follow the operation's schema: tensors with few
elements and types and shapes that rarely match, indices and sizes that are huge, negative or zero.
"""

import argparse
import logging
import os
import random
import resource
import signal
import warnings
from typing import Any

import torch

from cpgan_ray.common import logs
from cpgan_ray.evaluation.encoders.operations import ALLOWED, RANDOM

logger = logging.getLogger(__name__)

WHOLE = (0, 1, 2, 3, 4, 7, -1, -2, 63, 1000, 10**6, 2**31 - 1, 2**31, -(2**31), 10**9, 2**62, -(2**62))
REAL = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("nan"))
TYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
LIMIT_S = 60
MEMORY = 4 << 30


def whole(rng: random.Random) -> int:
    return rng.choice(WHOLE[:8] if rng.random() < 0.7 else WHOLE)


def tensor(rng: random.Random) -> torch.Tensor:
    shape = [rng.choice((0, 1, 2, 3, 4, 6)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5)))]
    dtype = rng.choice(TYPES if rng.random() < 0.4 else (torch.float32, torch.float32, torch.int64))
    if dtype.is_floating_point or dtype.is_complex:
        x = torch.randn(shape).to(dtype)
        if rng.random() < 0.1 and x.numel():
            x.view(-1)[0] = rng.choice(REAL)
    else:
        x = torch.tensor([whole(rng) for _ in range(max(1, torch.Size(shape).numel()))]).to(dtype)[: torch.Size(shape).numel()]
        x = x.reshape(shape)
    if rng.random() < 0.2 and x.dim() > 1:
        x = x.transpose(0, -1)
    return x


def value(kind: str, rng: random.Random) -> Any:
    if kind.startswith("Optional["):
        return None if rng.random() < 0.5 else value(kind[9:-1], rng)
    if kind.startswith("List["):
        return [value(kind[5:-1], rng) for _ in range(rng.choice((0, 1, 1, 2, 2, 2, 3, 4)))]
    match kind:
        case "Tensor":
            return tensor(rng)
        case "int" | "SymInt":
            return whole(rng)
        case "float":
            return rng.choice(REAL)
        case "bool":
            return rng.random() < 0.5
        case "number" | "Scalar":
            return whole(rng) if rng.random() < 0.5 else rng.choice(REAL)
        case "str":
            return rng.choice(
                ("", "none", "reflect", "replicate", "constant", "mean", "sum", "floor", "trunc", "tanh", "ij", "ij,jk->ik")
            )
        case _:
            return None


def attack(operation: torch._ops.OpOverload, tries: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(tries):
        positional, named = [], {}
        for argument in operation._schema.arguments:
            if argument.has_default_value() and rng.random() < 0.4:
                continue
            if argument.name in ("dtype", "layout", "memory_format"):  # programs with numbers for these are refused
                if argument.name == "dtype" and rng.random() < 0.3:
                    named["dtype"] = rng.choice(TYPES)
                continue
            kind = str(argument.type)
            if argument.kwarg_only:
                named[argument.name] = value(kind, rng)
            elif len(positional) == operation._schema.arguments.index(argument):
                positional.append(value(kind, rng))
            else:
                named[argument.name] = value(kind, rng)
        try:
            results = operation(*positional, **named)
            for result in results if isinstance(results, tuple | list) else (results,):
                if isinstance(result, torch.Tensor):
                    result.double().sum() if not result.is_complex() else result.sum()
        except (
            RuntimeError,
            TypeError,
            ValueError,
            IndexError,
            NotImplementedError,
            MemoryError,
            OverflowError,
            AssertionError,
            KeyError,
        ):
            pass


def main() -> None:
    logs.configure()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=sorted(ALLOWED | RANDOM))
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    for name in parsed.only:
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet), overload)
        if (pid := os.fork()) == 0:
            warnings.simplefilter("ignore")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 1))
            status = 1
            try:
                attack(operation, parsed.tries, seed=0)
                status = 0
            finally:
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            print(name, signal.Signals(-code).name if code < 0 else f"exit status {code}", flush=True)
    logger.info("%d operations called", len(parsed.only))


if __name__ == "__main__":
    main()

"""Hygiene of every process that computes: allocator, threads, determinism, device, and torch's random stream."""

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from cpgan_ray.common.logs import configure_like_job
from cpgan_ray.common.rng import torch_seed
from cpgan_ray.errors import InputError

Precision = Literal["float32", "bfloat16"]
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8


def set_up_process(*, threads: int, gpu_share: float = 0.0) -> None:
    """Call first in every process that computes. `gpu_share`: the fraction of a GPU it was given; Ray does not limit memory by it.

    glibc gives large tensors back to the system after each step and takes them again, page by page: without that a training step
    is about a third shorter. More torch threads than free cores cost up to 18 times.
    """
    configure_like_job()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(M_MMAP_THRESHOLD, 2**30)
            libc.mallopt(M_TOP_PAD, 64 << 20)
            libc.mallopt(M_ARENA_MAX, 1)  # what is kept is kept once, not once per thread
    if 0 < gpu_share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpu_share)
    torch.set_num_threads(max(1, threads))
    torch.set_flush_denormal(True)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports torch's compiler too, which takes 2 s
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]  # a tenth of the time


def give_back() -> None:
    """Free memory back to the system, of which `set_up_process` has glibc keep all. For between two pieces of work, not for within
    one: it takes a few hundredths of a second, and what is taken again as long."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def available_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """`auto`: CUDA where this process sees a GPU (Ray shows an actor only those it was given), else the CPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device is 'cuda', but no GPU is visible here: give the actors GPUs or set --runtime.device cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Within it, networks multiply in the given precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def compile_networks(*networks: nn.Module) -> None:
    """Compile networks in place, at their first call; their weights keep their names.

    Raises: InputError where there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise InputError(f"runtime.compile needs a C++ compiler, and there is no {compiler!r} here: install one or name it by CXX")
    torch.use_deterministic_algorithms(True, warn_only=True)  # which tells torch's compiler
    for network in networks:
        network.compile()


@contextlib.contextmanager
def torch_stream(seed: int, *path: str | int) -> Iterator[None]:
    """Torch's global random stream, inside the block, is the one of this role; outside it is untouched."""
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, *path))
        yield

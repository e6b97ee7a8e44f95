"""Settings of every process that computes: allocator, threads, determinism, device, and torch's random stream."""

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from cpgan_ray.common.garbage import resume_collection
from cpgan_ray.common.logs import configure_like_job
from cpgan_ray.common.rng import torch_seed
from cpgan_ray.errors import InputError

Precision = Literal["float32", "bfloat16"]
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8


def set_up_process(*, threads: int, gpu_share: float = 0.0) -> None:
    """Call this first in every process that computes.

    gpu_share: the fraction of a GPU that Ray has assigned to the process. Ray itself does not limit GPU memory to it.

    By default glibc returns the memory of large tensors to the system after each step and gets it again, page by page. Keeping it
    makes a training step about a third shorter. With more torch threads than free cores a step takes up to 18 times as long.
    """
    configure_like_job()
    resume_collection()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(M_MMAP_THRESHOLD, 2**30)
            libc.mallopt(M_TOP_PAD, 64 << 20)
            libc.mallopt(M_ARENA_MAX, 1)  # free memory is kept once, not once per thread
    if 0 < gpu_share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpu_share)
    torch.set_num_threads(max(1, threads))
    torch.set_flush_denormal(True)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import torch's compiler: 2 s
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]  # saves a tenth of the time


def trim_memory() -> None:
    """Returns free memory to the system; after `set_up_process` glibc keeps all of it. Call this only between two tasks: it takes a
    few hundredths of a second, and so does getting the memory again."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def available_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The torch device. `auto`: CUDA if this process sees a GPU (an actor of Ray sees only its own GPUs), else the CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device is 'cuda', but this process sees no GPU: give the actors GPUs or set --runtime.device cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which networks multiply matrices in the given precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def compile_networks(*networks: nn.Module) -> None:
    """Compiles networks in place, at their first call. Their weights keep their names.

    Raises: InputError if there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise InputError(
            f"runtime.compile needs a C++ compiler, but {compiler!r} is not installed: install it or set CXX to another one"
        )
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch's compiler reads this setting
    for network in networks:
        network.compile()


@contextlib.contextmanager
def torch_stream(seed: int, *path: str | int) -> Iterator[None]:
    """Inside the block torch's global random generator has this role's seed; outside it is unchanged."""
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, *path))
        yield

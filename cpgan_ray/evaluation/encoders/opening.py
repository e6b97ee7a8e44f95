"""Open a program file: in this process if this user's own runs have written it, any other in a process of its own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from cpgan_ray.common.ownership import is_own
from cpgan_ray.config import EncoderConfig
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.runners import KINDS, Runner, open_runner
from cpgan_ray.evaluation.encoders.sandbox import ProgramError, RefusedError, Sandbox, SandboxError, one_line

PRELOAD = {".pt2": "torch", ".onnx": "cpgan_ray.evaluation.encoders.onnx_models"}


def open_program(path: Path, *, what: str, settings: EncoderConfig) -> Runner:
    """Open a program: in this process if this user's own runs have written it, any other in a separate process.

    Raises: InputError if the file is damaged, or contains anything that could execute code.
    """
    unreadable = f"cannot be read as {KINDS[path.suffix]}"
    with as_input_error(
        f"{what} {path}", refused="is not loaded", stopped="cannot be opened", failed=unreadable, remedy="export it again"
    ):
        if is_own(path):
            return open_runner(path, stochastic=settings.stochastic, trusted=True)
        return open_in_sandbox(path, settings)


@contextlib.contextmanager
def as_input_error(program: str, *, refused: str, stopped: str, failed: str, remedy: str) -> Iterator[None]:
    """Convert the errors of a program into an InputError that says which one was refused, was stopped at a limit, or failed."""
    try:
        yield
    except RefusedError as e:
        raise InputError(f"{program} {refused}: {e}") from e
    except SandboxError as e:
        raise InputError(f"{program} {stopped}: {e}") from e
    except ProgramError as e:
        raise InputError(f"{program} {failed} ({e}): {remedy}") from e


def open_in_sandbox(path: Path, settings: EncoderConfig) -> Runner:
    """Open a program in a separate process."""
    limits = {"timeout_s": settings.timeout_s, "memory_gb": settings.memory_gb}
    sandbox = Sandbox(**limits, threads=torch.get_num_threads(), preload=PRELOAD[path.suffix])
    try:
        reply, _ = sandbox.request({"path": str(path), "stochastic": settings.stochastic})
        inputs = tuple(
            (tuple(s if type(s) is int else "?" for s in shape), one_line(dtype, 40)) for shape, dtype in reply["inputs"]
        )
    except (KeyError, TypeError, ValueError) as e:
        sandbox.close()
        if isinstance(e, RefusedError):
            raise
        raise SandboxError("its process sent a malformed reply") from e
    except BaseException:
        sandbox.close()
        raise
    return Runner(inputs, lambda x: sandbox.request({}, {"x": x})[1], lambda: sandbox.close() and None)

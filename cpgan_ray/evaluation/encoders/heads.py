"""The utility head of a run or a bundle: logits of codes, by its exported program."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cpgan_ray.config import EncoderConfig
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.opening import open_program
from cpgan_ray.evaluation.encoders.sandbox import ProgramError, SandboxError

BLOCK = 1000


def head_logits(path: Path, codes: Mapping[str, np.ndarray], settings: EncoderConfig, *, remedy: str) -> dict[str, np.ndarray]:
    """The logits (N, num_logits) float32 of a utility head on the codes (N, k) of each set. remedy: the end of a message.

    Raises: InputError if the head is damaged, or belongs to another encoder.
    """
    head = open_program(path, what="utility head", settings=settings)

    def outputs(z: np.ndarray) -> np.ndarray:
        (logits,) = head.run(z).values()
        if logits.ndim != 2 or len(logits) != len(z) or logits.dtype != np.float32:
            raise ProgramError(f"logits of shape {logits.shape}")
        return logits

    try:
        return {
            name: np.concatenate([outputs(z[start : start + BLOCK]) for start in range(0, len(z), BLOCK)])
            for name, z in codes.items()
        }
    except (ValueError, RuntimeError) as e:  # raised by its operations, limits or shapes
        reason = str(e) if isinstance(e, ProgramError | SandboxError) else type(e).__name__
        raise InputError(f"utility head {path} fails on the codes ({reason}): {remedy}") from e
    finally:
        head.close()

"""An adversary from a user's code, as the worker sees it."""

from typing import Any

import torch
from torch import Tensor

from cpgan_ray.common.plugins import label, own_code
from cpgan_ray.errors import InputError
from cpgan_ray.training.adversaries.base import Adversary, Target
from cpgan_ray.training.checkpoint import pack, unpack

METHODS = ("recover", "improve", "state_dict", "load_state_dict")


class OwnAdversary:
    """Checks what the adversary returns. Its errors become one line with file and line."""

    def __init__(self, adversary: Adversary, *, name: str) -> None:
        """name: of the part.

        Raises: InputError if it has not all methods of the protocol, or if its state cannot be stored.
        """
        self.adversary, self.name = adversary, name
        for method in METHODS:
            if not callable(getattr(adversary, method, None)):
                raise InputError(f"adversary {label(name)} has no method {method}: see docs/extending.md for the protocol")
        state = self.state_dict()
        try:
            unpack(pack(state), torch.device("cpu"))
        except Exception as e:  # torch raises several types
            raise InputError(
                f"adversary {label(name)}: its state_dict holds other objects than tensors, numbers, texts, lists and dicts, so a "
                "lost player could not be replaced: store only these"
            ) from e

    def recover(self, z: Tensor, target: Target) -> tuple[Tensor, slice]:
        with own_code(self.name, doing="calling recover of the adversary"):
            result = self.adversary.recover(z, target)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor) and isinstance(result[1], slice)):
            raise InputError(f"adversary {label(self.name)}: recover must return the errors and the slice of their rows")
        errors, rows = result
        expected = len(target.residual[rows])
        if errors.shape != (expected,) or not expected:
            raise InputError(
                f"adversary {label(self.name)}: recover returns errors of shape {tuple(errors.shape)} for {expected} rows; it must "
                "return one error for each row that it is scored on, such as target[rows].errors(predicted)"
            )
        if z.requires_grad and torch.is_grad_enabled() and not errors.requires_grad:
            raise InputError(
                f"adversary {label(self.name)}: the errors that recover returns do not depend on the codes, so they have no "
                "gradient: never detach them from z"
            )
        return errors, rows

    def improve(self, z: Tensor, target: Target) -> None:
        with own_code(self.name, doing="calling improve of the adversary"):
            self.adversary.improve(z, target)

    def state_dict(self) -> dict[str, Any]:
        with own_code(self.name, doing="calling state_dict of the adversary"):
            return dict(self.adversary.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with own_code(self.name, doing="calling load_state_dict of the adversary"):
            self.adversary.load_state_dict(state)

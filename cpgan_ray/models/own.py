"""Networks that the user has written, or gives as an object, as part of the project's networks."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cpgan_ray.common.plugins import Parts, label, part_error
from cpgan_ray.common.plugins.errors import PASSED
from cpgan_ray.errors import InputError


class OwnNetwork(nn.Module):
    """A network from a user's code: an error in it becomes one line with file and line."""

    def __init__(self, network: nn.Module, *, name: str, role: str) -> None:
        """name: of the part; role: "privatizer" or "utility head", for messages."""
        super().__init__()
        self.network, self.name, self.role = network, name, role

    def forward(self, x: Tensor) -> Tensor:
        try:
            out = self.network(x)
        except PASSED:
            raise
        except Exception as e:
            doing = "exporting" if torch.compiler.is_exporting() else "running"
            raise part_error(self.name, e, doing=f"{doing} the {self.role}") from e
        if (
            torch.compiler.is_exporting() or torch.compiler.is_compiling()
        ):  # comparing sizes would fix the batch size of the program
            return out
        if not isinstance(out, Tensor) or out.ndim < 2 or len(out) != len(x) or not out.is_floating_point():
            got = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"the {self.role} {label(self.name)} returns {got} for {len(x)} inputs; it must return floating-point numbers with "
                "one row for each: correct its forward"
            )
        return out


def build_network(parts: Parts[Any], name: str, *arguments: Any, role: str, **keywords: Any) -> nn.Module:
    """The network that a part builds; one of a user's own code is wrapped in an `OwnNetwork`.

    Raises: InputError if the part does not return a network, or its code fails.
    """
    network = parts.call(name, *arguments, **keywords)
    if not isinstance(network, nn.Module):
        raise InputError(f"{parts.field} {label(name)} returns {type(network).__name__}; it must return a torch.nn.Module")
    return OwnNetwork(network, name=name, role=role) if parts.is_own(name) else network


def family_of(network: nn.Module) -> str:
    """The name of a family whose stages are copies of a network, on the CPU.

    Raises: InputError if it is no network, or cannot be pickled.
    """
    from cpgan_ray.common.plugins.objects import object_name

    if not isinstance(network, nn.Module):
        raise InputError(f"privatizer is {type(network).__name__}; it must be a torch.nn.Module")
    return object_name(copy.deepcopy(network).cpu(), classes={type(part) for part in network.modules()})


def has_own_code(network: nn.Module) -> bool:
    """Whether a part of a network is a user's own."""
    return any(isinstance(part, OwnNetwork) for part in network.modules())


def device_for_shapes(*names: str) -> torch.device:
    """The device on which networks with these names are built only to check their shapes: `meta`, which needs no memory, unless
    one is a user's own, because its code may compute with numbers."""
    own = any(":" in name for name in names)
    return torch.device("cpu" if own else "meta")

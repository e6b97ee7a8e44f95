"""torch's Adam and AdamW without the import of torch's compiler.

torch marks the methods of its optimisers for its compiler, and for that each of them imports the compiler when it is first called:
0.7 s of CPU time and 145 MB in every process that trains a network, though no optimiser here is compiled. These classes call the
methods without their marks. The steps are bit for bit the same.
"""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch import optim


class UnmarkedMethods(optim.Optimizer):
    """The methods that all optimisers have in common. An unmarked method of a later torch works just as well."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        unwrap(optim.Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        return unwrap(optim.Optimizer.state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        unwrap(optim.Optimizer.load_state_dict)(self, state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        unwrap(optim.Optimizer.zero_grad)(self, set_to_none)


class Adam(UnmarkedMethods, optim.Adam):
    """See `torch.optim.Adam`."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.no_grad():
            return unwrap(optim.Adam.step)(self, closure)


class AdamW(Adam, optim.AdamW):
    """See `torch.optim.AdamW`, which is an Adam with another decay."""

"""The processes that share a batch, as the defender sees them."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class DataParallelGroup(Protocol):
    """The processes that share a batch, each with a copy of the defender, as seen by one of them. All make the same calls in the
    same order. Implemented by `SingleProcess` and by the group of distributed/ddp."""

    count: int
    rank: int

    def local_slice(self, num_rows: int) -> slice:
        """The rows of this process, of a batch of `num_rows`."""
        ...

    def gather(self, part: Tensor, num_rows: int) -> Tensor:
        """The rows of all processes, in order; `part`: the rows of this one."""
        ...

    def total(self, value: Tensor) -> Tensor:
        """The sum of the values of all processes."""
        ...

    def average(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The mean over all processes, for each of the tensors."""
        ...

    def wrap_ddp(self, network: nn.Module) -> nn.Module:
        """A wrapper to call in training instead of the network: normalisation and random draws are those of the whole batch, and
        gradients of the parameters are averaged over all processes."""
        ...


class SingleProcess:
    """A group of one process, which holds the whole batch."""

    count, rank = 1, 0

    def local_slice(self, num_rows: int) -> slice:
        return slice(0, num_rows)

    def gather(self, part: Tensor, num_rows: int) -> Tensor:
        return part

    def total(self, value: Tensor) -> Tensor:
        return value

    def average(self, values: Sequence[Tensor]) -> list[Tensor]:
        return list(values)

    def wrap_ddp(self, network: nn.Module) -> nn.Module:
        return network

"""Batch norm statistics that are those of the weights that are handed out.

In training, the running statistics lag behind the weights: they are an exponential average over the last rounds, and each round
had other weights. After few rounds they are far from what the final weights make of pictures; averaged weights never had any.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def refresh_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the running mean and variance of every batch norm of a network to the mean of those of some batches, in place.

    In each batch every layer normalises with the statistics of that batch, as in training (the procedure of
    `torch.optim.swa_utils.update_bn`); all else is as in use: nothing is dropped, no random number is drawn. The network is left in
    evaluation mode. Without a batch norm nothing is computed.

    batches: inputs of the network (B, ...), B > 1, each of about the size of a training batch.
    """
    network.eval()
    norms = norm_layers(network)
    if not norms:
        return
    sums: dict[_BatchNorm, list[Any]] = {norm: [0.0, 0.0] for norm in norms}
    hooks = [norm.register_forward_hook(normalise_by_batch(sums[norm])) for norm in norms]
    count = 0
    try:
        for batch in batches:
            network(batch)
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if count == 0:
        raise ValueError("no batch to take the statistics of")
    for norm, (mean, variance) in sums.items():
        norm.running_mean.copy_(mean / count)  # pyright: ignore[reportOptionalMemberAccess]
        norm.running_var.copy_(variance / count)  # pyright: ignore[reportOptionalMemberAccess]


def norm_layers(network: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a network that keep running statistics."""
    return [part for part in network.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]


def normalise_by_batch(sums: list[Any]) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor]:
    """A forward hook that replaces the output of a batch norm by that of training mode, and adds the mean and the (unbiased)
    variance (C,) of the batch, in float64, to `sums`."""

    def hook(norm: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        assert isinstance(norm, _BatchNorm)
        x = inputs[0]
        over = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x.double(), dim=over)
        sums[0], sums[1] = sums[0] + mean, sums[1] + variance
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    return hook

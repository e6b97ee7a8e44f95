"""Compute batch norm statistics that match the released weights.

In training, the running statistics lag behind the weights, because they are an exponential average over rounds with different
weights. After few rounds they are far from the statistics of the final weights; averaged weights have no statistics of their own.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def refresh_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running mean and variance of every batch norm of a network to the average over some batches, in place.

    In each batch every batch norm normalises with the statistics of that batch, as in training (like
    `torch.optim.swa_utils.update_bn`); all other layers are in evaluation mode: no dropout, no random numbers. The network stays in
    evaluation mode. Without a batch norm nothing is computed.

    batches: inputs of the network (B, ...), B > 1, each about as large as a training batch.

    Raises:
        ValueError: there are no batches.
    """
    network.eval()
    norms = norm_layers(network)
    if not norms:
        return
    sums: dict[_BatchNorm, list[Any]] = {norm: [0.0, 0.0] for norm in norms}
    plain, others = ([norm for norm in norms if has_own_forward(norm) is own] for own in (False, True))
    hooks = [norm.register_forward_hook(normalise_by_batch(sums[norm])) for norm in plain]
    hooks += [norm.register_forward_pre_hook(add_statistics(sums[norm])) for norm in others]
    momenta = [norm.momentum for norm in others]
    count = 0
    try:
        for norm in others:
            norm.training, norm.momentum = True, 0.0
        for batch in batches:
            network(batch)
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(others, momenta, strict=True):
            norm.training, norm.momentum = False, momentum
    if count == 0:
        raise ValueError("there are no batches to compute the statistics from")
    for norm, (mean, variance) in sums.items():
        norm.running_mean.copy_(mean / count)  # pyright: ignore[reportOptionalMemberAccess]
        norm.running_var.copy_(variance / count)  # pyright: ignore[reportOptionalMemberAccess]


def has_own_forward(norm: _BatchNorm) -> bool:
    """Whether a batch norm is of a class from outside, which may do more than normalise: those of timm apply an activation too."""
    return not type(norm).__module__.startswith(("torch.", "cpgan_ray."))


def norm_layers(network: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a network that keep running statistics."""
    return [part for part in network.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]


def add_statistics(sums: list[Any]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that adds the mean and the (unbiased) variance (C,) of a batch norm's input, in float64, to `sums`."""

    def hook(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        variance, mean = torch.var_mean(x.double(), dim=[0, *range(2, x.ndim)])
        sums[0], sums[1] = sums[0] + mean, sums[1] + variance

    return hook


def normalise_by_batch(sums: list[Any]) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor]:
    """A forward hook that replaces the output of a batch norm by its output in training mode, and adds the mean and the (unbiased)
    variance (C,) of the batch, in float64, to `sums`."""

    def hook(norm: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        assert isinstance(norm, _BatchNorm)
        x = inputs[0]
        dims = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x.double(), dim=dims)
        sums[0], sums[1] = sums[0] + mean, sums[1] + variance
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    return hook

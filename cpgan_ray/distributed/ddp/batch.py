"""Sharing a batch among workers: the rows of each worker, and batch statistics and dropout of the whole batch."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from ray.train.torch import prepare_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cpgan_ray.common.process import pick_device
from cpgan_ray.config import Config
from cpgan_ray.errors import InputError
from cpgan_ray.models.statistics import has_own_forward


class Group:
    """The workers that share a batch, as a `DataParallelGroup`: torch.distributed's default process group."""

    def __init__(self, config: Config) -> None:
        self.count, self.rank = dist.get_world_size(), dist.get_rank()
        self.device, self.batch_size = pick_device(config.runtime.device), config.batch_size

    def local_slice(self, num_rows: int) -> slice:
        """Parts of nearly equal size; all rows for every worker if there are fewer rows than workers."""
        if num_rows < self.count:
            return slice(0, num_rows)
        return slice(num_rows * self.rank // self.count, num_rows * (self.rank + 1) // self.count)

    def gather(self, part: Tensor, num_rows: int) -> Tensor:
        """Sums tensors that are zero outside each worker's rows, because all_gather needs parts of equal size."""
        if num_rows < self.count:
            return part
        whole = part.new_zeros(num_rows, *part.shape[1:])
        whole[self.local_slice(num_rows)] = part.detach()
        dist.all_reduce(whole)
        return whole

    def total(self, value: Tensor) -> Tensor:
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def average(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Needed for the copies of `stale1`: DistributedDataParallel only averages a module's own parameters."""
        if not values:
            return []
        flat = self.total(torch.cat([value.flatten() for value in values])) / self.count
        parts = flat.split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def wrap_ddp(self, network: nn.Module) -> nn.Module:
        use_whole_batch_layers(network, rows=self.local_slice(self.batch_size), num_rows=self.batch_size)
        # batch statistics are already the same on all workers
        return prepare_model(network, move_to_device=self.device, parallel_strategy_kwargs={"broadcast_buffers": False})

    def broadcast(self, value: Any) -> Any:
        """Returns the first worker's value on all workers."""
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]


def use_whole_batch_layers(network: nn.Module, *, rows: slice, num_rows: int) -> None:
    """Replaces a network's batch norms and dropout by layers that behave as on the whole batch, for these rows. Parameters, buffers
    and their names stay the same."""
    for name, part in network.named_children():
        if isinstance(part, _BatchNorm):
            setattr(network, name, whole_batch_norm(part))
        elif isinstance(part, nn.Dropout) and part.p > 0:
            setattr(network, name, WholeDropout(part.p, rows=rows, num_rows=num_rows))
        else:
            use_whole_batch_layers(part, rows=rows, num_rows=num_rows)


def whole_batch_norm(norm: _BatchNorm) -> _BatchNorm:
    """The same batch norm over the whole batch. torch's SyncBatchNorm works only on a GPU.

    Raises: InputError if it is of a class that may do more than normalise.
    """
    if has_own_forward(norm):
        raise InputError(
            f"privatizer.num_workers is more than 1, but the network has batch norms of its own class {type(norm).__name__}, whose "
            "statistics the workers cannot exchange: set --privatizer.num-workers 1"
        )
    if norm.running_mean is not None and norm.running_mean.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # pyright: ignore[reportReturnType]
    whole = WholeBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
    for name, value in (*norm.named_parameters(), *norm.named_buffers()):
        setattr(whole, name, value)
    return whole


class WholeBatchNorm(_BatchNorm):
    """Batch norm with the statistics of all workers' rows (B, C, ...) in training mode; the usual one in evaluation mode."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        mean, variance, count = whole_statistics(input.detach())
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            for running, current in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
                running.mul_(1 - self.momentum).add_(self.momentum * current)
        return Normalise.apply(input, mean, variance, count, self.weight, self.bias, self.eps)  # pyright: ignore


def whole_statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance (C,) over all workers' x (B, C, ...), and the number of values. Combined in float64."""
    variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
    statistics = x.new_zeros(dist.get_world_size(), 2 * len(mean) + 1, dtype=torch.float64)
    statistics[dist.get_rank()] = torch.cat([mean, variance, mean.new_tensor([x.numel() // x.shape[1]])])
    dist.all_reduce(statistics)
    counts, (means, variances) = statistics[:, -1:], statistics[:, :-1].chunk(2, dim=1)
    count = counts.sum()
    center = (counts * means).sum(0) / count
    spread = (counts * (variances + (means - center) ** 2)).sum(0) / count
    return center.to(x.dtype), spread.to(x.dtype), float(count)


class Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps), scaled and shifted, for x (B, C, ...) with statistics (C,) of all workers' x.

    With x^ the normalised x and N the number of values of all workers, dx = scale (dy - sum dy / N - x^ sum(dy x^) / N) /
    sqrt(variance + eps), with sums over all workers. The gradients of scale and shift are those of this worker's rows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, count: float, scale: Tensor | None, shift: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, mean, variance, scale)
        ctx.count, ctx.eps = count, eps
        return F.batch_norm(x, mean, variance, scale, shift, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, mean, variance, scale = ctx.saved_tensors
        (dy,) = grads
        shape = [1, -1] + [1] * (x.ndim - 2)
        axes = [0, *range(2, x.ndim)]
        normalised = (x - mean.view(shape)) * (variance + ctx.eps).rsqrt().view(shape)
        shift_grad, scale_grad = dy.sum(axes), (dy * normalised).sum(axes)
        sums = torch.stack([shift_grad, scale_grad])
        dist.all_reduce(sums)
        mean_dy, mean_dy_x = (s.view(shape) for s in sums / ctx.count)
        slope = (variance + ctx.eps).rsqrt() if scale is None else scale * (variance + ctx.eps).rsqrt()
        dx = slope.view(shape) * (dy - mean_dy - normalised * mean_dy_x)
        affine = scale is not None
        return dx, None, None, None, scale_grad if affine else None, shift_grad if affine else None, None


class WholeDropout(nn.Module):
    """Dropout for some rows of a batch, with their part of the whole batch's mask."""

    def __init__(self, p: float, *, rows: slice, num_rows: int) -> None:
        super().__init__()
        self.p, self.rows, self.num_rows = p, rows, num_rows

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        whole = torch.ones(self.num_rows, *x.shape[1:], dtype=x.dtype, device=x.device)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            whole = whole.to(memory_format=torch.channels_last)  # random draws follow the memory order
        return x * F.dropout(whole, self.p, training=True)[self.rows]

"""Linear layers whose products are computed by oneDNN, for networks that are trained on a CPU.

On processors that are not made by Intel, oneDNN's product is twice as fast as that of torch's linear layer, which is MKL's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cpgan_ray.common.products import has_product, product


class LinearFunction(torch.autograd.Function):
    """x W' + b with x (B, k) and W (p, k). With the gradient G of the output: dx = G W, dW = G' x, db = the sum over rows of G."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grads[0], weight.T) if for_x else None,
            product(grads[0].T, x.T) if for_weight else None,
            grads[0].sum(0) if for_bias else None,
        )


class Linear(nn.Linear):
    """`torch.nn.Linear` with a bias, for inputs (B, k). Where oneDNN has no such product, and in an exported program, it is torch's
    own."""

    def forward(self, input: Tensor) -> Tensor:
        exact = input.ndim == 2 and not torch.is_autocast_enabled(input.device.type)
        if exact and has_product(input) and not torch.compiler.is_compiling():
            return LinearFunction.apply(input, self.weight, self.bias)  # pyright: ignore[reportReturnType]
        return super().forward(input)

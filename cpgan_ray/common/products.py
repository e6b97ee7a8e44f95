"""Matrix products by oneDNN, which on processors that are not made by Intel is twice as fast as torch's own product."""

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b', (n, m), of a (n, k) and b (m, k), plus `bias` (m,) in each row; by oneDNN where it can."""
    if has_product(a):
        # of operands that are not contiguous, oneDNN has only a slow reference implementation
        return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.contiguous(), bias, "none", [], "")
    return a @ b.T if bias is None else torch.addmm(bias, a, b.T)


def has_product(a: Tensor) -> bool:
    """Whether oneDNN has the product of this matrix (n, k) with another one."""
    on_cpu = a.dtype == torch.float32 and a.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return on_cpu and a.numel() > 0

"""Exact kernel ridge regression (KRR) on a set of rows: the kernel matrix is computed once, and solved for any penalty.

The fit is x_hat(z) = mean(x) + k(z, codes) alpha with alpha = (K + n penalty I)^-1 (x - mean(x)). Rows with the same code are
merged into one row: the fit stays the same, and the system is smaller.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.evaluation.attacks.base import CodeMap, predict
from cpgan_ray.training.adversaries.cholesky import Cholesky, ExtendedCholesky, NotPositiveDefiniteError

Kernel = Literal["rbf", "laplace"]
KERNELS: tuple[Kernel, ...] = ("rbf", "laplace")
MAX_DOUBLE_ROWS = 4096
"""Up to this number of rows a system is solved in float64. A larger one is solved in float32: it takes a third of the time and half
of the memory, and its penalty is far above the precision."""
BLOCK_VALUES = 1 << 24
"""Number of kernel values that are in memory at once, in addition to the system's matrix."""


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n, m) between codes a (n, k) and b (m, k)."""
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :]
    return torch.addmm(squared, a, b.T, alpha=-2).clamp_(min=0)


def kernel_of(squared: Tensor, kernel: Kernel, *, width: float) -> Tensor:
    """Kernel values from squared distances."""
    return torch.exp(squared / (-2 * width**2)) if kernel == "rbf" else torch.exp(squared.sqrt() / -width)


@dataclass(frozen=True, eq=False)
class KernelMap:
    """mean(x) + k(z, codes) alpha."""

    prepare: CodeMap
    codes: Tensor  # (n, m) prepared
    alpha: Tensor  # (n, p)
    mean: Tensor  # (p,)
    kernel: Kernel
    width: float

    def __call__(self, z: Tensor, /) -> Tensor:
        rows = max(1, BLOCK_VALUES // len(self.codes))
        return predict(self.block, self.prepare(z), rows=rows)

    def block(self, prepared: Tensor) -> Tensor:
        weights = kernel_of(distances(prepared, self.codes), self.kernel, width=self.width)
        return torch.addmm(self.mean, weights, self.alpha)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the large parts as numpy arrays: Ray puts these into its object store, and readers share them without a copy."""
        arrays = (self.codes.cpu().numpy(), self.alpha.cpu().numpy(), self.mean.cpu().numpy())
        return _unpickled, (self.prepare, *arrays, self.kernel, self.width)


def _unpickled(prepare: CodeMap, codes: np.ndarray, alpha: np.ndarray, mean: np.ndarray, kernel: Kernel, width: float) -> KernelMap:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return KernelMap(prepare, torch.from_numpy(codes), torch.from_numpy(alpha), torch.from_numpy(mean), kernel, width)


@dataclass(frozen=True, eq=False)
class Merged:
    """Rows with the same code as one row: the fit depends only on their number and on the mean of their targets."""

    z: Tensor  # (n, k)
    x: Tensor  # (n, p) mean target
    count: Tensor  # (n,)

    @property
    def total(self) -> int:
        return int(self.count.sum())


def merge_rows(z: Tensor, x: Tensor) -> Merged:
    """Merge rows with the same code. Codes of labels, and short rounded codes, have many."""
    unique, inverse, count = torch.unique(z, dim=0, return_inverse=True, return_counts=True)
    if len(unique) == len(z):
        return Merged(z, x, torch.ones_like(z[:, 0]))
    sums = torch.zeros(len(unique), x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, inverse, x.double())
    return Merged(unique, (sums / count[:, None]).float(), count.float())


class KernelSystem:
    """Exact KRR on some rows: the kernel matrix is computed once, and solved for any penalty.

    With c_i rows of the same code, alpha = (K + n penalty C^-1)^-1 (x - mean(x)) is the same fit as on all n rows, C = diag(c).
    """

    def __init__(self, rows: Merged, prepare: CodeMap, kernel: Kernel, *, width: float) -> None:
        self.rows, self.prepare, self.width = rows, prepare, width
        self.kernel: Kernel = kernel
        self.codes = predict(prepare, rows.z)
        self.dtype = torch.float64 if len(self.codes) <= MAX_DOUBLE_ROWS else torch.float32
        self.gram = self.kernel_matrix(self.codes, self.codes)  # the lower triangle is that of the last factor
        self.factor: Cholesky | None = None

    def kernel_matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """Kernel values (n, m) of prepared codes a (n, k) and b (m, k)."""
        a, b = a.to(self.dtype), b.to(self.dtype)
        values = torch.empty(len(a), len(b), dtype=self.dtype, device=a.device)
        block = max(1, BLOCK_VALUES // len(b))
        for start in range(0, len(a), block):
            part = slice(start, start + block)
            values[part] = kernel_of(distances(a[part], b), self.kernel, width=self.width)
        return values

    def solve(self, penalty: float) -> KernelMap | None:
        """The fit; None if the penalty is too small for the precision of the system."""
        self.gram.diagonal().copy_(1 + self.rows.total * penalty / self.rows.count)
        self.factor = None
        try:
            self.factor = Cholesky(self.gram)
        except NotPositiveDefiniteError:
            return None
        return self.fit(self.factor, self.rows, self.codes)

    def extended(self, factor: Cholesky, rows: Merged, penalty: float) -> KernelMap | None:
        """The fit on rows that begin with those of this system, from its factor for the same penalty * rows (the variance of the
        noise in the equivalent Gaussian process). None if the penalty is too small for the precision of the system."""
        known = len(self.codes)
        codes = torch.cat([self.codes, predict(self.prepare, rows.z[known:])])
        corner = self.kernel_matrix(codes[known:], codes[known:])
        corner.diagonal().copy_(1 + rows.total * penalty / rows.count[known:])
        try:
            return self.fit(ExtendedCholesky(factor, self.kernel_matrix(codes[known:], self.codes), corner), rows, codes)
        except NotPositiveDefiniteError:
            return None

    def fit(self, factor: Cholesky | ExtendedCholesky, rows: Merged, codes: Tensor) -> KernelMap | None:
        """The fit on rows with these prepared codes; None if it is not finite."""
        x = rows.x.double()
        mean = (x * rows.count[:, None]).sum(0) / rows.total
        alpha = factor.solve((x - mean).to(self.dtype).T.contiguous()).T.float().contiguous()
        finite = bool(alpha.isfinite().all())
        return KernelMap(self.prepare, codes, alpha, mean.float(), self.kernel, self.width) if finite else None

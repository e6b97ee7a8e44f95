"""Ridge regression in two forms: differentiable, and by streaming normal equations.

Both centre codes and targets and add the mean back. (The reference implementation fits on centred and predicts from uncentred
codes.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearMap:
    """x_hat = z W + b, the result of a ridge fit. W: (k, p), b: (p,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.weight.to(z.dtype) + self.bias.to(z.dtype)


def ridge(z: Tensor, x: Tensor, *, penalty: float) -> LinearMap:
    """Ridge with an unpenalised intercept, differentiable in z: W = (Zc'Zc + n penalty I)^-1 Zc'Xc, b = mean(x) - mean(z) W.

    z: (n, k), x: (n, p). The penalty is per row (scikit-learn's alpha is n * penalty). Source: Hoerl and Kennard, Ridge regression,
    Technometrics 12, 1970, here with an unpenalised intercept.

    With n < k the equal form W = Zc'(ZcZc' + n penalty I)^-1 Xc is used, in float64: codes that are pictures have thousands of
    highly correlated numbers, and in float32 the Cholesky factorisation of their Gram matrix fails.
    """
    z_mean, x_mean = z.mean(0), x.mean(0)
    zc = z - z_mean
    if len(z) < z.shape[1]:
        rows = zc.double()
        gram = rows @ rows.T + len(z) * penalty * torch.eye(len(z), dtype=rows.dtype, device=z.device)
        weight = rows.T @ torch.cholesky_solve((x - x_mean).double(), torch.linalg.cholesky(gram))
        weight = weight.to(z.dtype)
        return LinearMap(weight, x_mean - z_mean @ weight)
    gram = zc.T @ zc + len(z) * penalty * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    weight = torch.cholesky_solve(zc.T @ (x - x_mean), torch.linalg.cholesky(gram))
    return LinearMap(weight, x_mean - z_mean @ weight)


class NormalEquations:
    """Running sums for a ridge fit on any number of rows: sums, Z'Z, Z'X, x'x in float64. The rows are not stored."""

    def __init__(self, k: int, p: int, *, device: torch.device | None = None) -> None:
        options = {"dtype": torch.float64, "device": device}
        self.rows = 0
        self.z_sum, self.x_sum = torch.zeros(k, **options), torch.zeros(p, **options)
        self.zz, self.zx, self.xx = torch.zeros(k, k, **options), torch.zeros(k, p, **options), 0.0

    def add(self, z: Tensor, x: Tensor) -> None:
        """Add rows z (n, k) with targets x (n, p) to the sums."""
        z, x = z.double(), x.double()
        self.rows += len(z)
        self.z_sum += z.sum(0)
        self.x_sum += x.sum(0)
        self.zz += z.T @ z
        self.zx += z.T @ x
        self.xx += float((x * x).sum())

    def merge(self, other: "NormalEquations") -> "NormalEquations":
        """New sums over both sets of rows."""
        merged = NormalEquations(*self.zx.shape, device=self.zx.device)
        merged.rows, merged.xx = self.rows + other.rows, self.xx + other.xx
        for name in ("z_sum", "x_sum", "zz", "zx"):
            setattr(merged, name, getattr(self, name) + getattr(other, name))
        return merged

    def solve(self, *, penalty: float) -> LinearMap:
        """The same fit as `ridge` on all added rows."""
        n = self.rows
        z_mean, x_mean = self.z_sum / n, self.x_sum / n
        gram = self.zz - n * torch.outer(z_mean, z_mean)
        gram.diagonal().add_(n * penalty)
        cross = self.zx - n * torch.outer(z_mean, x_mean)
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
        return LinearMap(weight, x_mean - z_mean @ weight)

    def squared_error(self, fit: LinearMap) -> float:
        """Sum of |x - x_hat|^2 over all added rows, computed from the sums."""
        w, b = fit.weight.double(), fit.bias.double()
        predicted = (w * (self.zz @ w)).sum() + 2 * (self.z_sum @ w) @ b + self.rows * (b @ b)
        return float(self.xx - 2 * ((w * self.zx).sum() + self.x_sum @ b) + predicted)

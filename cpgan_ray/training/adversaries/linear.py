"""Ridge regression in the two forms that the adversaries need: inside the gradient, and by streaming normal equations.

Both centre the codes and the targets and add the mean back (the original fitted centred and predicted uncentred).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearMap:
    """x_hat = z W + b; what a ridge fit yields. W: (k, p), b: (p,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.weight.to(z.dtype) + self.bias.to(z.dtype)


def ridge(z: Tensor, x: Tensor, *, penalty: float) -> LinearMap:
    """Ridge with an unpenalised intercept, differentiable in z: W = (Zc'Zc + n penalty I)^-1 Zc'Xc, b = mean(x) - mean(z) W.

    z: (n, k), x: (n, p). The penalty is per row (scikit-learn's alpha is n * penalty). Source: Hoerl and
    Kennard, Ridge regression, Technometrics 12, 1970; with the intercept left unpenalised.

    With fewer rows than numbers in a code it is W = Zc'(ZcZc' + n penalty I)^-1 Xc, the same, in float64: codes that are pictures
    have thousands of numbers, so alike that float32 has no Cholesky factor of their Gram matrix.
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
    """Running sums from which a ridge fit on any number of rows follows: sums, Z'Z, Z'X, x'x in float64, never the rows."""

    def __init__(self, k: int, p: int, *, device: torch.device | None = None) -> None:
        like = {"dtype": torch.float64, "device": device}
        self.rows = 0
        self.z_sum, self.x_sum = torch.zeros(k, **like), torch.zeros(p, **like)
        self.zz, self.zx, self.xx = torch.zeros(k, k, **like), torch.zeros(k, p, **like), 0.0

    def add(self, z: Tensor, x: Tensor) -> None:
        """Take in rows z (n, k) with targets x (n, p)."""
        z, x = z.double(), x.double()
        self.rows += len(z)
        self.z_sum += z.sum(0)
        self.x_sum += x.sum(0)
        self.zz += z.T @ z
        self.zx += z.T @ x
        self.xx += float((x * x).sum())

    def merge(self, other: "NormalEquations") -> "NormalEquations":
        """The sums over both sets of rows."""
        both = NormalEquations(*self.zx.shape, device=self.zx.device)
        both.rows, both.xx = self.rows + other.rows, self.xx + other.xx
        for name in ("z_sum", "x_sum", "zz", "zx"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def solve(self, *, penalty: float) -> LinearMap:
        """The same fit as `ridge` on all rows taken in."""
        n = self.rows
        z_mean, x_mean = self.z_sum / n, self.x_sum / n
        gram = self.zz - n * torch.outer(z_mean, z_mean)
        gram.diagonal().add_(n * penalty)
        cross = self.zx - n * torch.outer(z_mean, x_mean)
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
        return LinearMap(weight, x_mean - z_mean @ weight)

    def squared_error(self, fit: LinearMap) -> float:
        """Sum over the rows taken in of |x - x_hat|^2, without the rows."""
        w, b = fit.weight.double(), fit.bias.double()
        predicted = (w * (self.zz @ w)).sum() + 2 * (self.z_sum @ w) @ b + self.rows * (b @ b)
        return float(self.xx - 2 * ((w * self.zx).sum() + self.x_sum @ b) + predicted)

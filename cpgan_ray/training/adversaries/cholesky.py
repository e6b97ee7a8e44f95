"""Cholesky factors by blocks, for large systems of kernel ridge regression.

On processors that are not made by Intel, LAPACK's factorisation and triangular solves are several times as slow as a product by
oneDNN, which is twice as fast as torch's own. Therefore all work but the diagonal blocks is done as products a b', by oneDNN where
it can. The inverses of the diagonal blocks are computed, so that triangular solves become products, too (Golub and Van Loan, Matrix
computations, 4th edition, section 4.2.9).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cpgan_ray.common.products import product

SMALL_ROWS, SMALL_BLOCK, LARGE_BLOCK = 4096, 256, 1024
"""A matrix with at most SMALL_ROWS rows is factored in blocks of SMALL_BLOCK rows, a larger one in blocks of LARGE_BLOCK rows."""


class NotPositiveDefiniteError(ArithmeticError):
    """A matrix is not positive definite in its precision."""


class Cholesky:
    """A = L L' of a symmetric positive definite matrix. Right-hand sides are given transposed, one in each row: (p, n)."""

    def __init__(self, matrix: Tensor) -> None:
        """matrix: (n, n). Its upper triangle and its diagonal are read; L replaces its lower triangle, and the part above the
        diagonal stays.

        Raises: NotPositiveDefiniteError.
        """
        self.matrix = matrix
        self.block = SMALL_BLOCK if len(matrix) <= SMALL_ROWS else LARGE_BLOCK
        self.inverses: list[Tensor] = []  # of the diagonal blocks
        for block, end in self.blocks():
            panel = matrix[block, block.start :].T - product(matrix[block.start :, : block.start], matrix[block, : block.start])
            size = end - block.start
            diagonal, failed = torch.linalg.cholesky_ex(panel[:size])
            if int(failed):
                raise NotPositiveDefiniteError(f"a matrix of {len(matrix)} rows")
            unit = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
            self.inverses.append(torch.linalg.solve_triangular(diagonal, unit, upper=False).contiguous())
            matrix[block, block] = diagonal + matrix[block, block].triu(1)
            if end < len(matrix):
                matrix[end:, block] = product(panel[size:], self.inverses[-1])

    def copy(self) -> "Cholesky":
        """A copy, which stays valid when the matrix is written to."""
        other = object.__new__(Cholesky)
        other.matrix, other.block, other.inverses = self.matrix.clone(), self.block, self.inverses
        return other

    def blocks(self) -> Iterator[tuple[slice, int]]:
        """The diagonal blocks, and the row behind each."""
        for start in range(0, len(self.matrix), self.block):
            end = min(start + self.block, len(self.matrix))
            yield slice(start, end), end

    def forward(self, b: Tensor) -> Tensor:
        """(L^-1 B)' from B' (p, n)."""
        y = torch.empty_like(b, memory_format=torch.contiguous_format)
        for (block, _), inverse in zip(self.blocks(), self.inverses, strict=True):
            y[:, block] = product(b[:, block] - product(y[:, : block.start], self.matrix[block, : block.start]), inverse)
        return y

    def backward(self, y: Tensor) -> Tensor:
        """(L'^-1 Y)' from Y' (p, n)."""
        x = torch.empty_like(y, memory_format=torch.contiguous_format)
        for (block, end), inverse in zip(reversed([*self.blocks()]), reversed(self.inverses), strict=True):
            x[:, block] = product(y[:, block] - product(x[:, end:], self.matrix[end:, block].T), inverse.T)
        return x

    def solve(self, b: Tensor) -> Tensor:
        """(A^-1 B)' from B' (p, n)."""
        return self.backward(self.forward(b))


class ExtendedCholesky:
    """The factor of [[A, C'], [C, D]] from that of A: of the work, only what the new rows add.

    L = [[L_A, 0], [W, L_S]] with W = C L_A'^-1 and S = D - W W'.
    """

    def __init__(self, first: Cholesky, cross: Tensor, corner: Tensor) -> None:
        """first: of A (n, n); cross: C (m, n); corner: D (m, m).

        Raises: NotPositiveDefiniteError.
        """
        self.first, self.cross = first, first.forward(cross)
        self.second = Cholesky(corner - product(self.cross, self.cross))

    def solve(self, b: Tensor) -> Tensor:
        """The solution, transposed, from B' (p, n + m)."""
        rows = self.cross.shape[1]
        y = self.first.forward(b[:, :rows])
        x_new = self.second.solve(b[:, rows:] - product(y, self.cross))
        return torch.cat([self.first.backward(y - product(x_new, self.cross.T)), x_new], dim=1)

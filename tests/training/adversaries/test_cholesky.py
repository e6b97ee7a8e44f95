"""Tests of the blocked Cholesky factor against numpy in float64."""

import numpy as np
import pytest
import torch

from cpgan_ray.common.products import product
from cpgan_ray.training.adversaries.cholesky import SMALL_BLOCK, Cholesky, ExtendedCholesky, NotPositiveDefiniteError

torch.set_num_threads(1)

ROWS = 2 * SMALL_BLOCK + 40
"""Two whole blocks, and a part of one."""
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}


def system(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A kernel matrix with a penalty, and right-hand sides (3, rows)."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, 3))
    matrix = np.exp(-0.5 * np.square(z[:, None] - z[None]).sum(axis=2)) + 0.1 * np.eye(rows)
    return torch.from_numpy(matrix).to(dtype), torch.from_numpy(rng.normal(size=(3, rows))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cholesky_solves_like_numpy_and_keeps_the_upper_triangle(dtype):
    matrix, b = system(ROWS, dtype)
    expected = np.linalg.solve(matrix.double().numpy(), b.double().numpy().T).T
    lower = np.linalg.cholesky(matrix.double().numpy())
    work = matrix.clone()
    factor = Cholesky(work)
    assert factor.solve(b).numpy() == pytest.approx(expected, abs=TOLERANCE[dtype] * np.abs(expected).max())
    assert work.tril().numpy() == pytest.approx(lower, abs=TOLERANCE[dtype])
    assert torch.equal(work.triu(1), matrix.triu(1))


def test_cholesky_of_the_same_matrix_with_another_diagonal():
    """After the diagonal is set again, the matrix that holds the last factor can be factored again; a copy stays as it was."""
    matrix, b = system(ROWS, torch.float64)
    work = matrix.clone()
    first = Cholesky(work).copy()
    work.diagonal().fill_(1.7)
    second = Cholesky(work)
    changed = matrix.clone()
    changed.diagonal().fill_(1.7)
    assert second.solve(b).numpy() == pytest.approx(torch.linalg.solve(changed, b.T).T.numpy(), abs=1e-9)
    assert first.solve(b).numpy() == pytest.approx(torch.linalg.solve(matrix, b.T).T.numpy(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extended_cholesky_solves_the_larger_system(dtype):
    matrix, b = system(ROWS, dtype)
    known = SMALL_BLOCK + 9
    first = Cholesky(matrix[:known, :known].clone())
    extended = ExtendedCholesky(first, matrix[known:, :known], matrix[known:, known:].clone())
    expected = np.linalg.solve(matrix.double().numpy(), b.double().numpy().T).T
    assert extended.solve(b).numpy() == pytest.approx(expected, abs=TOLERANCE[dtype] * np.abs(expected).max())


def test_cholesky_of_an_indefinite_matrix_is_refused():
    matrix, _ = system(ROWS, torch.float32)
    matrix[-1, -1] = -1
    with pytest.raises(NotPositiveDefiniteError):
        Cholesky(matrix)


def test_product_of_strided_operands():
    a, b = torch.randn(7, 5).T, torch.randn(4, 14)[:, ::2]
    assert torch.allclose(product(a, b), a @ b.T, atol=1e-5)

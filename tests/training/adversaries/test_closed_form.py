"""Tests of ridge and kernel adversaries against numpy and scikit-learn."""

import copy
import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits
from torch import Tensor

from cpgan_ray.config import KernelConfig, RidgeConfig
from cpgan_ray.training.adversaries import Target, build_adversary
from cpgan_ray.training.adversaries.base import BatchMemory, num_fitted_rows, prepare_codes
from cpgan_ray.training.adversaries.kernel import FourierFeatures, kernel_ridge, median_distance, rbf
from cpgan_ray.training.adversaries.linear import LinearMap, NormalEquations, ridge

torch.set_num_threads(1)
threadpool_limits(1)  # for matrices this small, numpy's threads only slow it down

CPU = torch.device("cpu")
K, P = 6, 4


def problem(rows: int = 60, *, seed: int = 0, k: int = K, p: int = P) -> tuple[Tensor, Tensor]:
    """Codes (rows, k), not centred and of different scales, and a noisy nonlinear target (rows, p). One function for all seeds."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    z = rng.normal(size=(rows, k)) * np.linspace(0.5, 2, k) + np.linspace(-1, 3, k)
    x = np.sin(z @ fixed.normal(size=(k, p)) / 2) + z @ fixed.normal(size=(k, p)) / 4 + 0.2 * rng.normal(size=(rows, p)) + 5
    return torch.from_numpy(z), torch.from_numpy(x)


def target_of(x: Tensor) -> Target:
    """The values as pictures of P + 3 numbers, with three numbers outside the components."""
    return Target(x, torch.linspace(0.1, 0.5, len(x), dtype=x.dtype), x.shape[1] + 3)


def release(rows: int = 60, *, seed: int = 0) -> tuple[Tensor, Target]:
    z, x = problem(rows, seed=seed)
    return z, target_of(x)


def build(config: RidgeConfig | KernelConfig, *, seed: int = 0) -> Any:
    return build_adversary(
        config, k=K, target=P, image_shape=(8, 8, 3), holdout_fraction=0.25, rng=np.random.default_rng(seed), device=CPU
    )


# --- ridge ---


def test_ridge_without_penalty_is_least_squares_with_an_intercept():
    z, x = problem()
    design = np.column_stack([z.numpy(), np.ones(len(z))])
    coefficients = np.linalg.lstsq(design, x.numpy(), rcond=None)[0]
    fit = ridge(z, x, penalty=1e-13)
    assert fit.weight.numpy() == pytest.approx(coefficients[:-1], abs=1e-5)
    assert fit.bias.numpy() == pytest.approx(coefficients[-1], abs=1e-5)
    assert fit(z).numpy() == pytest.approx(design @ coefficients, abs=1e-5)


@pytest.mark.parametrize("penalty", [1e-6, 1e-3, 0.1, 10.0])
def test_ridge_equals_scikit_learn_with_alpha_penalty_times_rows(penalty):
    z, x = problem()
    new, _ = problem(20, seed=1)
    reference = Ridge(alpha=len(z) * penalty).fit(z.numpy(), x.numpy())
    fit = ridge(z, x, penalty=penalty)
    assert fit.weight.numpy() == pytest.approx(reference.coef_.T, abs=1e-5)
    assert fit.bias.numpy() == pytest.approx(reference.intercept_, abs=1e-5)
    assert fit(new).numpy() == pytest.approx(reference.predict(new.numpy()), abs=1e-5)


@pytest.mark.parametrize("penalty", [1e-8, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("rows", [5, 60])
def test_ridge_on_its_fitted_rows_is_never_worse_than_the_mean(rows, penalty):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        z, x = torch.from_numpy(rng.normal(3, 1, (rows, K))), torch.from_numpy(rng.normal(-2, 1, (rows, P)))
        error, mean_error = (ridge(z, x, penalty=penalty)(z) - x).square().sum(), (x - x.mean(0)).square().sum()
        assert error <= mean_error * (1 + 1e-9)


@pytest.mark.parametrize("penalty", [1e-4, 1.0])
def test_ridge_with_fewer_rows_than_numbers_equals_scikit_learn(penalty):
    z, x = problem(20, k=50)
    z.requires_grad_()
    fit = ridge(z, x, penalty=penalty)
    expected = Ridge(alpha=penalty * 20, solver="svd").fit(z.detach().numpy(), x.numpy())
    assert fit.weight.detach().numpy() == pytest.approx(expected.coef_.T, abs=1e-7)
    assert fit.bias.detach().numpy() == pytest.approx(expected.intercept_, abs=1e-7)
    assert torch.autograd.gradcheck(lambda codes: ridge(codes, x[:6], penalty=penalty)(codes), z[:6].detach().requires_grad_())


def test_ridge_on_highly_correlated_codes_is_accurate():
    """Pictures as codes: a thousand numbers share one brightness; a weak pattern in addition to it determines the target."""
    rng = np.random.default_rng(0)
    bright, weak = rng.normal(size=(200, 1)), rng.normal(size=(200, 1))
    z = torch.from_numpy(10 * bright + 0.1 * weak * rng.normal(size=1000)).float()
    fit = ridge(z, torch.from_numpy(weak).float(), penalty=1e-4)
    assert fit.weight.dtype == torch.float32
    assert (fit(z).numpy() - weak).std() < 0.1


def test_ridge_with_a_huge_penalty_predicts_the_mean():
    z, x = problem()
    assert ridge(z, x, penalty=1e12)(z).numpy() == pytest.approx(np.tile(x.numpy().mean(0), (len(z), 1)), abs=1e-5)


def test_ridge_is_equivariant_to_shifts_of_codes_and_targets():
    (z, x), (new, _) = problem(), problem(10, seed=1)
    moved = ridge(z + 40, x - 7, penalty=1e-2)(new + 40)
    assert torch.allclose(moved, ridge(z, x, penalty=1e-2)(new) - 7, atol=1e-8)


# --- normal equations ---


def add_in_blocks(sums: NormalEquations, z: Tensor, x: Tensor, sizes: list[int]) -> NormalEquations:
    assert sum(sizes) == len(z)
    for block in zip(z.split(sizes), x.split(sizes), strict=True):
        sums.add(*block)
    return sums


@pytest.mark.parametrize("sizes", [[200], [1, 7, 150, 42], [50] * 4, [1] * 200])
@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0])
def test_normal_equations_in_blocks_equal_the_fit_in_memory(sizes, penalty):
    z, x = problem(200)
    fit, whole = add_in_blocks(NormalEquations(K, P), z, x, sizes).solve(penalty=penalty), ridge(z, x, penalty=penalty)
    assert fit.weight.numpy() == pytest.approx(whole.weight.numpy(), abs=1e-8)
    assert fit.bias.numpy() == pytest.approx(whole.bias.numpy(), abs=1e-8)


def test_normal_equations_squared_error_equals_the_direct_sum():
    """For its own fit, and for a fit on other data."""
    z, x = problem(200)
    sums = add_in_blocks(NormalEquations(K, P), z, x, [3, 97, 100])
    other_fit = LinearMap(torch.randn(K, P, dtype=torch.float64), torch.randn(P, dtype=torch.float64))
    for fit in (sums.solve(penalty=1e-3), other_fit):
        assert sums.squared_error(fit) == pytest.approx(float((z @ fit.weight + fit.bias - x).square().sum()), rel=1e-9)


def test_normal_equations_merge_covers_all_rows_and_keeps_the_parts():
    z, x = problem(200)
    first = add_in_blocks(NormalEquations(K, P), z[:70], x[:70], [70])
    second = add_in_blocks(NormalEquations(K, P), z[70:], x[70:], [130])
    alone = first.solve(penalty=1e-2)
    both, whole = first.merge(second), ridge(z, x, penalty=1e-2)
    assert both.rows == 200
    assert torch.allclose(both.solve(penalty=1e-2).weight, whole.weight, atol=1e-8)
    assert both.squared_error(whole) == pytest.approx(float((whole(z) - x).square().sum()), rel=1e-9)
    assert torch.equal(first.solve(penalty=1e-2).weight, alone.weight)


def test_normal_equations_sum_float32_rows_in_float64():
    """40,000 rows around 100: float32 sums would lose the variance."""
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(100, 1, (40_000, 2)).astype(np.float32))
    x = z @ torch.tensor([[1.0], [-2.0]])
    fit = add_in_blocks(NormalEquations(2, 1), z, x, [9_000, 31_000]).solve(penalty=1e-9)
    assert fit.weight.flatten().tolist() == pytest.approx([1, -2], abs=1e-3)


# --- kernel ridge ---


@pytest.mark.parametrize("width", [0.7, 2.0, 8.0])
@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("scored", [2, 20])
def test_kernel_ridge_equals_scikit_learn_on_centred_targets(width, penalty, scored):
    """The system is solved for the scored rows if they are fewer than the numbers of a target, otherwise for the targets."""
    (z, x), (new, _) = problem(), problem(scored, seed=1)
    mean = x.numpy().mean(axis=0)
    reference = KernelRidge(kernel="rbf", gamma=1 / (2 * width**2), alpha=len(z) * penalty).fit(z.numpy(), x.numpy() - mean)
    predictions = kernel_ridge(z, x, new, width=width, penalty=penalty)
    assert predictions.numpy() == pytest.approx(reference.predict(new.numpy()) + mean, abs=1e-5)


def test_kernel_ridge_gradient_in_float32_is_close_to_float64():
    """As in a game: more numbers in a target than scored rows."""
    rng = np.random.default_rng(0)
    z, x, new = rng.normal(size=(300, 16)), rng.normal(size=(300, 64)), rng.normal(size=(30, 16))
    gradients = []
    for dtype in (torch.float64, torch.float32):
        codes, targets, scored = (torch.from_numpy(a).to(dtype) for a in (z, x, new))
        codes.requires_grad_()
        scored.requires_grad_()
        kernel_ridge(codes, targets, scored, width=4.0, penalty=1e-3).square().sum().backward()
        assert codes.grad is not None
        assert scored.grad is not None
        gradients.append(torch.cat([codes.grad, scored.grad]).double())
    assert torch.linalg.norm(gradients[1] - gradients[0]) < 1e-5 * torch.linalg.norm(gradients[0])


def test_rbf_is_1_at_distance_0_and_decreases_with_distance():
    z, _ = problem(10)
    kernel = rbf(z, z, width=1.5)
    distances = torch.cdist(z, z)
    assert torch.allclose(kernel, torch.exp(-(distances**2) / 4.5), atol=1e-12)
    assert kernel.max() <= 1


@pytest.mark.parametrize("rows", [2, 5, 40, 512])
def test_median_distance_equals_the_median_over_pairs(rows):
    z, _ = problem(rows)
    pairs = np.linalg.norm(z.numpy()[:, None] - z.numpy()[None], axis=2)[np.triu_indices(rows, 1)]
    assert median_distance(z) == pytest.approx(np.sort(pairs)[(len(pairs) - 1) // 2], rel=1e-9)


@pytest.mark.parametrize("outputs", [2, 6])
@pytest.mark.parametrize("constant", [0, 3])
def test_kernel_ridge_gradients_equal_finite_differences(constant, outputs):
    """With more and with fewer targets than scored rows. The first rows are constants, as those of past batches."""
    generator = torch.Generator().manual_seed(0)
    past, z, x, new = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((constant, 4), (5, 4), (constant + 5, outputs), (3, 4))
    )

    def predicted(z: Tensor, x: Tensor, new: Tensor) -> Tensor:
        return kernel_ridge(torch.cat([past, z]), x, new, width=2.0, penalty=1e-2, constant=constant)

    assert torch.autograd.gradcheck(predicted, (z.requires_grad_(), x.requires_grad_(), new.requires_grad_()))


def rbf_error(features: int, *, seed: int) -> float:
    """Mean error of the features' inner products as kernel values, over all pairs of 40 codes."""
    z = problem(40)[0]
    phi = FourierFeatures(K, features, rng=np.random.default_rng(seed), device=CPU)(z, width=3.0)
    kernel = np.exp(-np.square(np.linalg.norm(z.numpy()[:, None] - z.numpy()[None], axis=2)) / 18)
    return float(np.abs(phi.numpy() @ phi.numpy().T - kernel)[np.triu_indices(40, 1)].mean())


def test_fourier_features_error_decreases_as_one_over_sqrt_of_number():
    numbers = [64, 256, 1024, 4096]
    errors = [np.mean([rbf_error(d, seed=s) for s in range(4)]) for d in numbers]
    assert all(e < d**-0.5 for e, d in zip(errors, numbers, strict=True))
    slope = np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)


def test_ridge_on_many_fourier_features_approximates_kernel_ridge():
    (z, x), (new, _) = problem(), problem(20, seed=1)
    phi = FourierFeatures(K, 1024, rng=np.random.default_rng(0), device=CPU)
    approximate = ridge(phi(z, width=3.0), x, penalty=1e-2)(phi(new, width=3.0))
    exact = kernel_ridge(z, x, new, width=3.0, penalty=1e-2)
    assert (approximate - exact).square().mean() < 0.05 * (exact - x.mean(0)).square().mean()


# --- codes, rows, memory ---


def test_prepare_codes_standardised_has_mean_0_and_deviation_1():
    z, new = problem(80)[0], problem(5, seed=1)[0]
    fitted, scored = prepare_codes(z, new, how="standardised")
    assert fitted.mean(0).abs().max() < 1e-10
    assert fitted.std(0).numpy() == pytest.approx(np.ones(K), abs=1e-10)
    assert scored.numpy() == pytest.approx((new.numpy() - z.numpy().mean(0)) / z.numpy().std(0, ddof=1), abs=1e-10)


def test_prepare_codes_whitened_has_the_identity_as_covariance():
    z = problem(80)[0]
    z[:, 1] = 0.9 * z[:, 0] + 0.01 * z[:, 1]
    fitted, scored = prepare_codes(z, z[:7] + 0, how="whitened")
    assert fitted.mean(0).abs().max() < 1e-8
    assert np.cov(fitted.numpy().T) == pytest.approx(np.eye(K), abs=1e-8)
    assert torch.allclose(scored, fitted[:7], atol=1e-8)


def test_prepare_codes_whitened_leaves_out_constant_directions():
    z = problem(80)[0]
    z[:, 3] = z[:, 0] - z[:, 5]
    assert prepare_codes(z, z, how="whitened")[0].shape == (80, K - 1)
    few = problem(4)[0]
    assert prepare_codes(few, few, how="whitened")[0].shape == (4, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["standardised", "whitened"])
def test_prepare_codes_of_a_coordinate_constant_in_the_fit_is_bounded(how, dtype):
    """0.3 has no exact binary form: the deviation of equal values may be a rounding error, which must not be used as a scale."""
    z, new = problem(480)[0].to(dtype), problem(5, seed=1)[0].to(dtype)
    z[:, 2] = 0.3
    new[:, 2] = 1.3
    fitted, scored = prepare_codes(z, new, how=how)
    assert fitted.abs().max() < 10
    assert scored.abs().max() < 10


def test_prepare_codes_raw_changes_nothing():
    z = problem()[0]
    assert all(torch.equal(a, z) for a in prepare_codes(z, z, how="raw"))


@pytest.mark.parametrize("how", ["standardised", "whitened"])
def test_prepare_codes_statistics_are_constants_in_the_gradient(how):
    """The prepared codes are an affine function of the codes: their gradient is the gradient of the fixed map."""
    z, new = (t.requires_grad_() for t in (problem(80)[0], problem(5, seed=1)[0]))
    fitted, scored = prepare_codes(z, new, how=how)
    weights = torch.randn(fitted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad((fitted * weights).sum() + scored.sum(), (z, new))
    with torch.no_grad():
        basis = torch.cat([torch.zeros(1, K, dtype=torch.float64), torch.eye(K, dtype=torch.float64)])
        mapped = prepare_codes(z, basis, how=how)[1]
    linear = mapped[1:] - mapped[0]
    assert torch.allclose(grads[0], weights @ linear.T, atol=1e-8)
    assert torch.allclose(grads[1], torch.ones_like(scored) @ linear.T, atol=1e-8)


@pytest.mark.parametrize(
    ("batch_size", "fraction", "fitted"), [(640, 0.25, 480), (4, 0.25, 3), (10, 0.99, 1), (10, 0.01, 9), (2, 0.5, 1)]
)
def test_num_fitted_rows_leaves_rows_for_fit_and_score(batch_size, fraction, fitted):
    assert num_fitted_rows(batch_size, holdout_fraction=fraction) == fitted


@pytest.mark.parametrize(("batches", "pushed", "remaining"), [(0, 3, []), (2, 1, [0]), (2, 5, [3, 4]), (3, 3, [0, 1, 2])])
def test_memory_contains_only_its_last_batches(batches, pushed, remaining):
    memory = BatchMemory(batches)
    for seed in range(pushed):
        memory.push(*release(8, seed=seed))
    z, x = memory.with_current(*problem(5, seed=77))
    expected = [problem(8, seed=seed) for seed in remaining] + [problem(5, seed=77)]
    assert torch.equal(z, torch.cat([e[0] for e in expected]))
    assert torch.equal(x, torch.cat([e[1] for e in expected]))


def test_memory_contains_constants():
    """No gradient reaches codes in the memory, and changing a batch afterwards does not change the memory."""
    memory = BatchMemory(2)
    z, target = release(8)
    z.requires_grad_()
    memory.push(z * 1, target)
    with torch.no_grad():
        z.zero_()
    new = problem(3, seed=1)[0].requires_grad_()
    codes = memory.with_current(new, problem(3, seed=1)[1])[0]
    assert torch.equal(codes[:8].detach(), problem(8)[0])
    codes.sum().backward()
    assert z.grad is None
    assert new.grad is not None


def test_memory_restored_from_its_state_is_equal_and_bounded():
    memory, restored = BatchMemory(2), BatchMemory(2)
    for seed in range(2):
        memory.push(*release(8, seed=seed))
    restored.load_state_dict(copy.deepcopy(memory.state_dict()))
    memory.push(*release(8, seed=2))
    restored.push(*release(8, seed=2))
    current = problem(3, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(memory.with_current(*current), restored.with_current(*current), strict=True))
    assert len(restored.with_current(*current)[0]) == 2 * 8 + 3


# --- the adversaries ---

HOLDOUT: dict[str, RidgeConfig | KernelConfig] = {
    "ridge": RidgeConfig(memory_batches=2),
    "ridge, standardised": RidgeConfig(memory_batches=2, code_normalization="standardised"),
    "ridge, whitened": RidgeConfig(memory_batches=2, code_normalization="whitened"),
    "kernel": KernelConfig(memory_batches=2),
    "kernel, whitened": KernelConfig(memory_batches=2, code_normalization="whitened"),
    "features": KernelConfig(memory_batches=2, features=32),
}
STREAMED: dict[str, RidgeConfig | KernelConfig] = {
    "streamed ridge": RidgeConfig(fit="epoch"),
    "streamed features": KernelConfig(fit="epoch", features=32),
}


def reference_codes(z: np.ndarray, scored: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes standardised or whitened with numpy."""
    if how == "raw":
        return z, scored
    mean = z.mean(axis=0)
    if how == "standardised":
        matrix = np.diag(1 / z.std(axis=0, ddof=1))
    else:
        values, vectors = np.linalg.eigh(np.cov(z.T))
        matrix = vectors / np.sqrt(values)
    return (z - mean) @ matrix, (scored - mean) @ matrix


def reference_errors(config: RidgeConfig | KernelConfig, batches: list[tuple[Tensor, Target]], features: Any) -> np.ndarray:
    """Scikit-learn's errors on the last quarter of the last batch, fitted on all earlier rows, with the best candidates."""
    z, target = batches[-1]
    cut = len(z) * 3 // 4
    z_fit = np.concatenate([b.numpy() for b, _ in batches])[: -(len(z) - cut)]
    x_fit = np.concatenate([t.values.numpy() for _, t in batches])[: -(len(z) - cut)]
    z_fit, z_new = reference_codes(z_fit, z.numpy()[cut:], config.code_normalization)
    mean, predictions = x_fit.mean(axis=0), []
    for penalty in config.penalties:
        if isinstance(config, RidgeConfig):
            predictions.append(Ridge(alpha=len(z_fit) * penalty).fit(z_fit, x_fit).predict(z_new))
            continue
        pairs = np.linalg.norm(z_fit[:, None] - z_fit[None], axis=2)[np.triu_indices(len(z_fit), 1)]
        for bandwidth in config.bandwidths:
            width = bandwidth * np.sort(pairs)[(len(pairs) - 1) // 2]
            if features is None:
                model = KernelRidge(kernel="rbf", gamma=1 / (2 * width**2), alpha=len(z_fit) * penalty)
                predictions.append(model.fit(z_fit, x_fit - mean).predict(z_new) + mean)
            else:
                omega, phase = features.omega.numpy().astype(np.float64), features.phase.numpy().astype(np.float64)
                features_of = [math.sqrt(2 / len(phase)) * np.cos(codes @ (omega / width) + phase) for codes in (z_fit, z_new)]
                predictions.append(Ridge(alpha=len(z_fit) * penalty).fit(features_of[0], x_fit).predict(features_of[1]))
    held_out, outside = target.values.numpy()[cut:], target.residual.numpy()[cut:]
    errors = [(np.square(guess - held_out).sum(axis=1) + outside) / target.dimension for guess in predictions]
    return min(errors, key=np.sum)


@pytest.mark.parametrize("past_batches", [0, 1, 3])
@pytest.mark.parametrize("kind", HOLDOUT)
def test_holdout_adversary_equals_scikit_learn_on_memory_and_batch(kind, past_batches):
    adversary = build(HOLDOUT[kind])
    batches = [release(60, seed=seed) for seed in range(past_batches + 1)]
    for batch in batches[:-1]:
        adversary.improve(*batch)
    errors, rows = adversary.recover(*batches[-1])
    assert rows == slice(45, 60)
    expected = reference_errors(HOLDOUT[kind], batches[-3:], getattr(adversary, "features", None))
    assert errors.numpy() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", HOLDOUT)
def test_holdout_adversary_does_not_fit_on_the_scored_rows(kind):
    """With one candidate there is no selection on the scored rows: other pictures there do not change the (inferred)
    predictions."""
    config = HOLDOUT[kind]
    single = {"penalties": (1e-2,)} | ({"bandwidths": (1.0,)} if isinstance(config, KernelConfig) else {})
    z, target = release(60)
    values = target.values.clone()
    values[45:] = 0
    changed = Target(values, target.residual, target.dimension)
    results = []
    for shown in (target, changed):
        adversary = build(dataclasses.replace(config, **single))
        guesses = []
        for unit in torch.eye(P, dtype=torch.float64):  # |g - x - u|^2 - |g - x|^2 = 1 - 2 u (g - x)
            moved = Target(torch.cat([shown.values[:45], shown.values[45:] + unit]), shown.residual, shown.dimension)
            difference = (adversary.recover(z, moved)[0] - adversary.recover(z, shown)[0]) * shown.dimension
            guesses.append((1 - difference) / 2 + shown.values[45:] @ unit)
        results.append(torch.stack(guesses, dim=1))
    assert torch.allclose(*results, atol=1e-8)
    assert results[0].std() > 0.1


def test_kernel_adversary_tunes_only_every_tune_every_rounds():
    """In between, bandwidth and penalty stay, even if another pair would be better."""
    adversary = build(KernelConfig(memory_batches=0, tune_every=3, penalties=(1e-6, 10.0), bandwidths=(1.0,)))
    learnable, (codes, noise) = release(60), (problem(60)[0], torch.randn(60, P, dtype=torch.float64))
    hopeless = (codes, target_of(noise))
    chosen = []
    for batch in [learnable, hopeless, hopeless, hopeless, learnable, learnable, learnable]:
        adversary.recover(*batch)
        chosen.append(adversary.chosen[1])
        adversary.improve(*batch)
    assert chosen == [1e-6] * 3 + [10.0] * 3 + [1e-6]


def accumulate(adversary: Any, z: Tensor, target: Target, sizes: list[int]) -> None:
    start = 0
    for size in sizes:
        adversary.accumulate(z[start : start + size], target[slice(start, start + size)])
        start += size
    assert start == len(z)


@pytest.mark.parametrize("kind", STREAMED)
def test_streamed_adversary_before_its_first_fit_predicts_the_mean(kind):
    z, target = release(20)
    z.requires_grad_()
    errors, rows = build(STREAMED[kind]).recover(z, target)
    expected = (target.values.square().sum(1) + target.residual) / target.dimension
    assert torch.allclose(errors.detach(), expected)
    assert rows == slice(0, 20)
    errors.sum().backward()
    assert z.grad is not None
    assert not z.grad.any()


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("sizes", [[300], [40] * 7 + [20], [55, 60, 1, 84, 100]])
def test_streamed_adversary_selects_on_every_fifth_block_and_fits_all(kind, sizes):
    """Candidates are compared on every fifth block (on the fitted blocks if there are fewer than five); the final fit uses all
    blocks."""
    config = STREAMED[kind]
    adversary = build(config)
    z, target = release(300)
    unit = median_distance(z[: sizes[0]])
    accumulate(adversary, z, target, sizes)
    adversary.solve()

    ends = np.cumsum(sizes)
    held_out = np.zeros(300, bool)
    for block in range(4, len(sizes), 5):
        held_out[ends[block] - sizes[block] : ends[block]] = True
    validation = held_out if held_out.any() else ~held_out
    best: tuple[float, np.ndarray, Any] | None = None
    for bandwidth in config.bandwidths if isinstance(config, KernelConfig) else (None,):
        codes = z.numpy() if bandwidth is None else adversary.features(z, width=bandwidth * unit).numpy()
        for penalty in config.penalties:
            fit = Ridge(alpha=(~held_out).sum() * penalty).fit(codes[~held_out], target.values.numpy()[~held_out])
            error = np.square(fit.predict(codes[validation]) - target.values.numpy()[validation]).sum()
            if best is None or error < best[0]:
                best = error, codes, Ridge(alpha=300 * penalty)
    assert best is not None
    expected = best[2].fit(best[1], target.values.numpy()).predict(best[1])
    expected = (np.square(expected - target.values.numpy()).sum(axis=1) + target.residual.numpy()) / target.dimension
    assert adversary.recover(z, target)[0].numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", STREAMED)
def test_streamed_adversary_forgets_the_previous_epoch(kind):
    """The second fit does not depend on the first epoch's codes."""
    twice, once = build(STREAMED[kind]), build(STREAMED[kind])
    first, second = release(100, seed=1), release(100, seed=2)
    accumulate(twice, *first, [50, 50])
    twice.solve()
    accumulate(twice, *second, [30, 70])
    accumulate(once, *second, [30, 70])
    before = twice.recover(*first)[0]
    twice.solve()
    once.solve()
    assert torch.equal(twice.recover(*first)[0], once.recover(*first)[0])
    assert not torch.equal(twice.recover(*first)[0], before)


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """The state after saving and loading it as in a checkpoint file, which holds only tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("kind", [*HOLDOUT, *STREAMED])
def test_adversary_restored_from_a_state_dict_behaves_identically(kind):
    config = {**HOLDOUT, **STREAMED}[kind]

    def play(adversary: Any, seeds: range) -> list[Tensor]:
        errors = []
        for seed in seeds:
            batch = release(40, seed=seed)
            errors.append(adversary.recover(*batch)[0])
            adversary.improve(*batch)
            if kind in STREAMED:
                accumulate(adversary, *batch, [30, 10])
                adversary.solve()
        return errors

    original, fresh = build(config), build(config)
    play(original, range(4))
    state = reloaded(original.state_dict())
    fresh.load_state_dict(state)
    expected = play(original, range(4, 9))
    assert all(torch.equal(a, b) for a, b in zip(play(fresh, range(4, 9)), expected, strict=True))
    untouched = play(build(config), range(4, 9))
    assert not torch.equal(untouched[0], expected[0])


@pytest.mark.parametrize("kind", [*HOLDOUT, *STREAMED])
def test_recover_twice_gives_the_same_errors(kind):
    config = {**HOLDOUT, **STREAMED}[kind]
    adversary = build(config)
    adversary.improve(*release(40, seed=1))
    first = adversary.recover(*release(40))[0]
    assert torch.equal(adversary.recover(*release(40))[0], first)

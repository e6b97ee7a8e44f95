"""Tests of neural adversaries: learning, responses without side effects, independent rows, memory, precision."""

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cpgan_ray.config import NeuralConfig
from cpgan_ray.training.adversaries import Target, build_adversary, neural

torch.set_num_threads(1)

ROWS, K, IMAGE = 32, 4, (9, 8, 3)
P = math.prod(IMAGE)
GENERATOR = torch.Generator()
ARCHITECTURES = ["mlp", "conv", "upsample", "resnet"]


def build(architecture: Any, *, seed: int = 0, precision: Any = "float32", **settings: Any) -> Any:
    torch.manual_seed(seed)
    config = NeuralConfig(**{"architecture": architecture, "width": 8, "depth": 1, "learning_rate": 1e-2, **settings})
    return build_adversary(
        config,
        k=K,
        target=P,
        image_shape=IMAGE,
        holdout_fraction=0.25,
        rng=np.random.default_rng(seed),
        device=torch.device("cpu"),
        precision=precision,
    )


def batch(seed: int) -> tuple[Tensor, Target]:
    """Smooth pictures that are a linear function of their codes; the function is the same for all seeds."""
    height, width, channels = IMAGE
    i, j = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    waves = [np.cos(math.pi * (a * i + b * j)) * np.linspace(1, 0.5, channels) for a, b in ((0, 0), (0, 1), (1, 0), (1, 1))]
    z = np.random.default_rng(seed).normal(size=(ROWS, K)).astype(np.float32)
    x = z @ np.stack(waves).reshape(K, P).astype(np.float32)
    return torch.from_numpy(z), Target(torch.from_numpy(x), torch.zeros(ROWS), P)


def errors_of(adversary: Any, seed: int) -> Tensor:
    with torch.no_grad():
        return adversary.recover(*batch(seed))[0]


def snapshot(adversary: Any) -> dict[str, Any]:
    return copy.deepcopy({**adversary.state_dict(), "generator": adversary.rng.bit_generator.state})


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("memory_batches", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_improve_lowers_the_error_on_new_codes(architecture, memory_batches):
    adversary = build(architecture, steps=4, memory_batches=memory_batches)
    before = errors_of(adversary, 1000).mean()
    for seed in range(40):
        adversary.improve(*batch(seed))
    mean_error = batch(1000)[1].mean_errors().mean()
    assert errors_of(adversary, 1000).mean() < 0.5 * min(before, mean_error)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recover_changes_no_state_and_draws_no_random_numbers(architecture, dropout):
    adversary = build(architecture, dropout=dropout, memory_batches=1)
    adversary.improve(*batch(1))
    before, rng_state = snapshot(adversary), torch.random.get_rng_state()
    z, target = batch(2)
    errors, rows = adversary.recover(z.requires_grad_(), target)
    errors.mean().backward()
    assert same(snapshot(adversary), before)
    assert torch.equal(torch.random.get_rng_state(), rng_state)
    assert torch.equal(adversary.recover(z, target)[0], errors)
    assert rows == slice(0, ROWS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recover_leaves_no_gradients_for_the_next_step(architecture):
    untouched, queried = build(architecture), build(architecture)
    z, target = batch(2)
    adversary_errors, _ = queried.recover(z.requires_grad_(), target)
    (100 * adversary_errors.mean()).backward()
    for adversary in (untouched, queried):
        adversary.improve(*batch(1))
    assert same(snapshot(queried), snapshot(untouched))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reconstruction_of_a_row_is_independent_of_other_rows(architecture, training):
    """Changing another row's code does not change it, even in training mode."""
    network, (z, _) = build(architecture).network.train(training), batch(1)
    changed = z.clone()
    changed[0] = 50
    with torch.no_grad():
        before, after = network(z), network(changed)
    assert torch.allclose(before[1:], after[1:], atol=1e-5)
    assert not torch.allclose(before[0], after[0], atol=1e-2)


def test_recover_uses_the_weights_before_learning():
    """The errors on a release come from the earlier weights, which were not fitted to it."""
    adversary, (z, target) = build("mlp"), batch(1)
    guess = adversary.network.eval()(z).detach()
    assert torch.allclose(adversary.recover(z, target)[0].detach(), (guess - target.values).square().mean(1), atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_improve_makes_the_configured_number_of_steps(steps):
    adversary = build("mlp", steps=steps)
    for seed in range(2):
        adversary.improve(*batch(seed))
    assert {int(s["step"]) for s in adversary.optimiser.state.values()} == {2 * steps}


def test_improve_without_memory_is_one_adam_step_on_the_mse():
    adversary, (z, target) = build("mlp"), batch(1)
    network = copy.deepcopy(adversary.network).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    (network(z) - target.values).square().mean().backward()
    optimiser.step()
    adversary.improve(z, target)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(adversary.network.parameters(), network.parameters(), strict=True))


def test_improve_with_memory_keeps_learning_from_past_batches():
    """First codes near -1 with a picture, then only codes near -0.2 with its negative. The memory keeps the first batches in
    use."""
    picture, residual = torch.ones(ROWS, P), torch.zeros(ROWS)
    first = 0.1 * torch.randn(ROWS, K, generator=torch.Generator().manual_seed(0)) - 1
    error = {}
    for memory_batches in (0, 30):
        adversary = build("mlp", memory_batches=memory_batches, learning_rate=2e-2)
        for z, values in [(first, picture)] * 15 + [(0.2 * first, -picture)] * 15:
            adversary.improve(z, Target(values, residual, P))
        error[memory_batches] = float(adversary.recover(first, Target(picture, residual, P))[0].detach().mean())
    assert error[30] < 0.5 * error[0]


@pytest.mark.parametrize("batches", [1, 3])
def test_memory_contains_the_last_batches_as_constants(batches):
    adversary = build("mlp", memory_batches=batches)
    for seed in range(5):
        z, target = batch(seed)
        adversary.improve(z.requires_grad_(), target)
    codes, _ = adversary.memory.with_current(*(t[:0] for t in (batch(0)[0], batch(0)[1].values)))
    assert torch.equal(codes, torch.cat([batch(seed)[0] for seed in range(5 - batches, 5)]))
    assert not codes.requires_grad


@pytest.mark.parametrize("memory_batches", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adversary_restored_from_a_state_dict_behaves_identically(architecture, memory_batches):
    """The file holds only tensors and plain values. Dropout draws from the round's stream, which the test seeds itself."""

    def play(adversary: Any, seeds: range) -> list[Tensor]:
        answers = []
        for seed in seeds:
            answers.append(errors_of(adversary, seed))
            torch.manual_seed(seed)
            adversary.improve(*batch(seed))
        return answers

    original, fresh = (build(architecture, memory_batches=memory_batches, dropout=0.2, steps=2) for _ in range(2))
    play(original, range(4))
    torch.save(original.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    expected = play(original, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(play(fresh, range(4, 8)), expected, strict=True))


@pytest.mark.parametrize("memory_batches", [0, 2])
def test_adversary_is_determined_by_its_seed(memory_batches):
    def play(seed: int) -> Tensor:
        adversary = build("mlp", seed=seed, memory_batches=memory_batches)
        for number in range(3):
            adversary.improve(*batch(number))
        return errors_of(adversary, 9)

    assert torch.equal(play(0), play(0))
    assert not torch.equal(play(0), play(1))


def test_large_pictures_in_parts_give_the_same_result(monkeypatch):
    """Compares gradients of the codes and the network's steps, computed at once and in parts of three rows."""
    results = []
    for values in (neural.BLOCK_VALUES, 3 * P):
        monkeypatch.setattr(neural, "BLOCK_VALUES", values)
        adversary = build("conv")
        z, target = torch.randn(8, K, generator=GENERATOR.manual_seed(1)), Target(torch.ones(8, P), torch.ones(8), P)
        code = z.clone().requires_grad_()
        for _ in range(2):
            errors, rows = adversary.recover(code, target)
            errors.mean().backward()
            adversary.improve(z, target)
        assert code.grad is not None
        results.append((rows, errors.detach(), code.grad, *adversary.network.state_dict().values()))
    (rows, *whole), (rows_in_parts, *parts) = results
    assert rows == rows_in_parts
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_bfloat16_adversary_is_close_to_float32_and_learns():
    exact, mixed = build("conv"), build("conv", precision="bfloat16")
    z = batch(0)[0]
    a, b = exact.reconstruct(z).detach(), mixed.reconstruct(z).detach()
    assert b.dtype == torch.float32
    assert 1e-4 < float((a - b).norm() / a.norm()) < 0.05
    before = errors_of(mixed, 1).mean()
    for seed in range(30):
        mixed.improve(*batch(seed))
    assert errors_of(mixed, 1).mean() < 0.7 * before
    assert all(p.dtype == torch.float32 for p in mixed.network.parameters())

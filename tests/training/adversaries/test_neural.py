"""Neural adversaries: they learn, they answer without changing, and a row's reconstruction is its own."""

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


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_learning_lowers_the_error_on_codes_never_shown(architecture, memory):
    adversary = build(architecture, steps=4, memory_batches=memory)
    before = errors_of(adversary, 1000).mean()
    for seed in range(40):
        adversary.improve(*batch(seed))
    of_mean = batch(1000)[1].mean_errors().mean()
    assert errors_of(adversary, 1000).mean() < 0.5 * min(before, of_mean)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answering_changes_no_state_and_draws_nothing(architecture, dropout):
    adversary = build(architecture, dropout=dropout, memory_batches=1)
    adversary.improve(*batch(1))
    before, drawn = snapshot(adversary), torch.random.get_rng_state()
    z, target = batch(2)
    errors, rows = adversary.recover(z.requires_grad_(), target)
    errors.mean().backward()
    assert same(snapshot(adversary), before)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert torch.equal(adversary.recover(z, target)[0], errors)
    assert rows == slice(0, ROWS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradients_left_by_an_answer_do_not_enter_the_next_step(architecture):
    quiet, asked = build(architecture), build(architecture)
    z, target = batch(2)
    adversary_errors, _ = asked.recover(z.requires_grad_(), target)
    (100 * adversary_errors.mean()).backward()
    for adversary in (quiet, asked):
        adversary.improve(*batch(1))
    assert same(snapshot(asked), snapshot(quiet))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_rows_reconstruction_is_its_own(architecture, training):
    """Changing another row's code does not change it, not even while the network learns."""
    network, (z, _) = build(architecture).network.train(training), batch(1)
    changed = z.clone()
    changed[0] = 50
    with torch.no_grad():
        one, other = network(z), network(changed)
    assert torch.allclose(one[1:], other[1:], atol=1e-5)
    assert not torch.allclose(one[0], other[0], atol=1e-2)


def test_it_answers_before_it_learns():
    """The errors on a release are those of the weights before it: no row has been fitted on."""
    adversary, (z, target) = build("mlp"), batch(1)
    guess = adversary.network.eval()(z).detach()
    assert torch.allclose(adversary.recover(z, target)[0].detach(), (guess - target.values).square().mean(1), atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_it_makes_as_many_steps_per_round_as_it_is_told(steps):
    adversary = build("mlp", steps=steps)
    for seed in range(2):
        adversary.improve(*batch(seed))
    assert {int(s["step"]) for s in adversary.optimiser.state.values()} == {2 * steps}


def test_a_step_without_a_bank_is_one_of_adam_on_the_mean_squared_error():
    adversary, (z, target) = build("mlp"), batch(1)
    network = copy.deepcopy(adversary.network).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    (network(z) - target.values).square().mean().backward()
    optimiser.step()
    adversary.improve(z, target)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(adversary.network.parameters(), network.parameters(), strict=True))


def test_with_a_bank_it_goes_on_learning_from_what_is_no_longer_shown():
    """First codes near -1 with one picture, then, ever after, codes near -0.2 with its negative: the memory keeps the first
    alive."""
    picture, none = torch.ones(ROWS, P), torch.zeros(ROWS)
    first = 0.1 * torch.randn(ROWS, K, generator=torch.Generator().manual_seed(0)) - 1
    error = {}
    for memory in (0, 30):
        adversary = build("mlp", memory_batches=memory, learning_rate=2e-2)
        for z, values in [(first, picture)] * 15 + [(0.2 * first, -picture)] * 15:
            adversary.improve(z, Target(values, none, P))
        error[memory] = float(adversary.recover(first, Target(picture, none, P))[0].detach().mean())
    assert error[30] < 0.5 * error[0]


@pytest.mark.parametrize("batches", [1, 3])
def test_its_bank_holds_the_last_batches_as_constants(batches):
    adversary = build("mlp", memory_batches=batches)
    for seed in range(5):
        z, target = batch(seed)
        adversary.improve(z.requires_grad_(), target)
    held, _ = adversary.memory.with_current(*(t[:0] for t in (batch(0)[0], batch(0)[1].values)))
    assert torch.equal(held, torch.cat([batch(seed)[0] for seed in range(5 - batches, 5)]))
    assert not held.requires_grad


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adversary_made_from_another_ones_state_behaves_alike_ever_after(architecture, memory):
    """From a file that holds nothing but tensors and plain values. Dropout draws from the round's own stream, set here by hand."""

    def play(adversary: Any, seeds: range) -> list[Tensor]:
        answers = []
        for seed in seeds:
            answers.append(errors_of(adversary, seed))
            torch.manual_seed(seed)
            adversary.improve(*batch(seed))
        return answers

    original, fresh = (build(architecture, memory_batches=memory, dropout=0.2, steps=2) for _ in range(2))
    play(original, range(4))
    torch.save(original.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    expected = play(original, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(play(fresh, range(4, 8)), expected, strict=True))


@pytest.mark.parametrize("memory", [0, 2])
def test_the_same_seeds_give_the_same_adversary_and_others_another(memory):
    def played(seed: int) -> Tensor:
        adversary = build("mlp", seed=seed, memory_batches=memory)
        for number in range(3):
            adversary.improve(*batch(number))
        return errors_of(adversary, 9)

    assert torch.equal(played(0), played(0))
    assert not torch.equal(played(0), played(1))


def test_large_pictures_are_worked_on_in_parts_with_the_same_result(monkeypatch):
    """Gradients to the codes and the step of the network, in one go and in parts of three rows."""
    found = []
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
        found.append((rows, errors.detach(), code.grad, *adversary.network.state_dict().values()))
    (rows, *whole), (same, *parts) = found
    assert rows == same
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_in_bfloat16_reconstructions_are_float32_near_the_exact_ones_and_learning_works():
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

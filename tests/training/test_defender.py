"""Tests of the defender's steps, its delayed gradients, input corruption, precision and compilation."""

import copy
import io
import shutil
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cpgan_ray.config import Config, DataConfig, GameConfig, PrivatizerConfig, RuntimeConfig, UtilityConfig
from cpgan_ray.data import Task
from cpgan_ray.errors import InputError
from cpgan_ray.models.export import export_programs
from cpgan_ray.training.defender import LR_SCHEDULES, Defender
from cpgan_ray.training.inputs import corrupt_inputs

ROWS, K, LABELS, SIDE = 16, 4, 3, 12


def defender(*, precision: Any = "float32", compile: bool = False, gradient_norms: bool = False, **changes) -> Defender:
    """A small defender without dropout in its head, so that its loss can be computed again."""
    config = Config(
        k=K,
        precision=precision,
        runtime=RuntimeConfig(compile=compile),
        game=GameConfig(gradient_norms=gradient_norms),
        privatizer=PrivatizerConfig(**{"width": 4, "depth": 2, "lr_schedule": "constant", "learning_rate": 0.05} | changes),
        utility=UtilityConfig(hidden=8, dropout=0.0),
    )
    return Defender(
        config,
        image_shape=(SIDE, SIDE, 3),
        task=Task.of([f"label{i}" for i in range(LABELS)]),
        positive_share=np.full(LABELS, 0.5),
        total_rounds=10,
        device=torch.device("cpu"),
    )


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pictures, labels and gradients of the adversaries, for three rounds."""
    draw = torch.Generator().manual_seed(0)
    rounds = []
    for _ in range(3):
        x, y = torch.rand(ROWS, 3, SIDE, SIDE, generator=draw) * 2 - 1, torch.rand(ROWS, LABELS, generator=draw) > 0.5
        rounds.append((x, y.float(), torch.randn(ROWS, K, generator=draw)))
    return rounds


def play_ahead(player: Defender, batches: list) -> tuple[list[nn.ModuleDict], list[dict[str, torch.Tensor]]]:
    """Plays rounds that release the next codes before the step on the last ones. Returns the network before each round, and its
    gradient in the round."""
    nets, grads = [], []
    player.release(batches[0][0])
    for round, (_, y, grad_z) in enumerate(batches):
        if round + 1 < len(batches):
            player.release(batches[round + 1][0], ahead=True)
        nets.append(copy.deepcopy(player.net))
        player.utility(y, round=round)
        player.step(grad_z)
        grads.append({n: p.grad for n, p in player.net["privatizer"].named_parameters()})
    return nets, grads


@pytest.mark.parametrize("changes", [{}, {"family": "residual"}, {"symmetric": True, "quantization_step": 0.5}, {"ema_decay": 0.9}])
def test_step_has_the_gradient_at_the_weights_of_its_release(batches, changes):
    player = defender(**changes)
    nets, grads = play_ahead(player, batches)
    for round, (x, y, grad_z) in enumerate(batches):
        encoder, head = nets[max(0, round - 1)]["privatizer"], nets[round]["head"]
        encoder.zero_grad()
        z = encoder.train()(x)
        (nn.functional.binary_cross_entropy_with_logits(head(z), y) + (grad_z * z).sum()).backward()
        for name, parameter in encoder.named_parameters():
            torch.testing.assert_close(grads[round][name], parameter.grad, atol=1e-4, rtol=1e-3, msg=f"{name}, round {round}")


def test_release_ahead_updates_batch_statistics_once_per_batch(batches):
    ahead, encoder = defender(), copy.deepcopy(defender().net["privatizer"])
    for x, _, _ in batches:
        encoder.train()(x)
    ahead.release(batches[0][0])
    for x, _, _ in batches[1:]:
        ahead.release(x, ahead=True)  # no step in between: all with the first weights
    assert all(torch.equal(value, dict(encoder.named_buffers())[n]) for n, value in ahead.net["privatizer"].named_buffers())


def test_release_after_its_step_is_freed(batches):
    player = defender()
    player.release(batches[0][0])
    references = []
    for round, (_, y, grad_z) in enumerate(batches):
        if round + 1 < len(batches):
            player.release(batches[round + 1][0], ahead=True)
        references.append([weakref.ref(player.pending[0].code), *map(weakref.ref, player.pending[0].copies.values())])
        player.utility(y, round=round)
        player.step(grad_z)
        assert [reference for reference in references[-1] if reference() is not None] == []
        assert len(player.pending) == (round + 1 < len(batches))
    assert [len(of_round) > 1 for of_round in references] == [False, True, True]


def test_release_not_ahead_drops_all_pending_codes(batches):
    player = defender()
    for x, _, _ in batches:
        player.release(x)
        player.release(x, ahead=True)
    z = player.release(batches[0][0])
    assert len(player.pending) == 1
    assert torch.equal(player.pending[0].code, z)


def test_lr_schedules_decay_from_the_peak():
    done = [0.0, 0.25, 0.49, 0.5, 0.74, 0.75, 1.0]
    assert [LR_SCHEDULES["constant"](d) for d in done] == [1.0] * 7
    assert [LR_SCHEDULES["steps"](d) for d in done] == [1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert [LR_SCHEDULES["cosine"](d) for d in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])


def learning_rates(schedule: str, batches: list) -> list[float]:
    player = defender(lr_schedule=schedule)
    rates = []
    for round in range(10):
        x, y, grad_z = batches[round % 3]
        rates += [float(group["lr"]) for group in player.optimisers["privatizer"].param_groups]
        player.release(x)
        player.utility(y, round=round)
        player.step(grad_z)
    return rates


def test_optimiser_follows_the_lr_schedule(batches):
    assert learning_rates("steps", batches) == pytest.approx([0.05] * 5 + [0.005] * 3 + [0.0005] * 2)


X = torch.rand(40, 3, 12, 10) * 0.5 + 0.25


def corrupted(*, rows: int = 40, local: slice = slice(None), round: int = 7, **changes) -> torch.Tensor:
    config = Config(data=DataConfig(**changes))
    return corrupt_inputs(X[:rows][local], config, round=round, num_rows=rows, local=local)


def test_corrupt_inputs_by_default_changes_nothing():
    assert corrupted() is X or torch.equal(corrupted(), X)


def test_corrupt_inputs_cutout_covers_one_random_square_per_picture():
    pictures = corrupted(cutout=4)
    covered = (pictures == 0).all(1)
    assert torch.equal(pictures[~covered[:, None].expand_as(pictures)], X[~covered[:, None].expand_as(pictures)])
    rows, columns = covered.any(2).sum(1), covered.any(1).sum(1)
    assert torch.equal(covered.sum((1, 2)), rows * columns), "a rectangle"
    assert (int(rows.max()), int(columns.max())) == (4, 4)
    assert int(rows.min()) >= 2, "the centre is inside the picture"
    assert len({tuple(c.flatten().tolist()) for c in covered}) > 20
    assert not torch.equal(corrupted(cutout=4, round=8), pictures)
    assert torch.equal(corrupted(cutout=4), pictures)


def test_corrupt_inputs_noise_has_the_configured_deviation():
    noise = corrupted(input_noise=0.3) - X
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(noise.mean())) < 0.01


@pytest.mark.parametrize("changes", [{"cutout": 4}, {"input_noise": 0.3}])
def test_corrupt_inputs_of_parts_equals_the_whole_batch(changes):
    whole = corrupted(**changes)
    assert torch.equal(torch.cat([corrupted(local=slice(0, 15), **changes), corrupted(local=slice(15, 40), **changes)]), whole)


@pytest.mark.parametrize("ahead", [False, True])
def test_gradient_norms_equal_those_of_the_separate_losses(batches, ahead):
    """Each loss is differentiated separately. The step is the same with and without the norms."""
    plain, player = defender(), defender(gradient_norms=True)
    for each_player in (plain, player):
        each_player.release(batches[0][0], ahead=ahead)
    (x, y, grad_z), encoder, head = batches[0], copy.deepcopy(player.net["privatizer"]), player.net["head"]
    expected = []
    for loss in (lambda z: nn.functional.binary_cross_entropy_with_logits(head(z), y), lambda z: (grad_z * z).sum()):
        encoder.zero_grad()
        loss(encoder.train()(x)).backward()
        expected.append(float(torch.cat([p.grad.flatten() for p in encoder.parameters()]).norm()))
    for each_player in (plain, player):
        each_player.utility(y, round=0)
    assert plain.step(grad_z) == {}
    norms = player.step(grad_z)
    assert list(norms) == ["utility/grad_norm", "privacy/grad_norm"]
    assert list(norms.values()) == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(plain.net.parameters(), player.net.parameters(), strict=True))


def test_gradient_norms_without_adversaries_are_0_for_privacy(batches):
    player = defender(gradient_norms=True)
    player.release(batches[0][0])
    player.utility(batches[0][1], round=0)
    norms = player.step(None)
    assert norms["utility/grad_norm"] > 0
    assert norms["privacy/grad_norm"] == 0


def play(player: Defender, batches: list) -> list[torch.Tensor]:
    """Plays a round per batch; returns the codes of each round."""
    codes = []
    for round, (x, y, grad_z) in enumerate(batches):
        codes.append(player.release(x).clone())
        player.utility(y, round=round)
        player.step(grad_z)
    return codes


def test_bfloat16_training_has_float32_codes_near_the_exact_ones(batches):
    exact, mixed = (play(player := defender(precision=p), batches) for p in ("float32", "bfloat16"))
    assert all(z.dtype == torch.float32 for z in mixed)
    distances = [float((a - b).norm() / a.norm()) for a, b in zip(exact, mixed, strict=True)]
    assert 1e-4 < distances[0] < 0.02, "products with 8 bits differ slightly"
    assert max(distances) < 0.2
    assert all(p.dtype == torch.float32 for p in player.net.parameters())


def test_released_networks_after_bfloat16_training_are_float32(batches):
    player, x = defender(precision="bfloat16"), batches[0][0]
    play(player, batches)
    with torch.no_grad():
        assert torch.equal(player.codes(x)[0], player.released["privatizer"](x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_compiled_networks_give_the_same_codes_and_exports(batches, ema_decay):
    plain, compiled = defender(ema_decay=ema_decay), defender(ema_decay=ema_decay, compile=True)
    for a, b in zip(play(plain, batches), play(compiled, batches), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert compiled.state_dict()["net"].keys() == plain.state_dict()["net"].keys()
    assert compiled.net["privatizer"]._compiled_call_impl is not None
    programs = export_programs(compiled.released, k=K, image_shape=(SIDE, SIDE, 3))
    exported = torch.export.load(io.BytesIO(programs["privatizer"])).module()(torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8))
    assert torch.allclose(exported, compiled.codes(-torch.ones(2, 3, SIDE, SIDE))[0], atol=1e-5)


def test_compile_without_a_compiler_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        InputError, match=r"^runtime\.compile needs a C\+\+ compiler, but 'no-such-compiler' is not installed: .*CXX to another"
    ):
        defender(compile=True)

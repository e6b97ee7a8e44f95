"""Codes released ahead: their step has the gradient at the weights they were released with; nothing of them is left after it."""

import copy
import io
import shutil
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cpgan_ray.config import Config, GameConfig, PrivatizerConfig, RuntimeConfig, UtilityConfig
from cpgan_ray.errors import InputError
from cpgan_ray.nets.export import export_programs
from cpgan_ray.privatizer import Defender

ROWS, K, LABELS, SIDE = 16, 4, 3, 12


def defender(*, precision: Any = "float32", compile: bool = False, gradient_norms: bool = False, **changes) -> Defender:
    """A small one whose head drops nothing, so that its loss can be computed again."""
    config = Config(
        k=K,
        precision=precision,
        runtime=RuntimeConfig(compile=compile),
        game=GameConfig(gradient_norms=gradient_norms),
        privatizer=PrivatizerConfig(width=4, depth=2, rate="constant", learning_rate=0.05, **changes),
        utility=UtilityConfig(hidden=8, dropout=0.0),
    )
    return Defender(
        config,
        image_shape=(SIDE, SIDE, 3),
        positive_share=np.full(LABELS, 0.5),
        total_rounds=10,
        device=torch.device("cpu"),
    )


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pictures, labels and what the adversaries answer, of three rounds."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for _ in range(3):
        x, y = torch.rand(ROWS, 3, SIDE, SIDE, generator=draw) * 2 - 1, torch.rand(ROWS, LABELS, generator=draw) > 0.5
        made.append((x, y.float(), torch.randn(ROWS, K, generator=draw)))
    return made


def play_ahead(player: Defender, batches: list) -> tuple[list[nn.ModuleDict], list[dict[str, torch.Tensor]]]:
    """Rounds in which the next codes are released before the step on the last ones; the net before each, its gradient in it."""
    nets, grads = [], []
    player.release(batches[0][0])
    for round, (_, y, pull) in enumerate(batches):
        if round + 1 < len(batches):
            player.release(batches[round + 1][0], ahead=True)
        nets.append(copy.deepcopy(player.net))
        player.utility(y, round=round)
        player.step(pull)
        grads.append({n: p.grad for n, p in player.net["privatizer"].named_parameters()})
    return nets, grads


@pytest.mark.parametrize("changes", [{}, {"family": "residual"}, {"symmetric": True, "step": 0.5}, {"average": 0.9}])
def test_the_gradient_of_a_step_is_the_one_at_the_weights_that_its_codes_were_released_with(batches, changes):
    player = defender(**changes)
    nets, grads = play_ahead(player, batches)
    for round, (x, y, pull) in enumerate(batches):
        encoder, head = nets[max(0, round - 1)]["privatizer"], nets[round]["head"]
        encoder.zero_grad()
        z = encoder.train()(x)
        (nn.functional.binary_cross_entropy_with_logits(head(z), y) + (pull * z).sum()).backward()
        for name, parameter in encoder.named_parameters():
            torch.testing.assert_close(grads[round][name], parameter.grad, atol=1e-4, rtol=1e-3, msg=f"{name}, round {round}")


def test_batch_statistics_run_over_every_batch_once_and_in_order(batches):
    ahead, encoder = defender(), copy.deepcopy(defender().net["privatizer"])
    for x, _, _ in batches:
        encoder.train()(x)
    ahead.release(batches[0][0])
    for x, _, _ in batches[1:]:
        ahead.release(x, ahead=True)  # no step in between: all of the first weights
    assert all(torch.equal(value, dict(encoder.named_buffers())[n]) for n, value in ahead.net["privatizer"].named_buffers())


def test_after_its_step_nothing_of_a_release_is_in_memory(batches):
    player = defender()
    player.release(batches[0][0])
    held = []
    for round, (_, y, pull) in enumerate(batches):
        if round + 1 < len(batches):
            player.release(batches[round + 1][0], ahead=True)
        held.append([weakref.ref(player.pending[0].code), *map(weakref.ref, player.pending[0].copies.values())])
        player.utility(y, round=round)
        player.step(pull)
        assert [name for name in held[-1] if name() is not None] == []
        assert len(player.pending) == (round + 1 < len(batches))
    assert [len(references) > 1 for references in held] == [False, True, True]


def test_a_release_that_is_not_ahead_takes_the_place_of_all_before_it(batches):
    player = defender()
    for x, _, _ in batches:
        player.release(x)
        player.release(x, ahead=True)
    z = player.release(batches[0][0])
    assert len(player.pending) == 1
    assert torch.equal(player.pending[0].code, z)


@pytest.mark.parametrize("ahead", [False, True])
def test_gradient_norms_are_those_of_each_loss_at_the_encoders_weights(batches, ahead):
    """Against the two losses, each differentiated on its own; the step itself is the one without them."""
    plain, player = defender(), defender(gradient_norms=True)
    for one in (plain, player):
        one.release(batches[0][0], ahead=ahead)
    (x, y, pull), encoder, head = batches[0], copy.deepcopy(player.net["privatizer"]), player.net["head"]
    expected = []
    for loss in (lambda z: nn.functional.binary_cross_entropy_with_logits(head(z), y), lambda z: (pull * z).sum()):
        encoder.zero_grad()
        loss(encoder.train()(x)).backward()
        expected.append(float(torch.cat([p.grad.flatten() for p in encoder.parameters()]).norm()))
    for one in (plain, player):
        one.utility(y, round=0)
    assert plain.step(pull) == {}
    norms = player.step(pull)
    assert list(norms) == ["utility/grad_norm", "privacy/grad_norm"]
    assert list(norms.values()) == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(plain.net.parameters(), player.net.parameters(), strict=True))


def test_without_adversaries_no_norm_is_left_for_privacy(batches):
    player = defender(gradient_norms=True)
    player.release(batches[0][0])
    player.utility(batches[0][1], round=0)
    norms = player.step(None)
    assert norms["utility/grad_norm"] > 0
    assert norms["privacy/grad_norm"] == 0


def played(player: Defender, batches: list) -> list[torch.Tensor]:
    """The codes of each round."""
    found = []
    for round, (x, y, pull) in enumerate(batches):
        found.append(player.release(x).clone())
        player.utility(y, round=round)
        player.step(pull)
    return found


def test_in_bfloat16_codes_and_weights_are_float32_and_near_those_of_float32(batches):
    exact, mixed = (played(player := defender(precision=p), batches) for p in ("float32", "bfloat16"))
    assert all(z.dtype == torch.float32 for z in mixed)
    apart = [float((a - b).norm() / a.norm()) for a, b in zip(exact, mixed, strict=True)]
    assert 1e-4 < apart[0] < 0.02, "products have 8 bits, and are not the same"
    assert max(apart) < 0.2
    assert all(p.dtype == torch.float32 for p in player.net.parameters())


def test_what_is_handed_out_is_float32_after_training_in_bfloat16(batches):
    player, x = defender(precision="bfloat16"), batches[0][0]
    played(player, batches)
    with torch.no_grad():
        assert torch.equal(player.codes(x)[0], player.released["privatizer"](x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_compiled_networks_play_the_same_game_and_are_exported_like_any(batches, average):
    plain, compiled = defender(average=average), defender(average=average, compile=True)
    for a, b in zip(played(plain, batches), played(compiled, batches), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert compiled.state_dict()["net"].keys() == plain.state_dict()["net"].keys()
    assert compiled.net["privatizer"]._compiled_call_impl is not None
    programs = export_programs(compiled.released, k=K, image_shape=(SIDE, SIDE, 3))
    again = torch.export.load(io.BytesIO(programs["privatizer"])).module()(torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8))
    assert torch.allclose(again, compiled.codes(-torch.ones(2, 3, SIDE, SIDE))[0], atol=1e-5)


def test_compiling_without_a_compiler_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        InputError, match=r"^runtime\.compile needs a C\+\+ compiler, and there is no 'no-such-compiler' here: .*CXX$"
    ):
        defender(compile=True)

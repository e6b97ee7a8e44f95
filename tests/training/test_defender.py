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

from cpgan_ray.config import Config, DataConfig, GameConfig, PrivatizerConfig, RuntimeConfig, UtilityConfig
from cpgan_ray.errors import InputError
from cpgan_ray.models.export import export_programs
from cpgan_ray.training.defender import LR_SCHEDULES, Defender, corrupt_inputs

ROWS, K, LABELS, SIDE = 16, 4, 3, 12


def defender(*, precision: Any = "float32", compile: bool = False, gradient_norms: bool = False, **changes) -> Defender:
    """A small one whose head drops nothing, so that its loss can be computed again."""
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


@pytest.mark.parametrize("changes", [{}, {"family": "residual"}, {"symmetric": True, "quantization_step": 0.5}, {"ema_decay": 0.9}])
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


def test_a_rate_goes_from_its_peak_as_its_name_says():
    done = [0.0, 0.25, 0.49, 0.5, 0.74, 0.75, 1.0]
    assert [LR_SCHEDULES["constant"](d) for d in done] == [1.0] * 7
    assert [LR_SCHEDULES["steps"](d) for d in done] == [1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert [LR_SCHEDULES["cosine"](d) for d in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])


def played_rates(rate: str, batches: list) -> list[float]:
    player = defender(lr_schedule=rate)
    found = []
    for round in range(10):
        x, y, pull = batches[round % 3]
        found += [float(group["lr"]) for group in player.optimisers["privatizer"].param_groups]
        player.release(x)
        player.utility(y, round=round)
        player.step(pull)
    return found


def test_the_optimiser_follows_the_rate(batches):
    assert played_rates("steps", batches) == pytest.approx([0.05] * 5 + [0.005] * 3 + [0.0005] * 2)


X = torch.rand(40, 3, 12, 10) * 0.5 + 0.25


def given(*, rows: int = 40, own: slice = slice(None), round: int = 7, **changes) -> torch.Tensor:
    config = Config(data=DataConfig(**changes))
    return corrupt_inputs(X[:rows][own], config, round=round, num_rows=rows, own=own)


def test_pictures_reach_the_privatizer_as_they_are_unless_it_is_to_be_hampered():
    assert given() is X or torch.equal(given(), X)


def test_a_grey_square_lies_somewhere_else_on_each_picture_and_the_rest_is_untouched():
    seen = given(cutout=4)
    covered = (seen == 0).all(1)
    assert torch.equal(seen[~covered[:, None].expand_as(seen)], X[~covered[:, None].expand_as(seen)])
    rows, columns = covered.any(2).sum(1), covered.any(1).sum(1)
    assert torch.equal(covered.sum((1, 2)), rows * columns), "a rectangle"
    assert (int(rows.max()), int(columns.max())) == (4, 4)
    assert int(rows.min()) >= 2, "its centre is in the picture"
    assert len({tuple(c.flatten().tolist()) for c in covered}) > 20
    assert not torch.equal(given(cutout=4, round=8), seen)
    assert torch.equal(given(cutout=4), seen)


def test_input_noise_has_the_deviation_that_is_asked_for():
    noise = given(input_noise=0.3) - X
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(noise.mean())) < 0.01


@pytest.mark.parametrize("changes", [{"cutout": 4}, {"input_noise": 0.3}])
def test_peers_hamper_their_own_rows_as_one_alone_would(changes):
    whole = given(**changes)
    assert torch.equal(torch.cat([given(own=slice(0, 15), **changes), given(own=slice(15, 40), **changes)]), whole)


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
    plain, compiled = defender(ema_decay=average), defender(ema_decay=average, compile=True)
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

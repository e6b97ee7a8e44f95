"""Tests of the game in one process, on a few small faces: rounds, repeatability, gradients, schedules, errors and leaks."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.types import Batch, Feedback, Metrics, Release
from cpgan_ray.config import Config, RidgeConfig, override
from cpgan_ray.data import load
from cpgan_ray.data.batching import batch, pictures
from cpgan_ray.data.code_sets import set_batch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection, scale
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.noisy import noisy_codes
from cpgan_ray.training.game import Game, play_in_process
from cpgan_ray.training.inputs import to_input
from cpgan_ray.training.players import AdversaryWorker, PrivatizerWorker
from tests.games import untimed

SCHEDULES = ("sync", "stale1", "epochwise")
ROUNDS_PER_EPOCH, EPOCHS = 4, 2
CPU = torch.device("cpu")
TRAINED = ("ridge", "rbf", "fourier", "mlp", "decoder")  # trained on every batch; the others once per epoch


def play_all(config: Config, *, chunk: int = 1000) -> tuple[Game, list[Metrics]]:
    """Plays a whole game in this process, at most `chunk` rounds per call."""
    game = play_in_process(config, threads=1)
    played: list[Metrics] = []
    while game.round < game.total_rounds:
        played += game.play(chunk)
    return game, played


@pytest.fixture(scope="module")
def whole_game() -> Callable[[Config], tuple[Game, list[Metrics]]]:
    """`play_all`, once per schedule; tests must not change the games."""
    played: dict[str, tuple[Game, list[Metrics]]] = {}

    def get(config: Config) -> tuple[Game, list[Metrics]]:
        if config.game.schedule not in played:
            played[config.game.schedule] = play_all(config)
        return played[config.game.schedule]

    return get


# ------------------------------------------------------------------------------------------------------------- rounds


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_game_with_every_kind_of_adversary_has_finite_metrics(tiny, whole_game, schedule):
    config = tiny(changes={"game.schedule": schedule})
    _, played = whole_game(config)
    assert [m["round"] for m in played] == [float(r) for r in range(ROUNDS_PER_EPOCH * EPOCHS)]
    assert all(math.isfinite(value) for metrics in played for value in metrics.values())
    names = {name.split("/")[1] for metrics in played for name in metrics if name.startswith("adversary/")}
    if schedule == "epochwise":
        assert names
        assert names <= set(config.adversaries)
    else:
        assert names == set(config.adversaries)


def test_game_at_the_end_has_changed_every_players_weights(tiny, whole_game, differing):
    config = tiny()
    game, _ = whole_game(config)
    before, after = play_in_process(config, threads=1).weights(), game.weights()
    assert before.keys() == after.keys() == {"privatizer", *config.adversaries}
    for name in after:
        assert differing(before[name], after[name]), f"{name} has not changed"
    moved = differing(before["privatizer"]["net"], after["privatizer"]["net"])
    assert {path.split(".")[0] for path in moved} == {"/privatizer", "/head"}


PICTURE_CODE = {
    "k": 16 * 16 * 3,
    "privatizer.bottleneck": False,
    "privatizer.code_activation": "raw",
    "game.privacy_loss": "negated_mse",
}
RESIDUAL_G = PICTURE_CODE | {"privatizer.family": "picture", "privatizer.norm_momentum": 0.01}
WIDE = {"utility.family": "wide", "utility.depth": 10, "utility.width": 1}
SHAKE = {"utility.family": "shake", "utility.depth": 8, "utility.width": 4}
PURE = {
    f"adversaries.decoder.{name}": value
    for name, value in (("architecture", "paper"), ("paper_decoder", "picture"), ("tanh_output", True))
}
CIFAR = PURE | {"adversaries.decoder.paper_decoder": "cifar", "game.schedule": "epochwise"}


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        (("decoder",), RESIDUAL_G | WIDE | PURE),
        (("decoder",), PICTURE_CODE | {"privatizer.family": "picture_conv"} | SHAKE | PURE),
        (("decoder", "ridge_epoch", "fourier_epoch"), RESIDUAL_G | SHAKE | CIFAR),
    ],
    ids=["pure, wide", "pure, shake", "several adversaries, shake"],
)
def test_game_with_the_reference_networks_for_picture_codes_learns(tiny, differing, names, changes):
    config = tiny(*names, changes=changes)
    game, played = play_all(config)
    assert len(played) == ROUNDS_PER_EPOCH * EPOCHS
    assert all(math.isfinite(value) for metrics in played for value in metrics.values())
    before, after = play_in_process(config, threads=1).weights(), game.weights()
    assert all(differing(before[player], after[player]) for player in ("privatizer", *names))
    assert game.privatizer.outcome().codes["test"].shape[1] == 768


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_play_validates_only_in_the_last_round_of_each_epoch(tiny, whole_game, schedule):
    _, played = whole_game(tiny(changes={"game.schedule": schedule}))
    validation = {
        "utility/val_loss",
        "utility/val_accuracy",
        "utility/val_balanced_accuracy",
        "utility/val_accuracy_best",
        "time/epoch_s",
    }
    for metrics in played:
        last = (metrics["round"] + 1) % ROUNDS_PER_EPOCH == 0
        assert validation & metrics.keys() == (validation if last else set())
    accuracies = [m["utility/val_accuracy"] for m in played if "utility/val_accuracy" in m]
    assert [m["utility/val_accuracy_best"] for m in played if "utility/val_accuracy" in m] == list(
        np.maximum.accumulate(accuracies)
    )


def test_validation_uses_the_released_weights(tiny, whole_game):
    game, played = whole_game(tiny())
    _, logits = game.privatizer.codes("val")
    y = game.privatizer.dataset.val.labels
    assert played[-1]["utility/val_accuracy"] == pytest.approx(((logits > 0) == (y > 0)).mean())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_play_after_the_end_plays_no_rounds(tiny, schedule):
    game, _ = play_all(tiny("ridge", epochs=1, changes={"game.schedule": schedule}))
    assert game.play(1) == []
    assert game.round == game.total_rounds


@pytest.mark.parametrize(("rounds", "played"), [(1, [1, 1, 1]), (3, [3, 1, 3]), (ROUNDS_PER_EPOCH, [4, 4, 0]), (1000, [4, 4, 0])])
def test_play_stops_after_the_given_rounds_and_at_an_epochs_end(tiny, rounds, played):
    game = play_in_process(tiny("ridge"), threads=1)
    assert [len(game.play(rounds)) for _ in played] == played


def test_game_without_a_privacy_weight_has_no_adversaries(tiny):
    game, played = play_all(tiny(privacy_weight=0, epochs=1))
    assert game.handles == {}
    assert game.weights().keys() == {"privatizer"}
    assert not any(name.startswith(("adversary/", "privacy/")) for metrics in played for name in metrics)
    assert "utility/val_accuracy" in played[-1]


def test_game_without_adversaries_equals_the_undefended_game(tiny, differing):
    config = tiny(epochs=1)
    alone, _ = play_all(replace(config, adversaries={}))
    undefended, _ = play_all(replace(config, privacy_weight=0.0))
    assert differing(alone.weights(), undefended.weights()) == []


# ------------------------------------------------------------------------------------------------------- repeatability


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_game_played_in_pieces_is_bit_identical(tiny, whole_game, differing, schedule, chunk):
    config = tiny(changes={"game.schedule": schedule})
    whole, played = whole_game(config)
    pieces, played_in_pieces = play_all(config, chunk=chunk)
    assert differing(whole.weights(), pieces.weights()) == []
    assert untimed(played_in_pieces) == untimed(played)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_game_is_determined_by_its_seed(tiny, whole_game, differing, schedule):
    config = tiny(changes={"game.schedule": schedule})
    whole, _ = whole_game(config)
    torch.manual_seed(1)  # the state of torch's global stream must not matter
    np.random.seed(1)  # noqa: NPY002
    again, _ = play_all(config)
    assert differing(whole.weights(), again.weights()) == []
    other, _ = play_all(replace(config, seed=1))
    names = ["privatizer", *(("mlp", "decoder") if schedule == "epochwise" else TRAINED)]
    for name in names:
        assert differing(whole.weights()[name], other.weights()[name]), f"{name} does not depend on the seed"


def test_game_does_not_change_torchs_global_stream(tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    play_in_process(tiny(), threads=1).play(2)
    assert torch.equal(torch.rand(3), expected)


def reference_game(config: Config, *, delay: int) -> tuple[dict[str, torch.Tensor], list[Metrics]]:
    """The game against one adversary as a plain loop. A second encoder computes the gradient of a round, with the weights of
    `delay` rounds ago, but not from an earlier epoch. Returns weights with running statistics, and loss and R2 of each round."""
    (name,) = config.adversaries
    worker, adversary = PrivatizerWorker(config, threads=1), AdversaryWorker(name, config, threads=1)
    defender, played = worker.defender, []
    encoder, head = defender.net["privatizer"], defender.net["head"].train()
    second = copy.deepcopy(encoder).train()
    weights: list[dict[str, torch.Tensor]] = []
    for round in range(ROUNDS_PER_EPOCH * config.epochs):
        weights.append(parameters(encoder))
        in_epoch = weights[round - round % ROUNDS_PER_EPOCH :]
        second.load_state_dict(in_epoch[max(0, len(in_epoch) - 1 - delay)], strict=False)
        rows = batch(round, seed=config.seed, num_rows=320, batch_size=config.batch_size, mirror=True, shift=0)
        y = torch.from_numpy(worker.labels["train"][rows.rows]).float()
        code = second(to_input(pictures(worker.dataset.train, rows), torch.device("cpu")))
        feedback = adversary.respond(Release(round=round, batch=rows, z=code.detach().numpy()))
        z = code.detach().requires_grad_()
        for net in (encoder, second, head):
            net.zero_grad()
        with torch_stream(config.seed, "head", round):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(head(z), y)
        loss.backward()
        code.backward(z.grad + config.privacy_weight * worker.warmed_up(round) * torch.from_numpy(feedback.grad_z))
        for parameter, delayed in zip(encoder.parameters(), second.parameters(), strict=True):
            parameter.grad = delayed.grad
        for stepped in (*defender.optimisers.values(), *defender.schedules.values()):
            stepped.step()
        played.append({"utility/loss": float(loss.detach()), f"adversary/{name}/r2": feedback.r2})
    encoder.load_state_dict(dict(second.named_buffers()), strict=False)
    return defender.net.state_dict(), played


@pytest.mark.parametrize(("schedule", "delay"), [("sync", 0), ("stale1", 1)])
def test_game_gradient_is_exact_in_sync_and_delayed_in_stale1(tiny, schedule, delay):
    config = tiny("mlp", privacy_weight=3, changes={"game.schedule": schedule, "game.warmup_epochs": 1.5})
    game, played = play_all(config)
    expected, expected_metrics = reference_game(config, delay=delay)
    for name, value in game.privatizer.defender.net.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    pairs = zip(played, expected_metrics, strict=True)
    assert [{name: m[name] for name in n} for m, n in pairs] == [pytest.approx(n) for n in expected_metrics]


def test_stale1_sends_the_next_release_before_it_waits(tiny):
    """At the end of an epoch no codes are in flight."""
    config = tiny("ridge", "mlp", changes={"game.schedule": "stale1"})
    events: list[tuple[str, int]] = []

    handles = {name: AdversaryWorker(name, config, threads=1) for name in config.adversaries}

    def share(release: Release) -> Release:
        events.append(("sent", release.round))
        return release

    def gather(replies: Sequence[Feedback]) -> list[Feedback]:
        events.append(("gathered", replies[0].round))
        assert {reply.round for reply in replies} == {replies[0].round}
        return list(replies)

    game = Game(PrivatizerWorker(config, threads=1), handles, gather=gather, share=share)
    game.play(ROUNDS_PER_EPOCH)
    assert events[:4] == [("sent", 0), ("sent", 1), ("gathered", 0), ("sent", 2)]
    assert events[4:] == [("gathered", 1), ("sent", 3), ("gathered", 2), ("gathered", 3)]
    assert game.inflight is None
    assert not game.privatizer.defender.pending
    game.play(1)
    assert events[8:] == [("sent", 4), ("sent", 5), ("gathered", 4)]


def test_stale1_gives_other_weights_than_sync(tiny, whole_game, differing):
    exact, in_time = whole_game(tiny())
    stale, late = whole_game(tiny(changes={"game.schedule": "stale1"}))
    assert differing(exact.weights()["privatizer"], stale.weights()["privatizer"])
    assert late[0]["adversary/ridge/r2"] == in_time[0]["adversary/ridge/r2"], "the first round is not delayed"


@pytest.mark.parametrize("name", ["mlp", "rbf", "ridge_epoch"])
def test_adversary_with_overlap_is_bit_identical(tiny, differing, name):
    config = tiny(name)
    privatizer = PrivatizerWorker(config, threads=1)
    releases = [privatizer.release(round) for round in range(3)]

    def play(*, overlap: bool) -> tuple[list[Feedback], dict]:
        adversary = AdversaryWorker(name, config, threads=1, overlap=overlap)
        return [adversary.respond(release) for release in releases], adversary.weights()

    plain, weights = play(overlap=False)
    overlapped, weights_with_overlap = play(overlap=True)
    assert differing(weights, weights_with_overlap) == []
    for a, b in zip(plain, overlapped, strict=True):
        assert (a.name, a.round, a.r2, a.metrics) == (b.name, b.round, b.r2, b.metrics)
        np.testing.assert_array_equal(a.grad_z, b.grad_z)


# ---------------------------------------------------------------------------------------------- updates and gradients


def test_privatizer_changes_only_in_its_update(tiny, differing):
    game = play_in_process(tiny("ridge", "mlp"), threads=1)
    net = game.privatizer.defender.net
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    release = game.privatizer.release(0)
    feedback = [handle.respond(release) for handle in game.handles.values()]
    game.privatizer.utility(release)
    assert differing(initial, dict(net.named_parameters())) == []
    game.privatizer.update(release, feedback)
    moved = differing(initial, dict(net.named_parameters()))
    assert {path.split(".")[0] for path in moved} == {"/privatizer", "/head"}


def test_release_of_the_same_round_twice_is_equal(tiny):
    privatizer = PrivatizerWorker(tiny("ridge"), threads=1)
    first, second = privatizer.release(3), privatizer.release(3)
    np.testing.assert_array_equal(first.z, second.z)
    np.testing.assert_array_equal(first.batch.rows, second.batch.rows)


def feedback(name: str, *, r2: float, shape: tuple[int, int]) -> Feedback:
    grad = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return Feedback(name=name, round=0, grad_z=grad, r2=r2, metrics={"mse": 1.0})


def after_update(config: Config, feedbacks: list[Feedback]) -> tuple[PrivatizerWorker, Metrics]:
    privatizer = PrivatizerWorker(config, threads=1)
    release = privatizer.release(0)
    privatizer.utility(release)
    return privatizer, privatizer.update(release, feedbacks)


def test_update_with_strongest_uses_only_that_gradient(tiny, differing):
    config = tiny("ridge", "mlp", changes={"game.aggregate": "strongest"})
    weak, strong = (feedback(n, r2=r2, shape=(80, 6)) for n, r2 in (("ridge", 0.1), ("mlp", 0.3)))
    both, metrics = after_update(config, [weak, strong])
    alone, _ = after_update(config, [strong])
    other, _ = after_update(config, [weak])
    assert differing(both.weights(), alone.weights()) == []
    assert differing(both.weights(), other.weights())
    assert (metrics["adversary/ridge/weight"], metrics["adversary/mlp/weight"]) == (0.0, 1.0)
    assert metrics["privacy/training_r2"] == metrics["adversary/mlp/r2"] == 0.3


def test_update_with_mean_uses_the_mean_gradient(tiny, differing):
    config = tiny("ridge", "mlp", changes={"game.aggregate": "mean"})
    feedbacks = [feedback(n, r2=r2, shape=(80, 6)) for n, r2 in (("ridge", 0.1), ("mlp", 0.3))]
    half = replace(feedbacks[0], grad_z=(0.5 * feedbacks[0].grad_z + 0.5 * feedbacks[1].grad_z).astype(np.float32))
    assert differing(after_update(config, feedbacks)[0].weights(), after_update(config, [half])[0].weights()) == []


def test_update_gradient_is_utility_plus_weighted_privacy(tiny):
    """The gradient that reaches the code is dL_U/dz + privacy_weight * grad_z."""
    config = tiny("ridge", privacy_weight=2.5)
    reply = feedback("ridge", r2=0.5, shape=(80, 6))
    privatizer = PrivatizerWorker(config, threads=1)
    release = privatizer.release(0)
    privatizer.utility(release)
    (pending,) = privatizer.defender.pending
    code, utility_grad = pending.code, pending.grad
    assert utility_grad is not None
    code.retain_grad()
    privatizer.update(release, [reply])
    assert code.grad is not None
    torch.testing.assert_close(code.grad, utility_grad + 2.5 * torch.from_numpy(reply.grad_z))


def test_share_of_the_weights_rises_linearly_during_the_warmup(tiny):
    privatizer = PrivatizerWorker(tiny(privacy_weight=3, changes={"game.warmup_epochs": 1.0}), threads=1)
    assert [privatizer.warmed_up(round) for round in (0, 1, 2, 4, 7)] == [0, 0.25, 0.5, 1, 1]
    assert PrivatizerWorker(tiny(privacy_weight=3), threads=1).warmed_up(0) == 1


def test_adversary_targets_are_mirrored_and_shifted_like_the_inputs(tiny):
    config = tiny("decoder", "ridge", changes={"data.max_shift_px": 2})
    release = PrivatizerWorker(config, threads=1).release(1)
    assert 0 < release.batch.mirrored.sum() < len(release.batch.rows)
    assert np.abs(release.batch.shift).max() == 2
    decoder, ridge = (AdversaryWorker(name, config, threads=1) for name in ("decoder", "ridge"))
    inputs = scale(pictures(decoder.dataset.train, release.batch))
    pixels = decoder.source(release, CPU)
    np.testing.assert_allclose(
        pixels.values.numpy() + projection(decoder.dataset, components=DEFAULT_COMPONENTS).mean, inputs, atol=1e-6
    )
    assert not pixels.residual.any()
    components = ridge.source(release, CPU)
    energy = (components.values**2).sum(1) + components.residual
    np.testing.assert_allclose(energy.numpy(), (pixels.values**2).sum(1).numpy(), rtol=1e-4)


def test_outcome_codes_of_copies_are_those_of_the_shifted_pictures(tiny):
    config = tiny("ridge", changes={"attacks.num_shifted": 2, "attacks.max_shift_px": 2})
    privatizer = PrivatizerWorker(config, threads=1)
    privatizer.release(0)
    codes = privatizer.outcome().codes
    copies = {f"{split}_{kind}" for split in ("train", "val") for kind in ("mirrored", "shifted1", "shifted2")}
    assert codes.keys() == {"train", "val", "test"} | copies
    for name in copies:
        copied = set_batch(name, privatizer.dataset, shift=2)
        images = pictures(getattr(privatizer.dataset, name.partition("_")[0]), copied)
        np.testing.assert_allclose(codes[name], privatizer.encode(images)[0].numpy(), atol=1e-5)
        assert not np.allclose(codes[name], codes[name.partition("_")[0]], atol=1e-3)


def test_released_blocks_change_only_a_batch_counter(tiny, differing):
    privatizer = PrivatizerWorker(tiny("ridge_epoch"), threads=1)
    privatizer.release(0)
    state = {name: value.clone() for name, value in privatizer.defender.net.state_dict().items()}
    blocks = list(privatizer.released_blocks("train", round=0))
    assert sum(len(block.z) for block in blocks) == len(privatizer.dataset.train)
    changed = differing(state, dict(privatizer.defender.net.state_dict()))
    assert [path for path in changed if not path.endswith("num_batches_tracked")] == []


@pytest.mark.parametrize("remainder", [1, 2])
def test_released_blocks_with_a_small_remainder_are_finite(tiny, monkeypatch, remainder):
    from cpgan_ray.training import players

    monkeypatch.setattr(players, "EVALUATION_BLOCK", 320 - remainder)
    game = play_in_process(tiny("ridge_epoch"), threads=1)
    blocks = list(game.privatizer.released_blocks("train", round=0))
    assert sum(len(block.z) for block in blocks) == 320
    assert all(np.isfinite(block.z).all() for block in blocks)
    spread = np.concatenate([block.z for block in blocks]).std()
    assert abs(spread - 1) < 0.1


# ---------------------------------------------------------------------------------------------------- the epochwise schedule


def parameters(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def test_epochwise_trains_adversaries_first_and_then_the_privatizer(tiny, differing):
    game = play_in_process(tiny(changes={"game.schedule": "epochwise"}), threads=1)
    net = game.privatizer.defender.net
    neural = ("mlp", "decoder")

    def state() -> tuple[dict, dict, dict]:
        learners = {name: handle.weights() for name, handle in game.handles.items() if name in neural}
        copied = {name: {k: v.clone() for k, v in w["network"].items()} for name, w in learners.items()}
        return parameters(net["privatizer"]), parameters(net["head"]), copied

    start = state()
    game.begin_epoch()
    between = state()
    assert differing(start[0], between[0]) == []
    assert differing(start[1], between[1])
    for name in neural:
        assert differing(start[2][name], between[2][name]), name
    for _ in range(ROUNDS_PER_EPOCH):
        game.play_epochwise()
        game.round += 1
    end = state()
    assert differing(between[0], end[0])
    assert differing(between[1:], end[1:]) == []


def test_epochwise_chooses_the_adversary_with_the_smallest_val_error(tiny):
    game = play_in_process(tiny(changes={"game.schedule": "epochwise"}), threads=1)
    game.begin_epoch()
    (release,) = game.privatizer.released_blocks("val", round=0)
    assert release.split == "val"
    relative_errors = {name: np.divide(*handle.score(release)) for name, handle in game.handles.items()}
    (chosen,) = game.chosen
    assert relative_errors[chosen] == min(relative_errors.values())
    played = game.play(1)
    names_per_round = [{n.split("/")[1] for n in m if n.startswith("adversary/")} for m in played]
    assert all(names == {chosen} for names in names_per_round[1:])
    assert len(played) == ROUNDS_PER_EPOCH


def test_epochwise_without_a_privacy_weight_plays_all_rounds(tiny):
    _, played = play_all(tiny(privacy_weight=0, epochs=1, changes={"game.schedule": "epochwise"}))
    assert len(played) == ROUNDS_PER_EPOCH


# --------------------------------------------------------------------------------------------------------- NaN errors


@pytest.mark.parametrize("schedule", ["sync", "stale1"])
@pytest.mark.parametrize("name", ["mlp", "decoder"])
def test_adversary_that_returns_nan_is_named_with_the_round(tiny, schedule, name):
    game = play_in_process(tiny("ridge", name, changes={"game.schedule": schedule}), threads=1)
    game.play(1)
    with torch.no_grad():
        for value in game.handles[name].adversary.network.parameters():
            value.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=rf"'{name}'.*round {2 if schedule == 'stale1' else 1}\b"):
        game.play(2)


def test_streamed_adversary_that_returns_nan_is_named_with_the_round(tiny):
    game = play_in_process(tiny("ridge_epoch"), threads=1)
    game.play(1)
    game.handles["ridge_epoch"].adversary.fit.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"'ridge_epoch'.*round 1\b"):
        game.play(1)


@pytest.mark.parametrize("name", ["ridge", "rbf", "fourier", "ridge_epoch", "mlp", "decoder"])
def test_privatizer_with_nan_codes_raises_with_the_round(tiny, name):
    game = play_in_process(tiny(name), threads=1)
    game.play(1)
    with torch.no_grad():
        game.privatizer.defender.net["privatizer"].code.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"round 1\b"):
        game.play(1)


def test_game_with_an_infinite_loss_raises_with_the_round(tiny):
    config = tiny(privacy_weight=0, changes={"privatizer.learning_rate": 1e30, "privatizer.lr_schedule": "constant"})
    with pytest.raises(FloatingPointError, match=r"round \d"):
        play_all(config)


def test_game_with_fewer_pictures_than_a_batch_is_refused(tiny):
    with pytest.raises(InputError, match=r"batch_size is 321.*320"):
        play_in_process(tiny("ridge", batch_size=321), threads=1)


# ------------------------------------------------------------------------------------------------------ leaks


def linear_release(config: Config, *, k: int, shuffled: bool = False) -> Release:
    """Codes that are a random linear map of the pictures to k numbers; `shuffled`: assigned to the wrong pictures."""
    train = load(config).train
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(train))
    n = len(rows)
    batch = Batch(rows=rows, mirrored=rng.random(n) < 0.5, shift=np.zeros((n, 2), np.int16))
    x = scale(pictures(train, batch))
    z = (x @ rng.normal(size=(x.shape[1], k)) / math.sqrt(x.shape[1])).astype(np.float32)
    return Release(round=0, batch=batch, z=rng.permutation(z) if shuffled else z)


@pytest.mark.parametrize(("k", "shuffled", "low", "high"), [(192, False, 0.98, 1.0), (8, False, 0.2, 0.9), (8, True, -0.5, 0.05)])
def test_ridge_recovers_a_linear_code_and_nothing_if_shuffled(tiny, k, shuffled, low, high):
    config = tiny("ridge", k=k, changes={"data.image_size": 8})
    ridge = RidgeConfig(memory_batches=0, components=0, penalties=(1e-6, 1e-4, 1e-1))
    config = replace(config, adversaries={"ridge": ridge}, game=override(config, {"game.holdout_fraction": 0.2}).game)
    reply = AdversaryWorker("ridge", config, threads=1).respond(linear_release(config, k=k, shuffled=shuffled))
    assert low < reply.r2 <= high
    assert reply.grad_z.shape == (320, k)


def test_trained_privatizer_leaks_less_than_an_undefended_one(tiny):
    """Tests the direction, not the size: after a few epochs against ridge, a fresh ridge fit recovers less than from an undefended
    code."""
    config = tiny("ridge", epochs=6, changes={"adversaries.ridge.memory_batches": 3})

    def recovered_r2(weight: float) -> float:
        game, _ = play_all(replace(config, privacy_weight=weight))
        train, val = (game.privatizer.codes(name)[0] for name in ("train", "val"))
        x, x_val = (scale(getattr(game.privatizer.dataset, n).take(np.arange(len(c)))) for n, c in (("train", train), ("val", val)))
        mean = x.mean(0)
        design = np.c_[train, np.ones(len(train))]
        weights = np.linalg.lstsq(design, x - mean, rcond=None)[0]
        errors = np.c_[val, np.ones(len(val))] @ weights - (x_val - mean)
        return 1 - float((errors**2).mean() / ((x_val - mean) ** 2).mean())

    assert recovered_r2(5.0) < recovered_r2(0.0) - 0.1


NOISE = {"privatizer.noise": 0.5, "privatizer.noise_clip": 2.0, "privatizer.quantization_step": 0.25}


def test_noisy_game_played_twice_is_identical_and_has_noise(tiny, differing):
    config = tiny("ridge", changes=NOISE)
    (game, played), (again, replayed) = play_all(config), play_all(config)
    assert differing(game.weights(), again.weights()) == []
    assert untimed(played) == untimed(replayed)
    outcome = game.privatizer.outcome()
    assert outcome.clean is not None
    assert np.abs(outcome.clean).max() <= 2
    noise = outcome.codes["test"] - outcome.clean
    assert noise.std() == pytest.approx((0.5**2 + 0.25**2 / 12) ** 0.5, rel=0.1)
    np.testing.assert_allclose(outcome.codes["test"] / 0.25, np.rint(outcome.codes["test"] / 0.25), atol=1e-3)
    draws = [outcome.codes[name] for name in ("train", "train_draw1", "train_draw2", "train_draw3")]
    assert np.corrcoef([(z - draws[0]).ravel() for z in draws[1:]])[0, 1] == pytest.approx(0.5, abs=0.15)
    np.testing.assert_array_equal(
        noisy_codes({"test": outcome.clean}, game.privatizer.dataset, noise=0.5, step=0.25, seed=config.seed)["test"],
        np.rint(outcome.codes["test"] / np.float32(0.25)) * np.float32(0.25),
    )


def test_noise_of_a_round_does_not_depend_on_earlier_rounds(tiny):
    config = tiny("ridge", changes=NOISE)
    first, second = (PrivatizerWorker(config, threads=1) for _ in range(2))
    first.release(0)
    np.testing.assert_array_equal(first.noise(8, 3), second.noise(8, 3))
    assert not np.array_equal(first.noise(8, 3), first.noise(8, 4))

"""The game in one process, on few small faces: it plays, repeats itself exactly, and means what it says."""

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
from cpgan_ray.data.pca import scale
from cpgan_ray.errors import InputError
from cpgan_ray.training.defender import to_input
from cpgan_ray.training.game import Game, play_in_process
from cpgan_ray.training.players import AdversaryWorker, PrivatizerWorker
from tests.games import untimed

SCHEDULES = ("sync", "stale1", "epochwise")
ROUNDS_PER_EPOCH, EPOCHS = 4, 2
TRAINED = ("ridge", "rbf", "fourier", "mlp", "decoder")  # on every batch; the others once per epoch


def play_all(config: Config, *, chunk: int = 1000) -> tuple[Game, list[Metrics]]:
    """A whole game in this process, so many rounds at a time."""
    game = play_in_process(config, threads=1)
    played: list[Metrics] = []
    while game.round < game.total_rounds:
        played += game.play(chunk)
    return game, played


@pytest.fixture(scope="module")
def whole_game() -> Callable[[Config], tuple[Game, list[Metrics]]]:
    """`play_all`, once for each schedule; the games are only looked at."""
    played: dict[str, tuple[Game, list[Metrics]]] = {}

    def get(config: Config) -> tuple[Game, list[Metrics]]:
        if config.game.schedule not in played:
            played[config.game.schedule] = play_all(config)
        return played[config.game.schedule]

    return get


# ------------------------------------------------------------------------------------------------------------- it plays


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_kind_of_adversary_plays_and_its_answers_are_finite(tiny, whole_game, schedule):
    config = tiny(changes={"game.schedule": schedule})
    _, played = whole_game(config)
    assert [m["round"] for m in played] == [float(r) for r in range(ROUNDS_PER_EPOCH * EPOCHS)]
    assert all(math.isfinite(value) for metrics in played for value in metrics.values())
    answered = {name.split("/")[1] for metrics in played for name in metrics if name.startswith("adversary/")}
    if schedule == "epochwise":
        assert answered
        assert answered <= set(config.adversaries)
    else:
        assert answered == set(config.adversaries)


def test_every_player_has_learnt_in_the_end(tiny, whole_game, differing):
    config = tiny()
    game, _ = whole_game(config)
    before, after = play_in_process(config, threads=1).weights(), game.weights()
    assert before.keys() == after.keys() == {"privatizer", *config.adversaries}
    for name in after:
        assert differing(before[name], after[name]), f"{name} is as it was"
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
def test_the_originals_networks_for_codes_that_are_pictures_play(tiny, differing, names, changes):
    config = tiny(*names, changes=changes)
    game, played = play_all(config)
    assert len(played) == ROUNDS_PER_EPOCH * EPOCHS
    assert all(math.isfinite(value) for metrics in played for value in metrics.values())
    before, after = play_in_process(config, threads=1).weights(), game.weights()
    assert all(differing(before[player], after[player]) for player in ("privatizer", *names))
    assert game.privatizer.outcome().codes["test"].shape[1] == 768


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_validation_is_measured_in_the_last_round_of_each_epoch_and_no_other(tiny, whole_game, schedule):
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


def test_validation_measures_the_weights_that_are_released(tiny, whole_game):
    game, played = whole_game(tiny())
    _, logits = game.privatizer.codes("val")
    y = game.privatizer.dataset.val.labels
    assert played[-1]["utility/val_accuracy"] == pytest.approx(((logits > 0) == (y > 0)).mean())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_is_played_after_the_end(tiny, schedule):
    game, _ = play_all(tiny("ridge", epochs=1, changes={"game.schedule": schedule}))
    assert game.play(1) == []
    assert game.round == game.total_rounds


@pytest.mark.parametrize(("rounds", "played"), [(1, [1, 1, 1]), (3, [3, 1, 3]), (ROUNDS_PER_EPOCH, [4, 4, 0]), (1000, [4, 4, 0])])
def test_play_stops_after_the_rounds_asked_for_and_at_the_end_of_an_epoch(tiny, rounds, played):
    game = play_in_process(tiny("ridge"), threads=1)
    assert [len(game.play(rounds)) for _ in played] == played


def test_without_a_privacy_weight_nobody_plays_against_the_privatizer(tiny):
    game, played = play_all(tiny(privacy_weight=0, epochs=1))
    assert game.handles == {}
    assert game.weights().keys() == {"privatizer"}
    assert not any(name.startswith(("adversary/", "privacy/")) for metrics in played for name in metrics)
    assert "utility/val_accuracy" in played[-1]


def test_without_adversaries_the_privatizer_ends_where_the_undefended_one_does(tiny, differing):
    config = tiny(epochs=1)
    alone, _ = play_all(replace(config, adversaries={}))
    undefended, _ = play_all(replace(config, privacy_weight=0.0))
    assert differing(alone.weights(), undefended.weights()) == []


# ------------------------------------------------------------------------------------------------------- it repeats itself


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_playing_in_pieces_gives_the_same_game_bit_for_bit(tiny, whole_game, differing, schedule, chunk):
    config = tiny(changes={"game.schedule": schedule})
    whole, played = whole_game(config)
    pieces, played_in_pieces = play_all(config, chunk=chunk)
    assert differing(whole.weights(), pieces.weights()) == []
    assert untimed(played_in_pieces) == untimed(played)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_seed_decides_the_game(tiny, whole_game, differing, schedule):
    config = tiny(changes={"game.schedule": schedule})
    whole, _ = whole_game(config)
    torch.manual_seed(1)  # what else draws from torch's global stream must not matter
    np.random.seed(1)  # noqa: NPY002
    again, _ = play_all(config)
    assert differing(whole.weights(), again.weights()) == []
    other, _ = play_all(replace(config, seed=1))
    names = ["privatizer", *(("mlp", "decoder") if schedule == "epochwise" else TRAINED)]
    for name in names:
        assert differing(whole.weights()[name], other.weights()[name]), f"{name} does not depend on the seed"


def test_a_game_leaves_the_global_random_streams_alone(tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    play_in_process(tiny(), threads=1).play(2)
    assert torch.equal(torch.rand(3), expected)


def by_hand(config: Config, *, delay: int) -> tuple[dict[str, torch.Tensor], list[Metrics]]:
    """The game against one adversary as a plain loop: the gradient of a round is taken on a second encoder, which has the weights
    of `delay` rounds ago, but never those of an epoch before. Weights and running statistics; loss and R2 of each round."""
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
        code.backward(z.grad + worker.privacy_weight(round) * torch.from_numpy(feedback.grad_z))
        for parameter, delayed in zip(encoder.parameters(), second.parameters(), strict=True):
            parameter.grad = delayed.grad
        for moving in (*defender.optimisers.values(), *defender.schedules.values()):
            moving.step()
        played.append({"utility/loss": float(loss.detach()), f"adversary/{name}/r2": feedback.r2})
    encoder.load_state_dict(dict(second.named_buffers()), strict=False)
    return defender.net.state_dict(), played


@pytest.mark.parametrize(("schedule", "delay"), [("sync", 0), ("stale1", 1)])
def test_the_gradient_is_exact_in_sync_and_one_round_old_in_stale1(tiny, schedule, delay):
    config = tiny("mlp", privacy_weight=3, changes={"game.schedule": schedule, "game.warmup_epochs": 1.5})
    game, played = play_all(config)
    expected, numbers = by_hand(config, delay=delay)
    for name, value in game.privatizer.defender.net.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert [{name: m[name] for name in n} for m, n in zip(played, numbers, strict=True)] == [pytest.approx(n) for n in numbers]


def test_stale1_asks_about_the_next_codes_before_it_waits_for_the_answers_and_ends_an_epoch_with_nothing_in_flight(tiny):
    config = tiny("ridge", "mlp", changes={"game.schedule": "stale1"})
    events: list[tuple[str, int]] = []
    handles = {name: AdversaryWorker(name, config, threads=1) for name in config.adversaries}

    def share(release: Release) -> Release:
        events.append(("asked", release.round))
        return release

    def gather(answers: Sequence[Feedback]) -> list[Feedback]:
        events.append(("gathered", answers[0].round))
        assert {answer.round for answer in answers} == {answers[0].round}
        return list(answers)

    game = Game(PrivatizerWorker(config, threads=1), handles, gather=gather, share=share)
    game.play(ROUNDS_PER_EPOCH)
    assert events[:4] == [("asked", 0), ("asked", 1), ("gathered", 0), ("asked", 2)]
    assert events[4:] == [("gathered", 1), ("asked", 3), ("gathered", 2), ("gathered", 3)]
    assert game.inflight is None
    assert not game.privatizer.defender.pending
    game.play(1)
    assert events[8:] == [("asked", 4), ("asked", 5), ("gathered", 4)]


def test_feedback_that_is_one_round_old_gives_another_game(tiny, whole_game, differing):
    exact, in_time = whole_game(tiny())
    stale, late = whole_game(tiny(changes={"game.schedule": "stale1"}))
    assert differing(exact.weights()["privatizer"], stale.weights()["privatizer"])
    assert late[0]["adversary/ridge/r2"] == in_time[0]["adversary/ridge/r2"], "the first round has nothing older to go by"


@pytest.mark.parametrize("name", ["mlp", "rbf", "ridge_epoch"])
def test_learning_beside_the_privatizers_step_gives_the_same_adversary_bit_for_bit(tiny, differing, name):
    config = tiny(name)
    privatizer = PrivatizerWorker(config, threads=1)
    releases = [privatizer.release(round) for round in range(3)]

    def answers(*, overlap: bool) -> tuple[list[Feedback], dict]:
        adversary = AdversaryWorker(name, config, threads=1, overlap=overlap)
        return [adversary.respond(release) for release in releases], adversary.weights()

    one, weights = answers(overlap=False)
    other, weights_with_overlap = answers(overlap=True)
    assert differing(weights, weights_with_overlap) == []
    for a, b in zip(one, other, strict=True):
        assert (a.name, a.round, a.r2, a.metrics) == (b.name, b.round, b.r2, b.metrics)
        np.testing.assert_array_equal(a.grad_z, b.grad_z)


# --------------------------------------------------------------------------------------------------- it is the game meant


def test_the_privatizer_moves_in_its_update_alone(tiny, differing):
    game = play_in_process(tiny("ridge", "mlp"), threads=1)
    net = game.privatizer.defender.net
    at_first = {name: value.detach().clone() for name, value in net.named_parameters()}
    release = game.privatizer.release(0)
    feedback = [handle.respond(release) for handle in game.handles.values()]
    game.privatizer.utility(release)
    assert differing(at_first, dict(net.named_parameters())) == []
    game.privatizer.update(feedback)
    moved = differing(at_first, dict(net.named_parameters()))
    assert {path.split(".")[0] for path in moved} == {"/privatizer", "/head"}


def test_a_release_asked_for_again_is_the_same(tiny):
    privatizer = PrivatizerWorker(tiny("ridge"), threads=1)
    one, other = privatizer.release(3), privatizer.release(3)
    np.testing.assert_array_equal(one.z, other.z)
    np.testing.assert_array_equal(one.batch.rows, other.batch.rows)


def feedback(name: str, *, r2: float, shape: tuple[int, int]) -> Feedback:
    grad = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return Feedback(name=name, round=0, grad_z=grad, r2=r2, metrics={"mse": 1.0})


def after_update(config: Config, answers: list[Feedback]) -> tuple[PrivatizerWorker, Metrics]:
    privatizer = PrivatizerWorker(config, threads=1)
    privatizer.utility(privatizer.release(0))
    return privatizer, privatizer.update(answers)


def test_the_strongest_adversarys_gradient_counts_alone(tiny, differing):
    config = tiny("ridge", "mlp", changes={"game.aggregate": "strongest"})
    weak, strong = (feedback(n, r2=r2, shape=(80, 6)) for n, r2 in (("ridge", 0.1), ("mlp", 0.3)))
    both, metrics = after_update(config, [weak, strong])
    alone, _ = after_update(config, [strong])
    other, _ = after_update(config, [weak])
    assert differing(both.weights(), alone.weights()) == []
    assert differing(both.weights(), other.weights())
    assert (metrics["adversary/ridge/weight"], metrics["adversary/mlp/weight"]) == (0.0, 1.0)
    assert metrics["privacy/training_r2"] == metrics["adversary/mlp/r2"] == 0.3


def test_the_mean_of_the_adversaries_gradients_counts(tiny, differing):
    config = tiny("ridge", "mlp", changes={"game.aggregate": "mean"})
    answers = [feedback(n, r2=r2, shape=(80, 6)) for n, r2 in (("ridge", 0.1), ("mlp", 0.3))]
    half = replace(answers[0], grad_z=(0.5 * answers[0].grad_z + 0.5 * answers[1].grad_z).astype(np.float32))
    assert differing(after_update(config, answers)[0].weights(), after_update(config, [half])[0].weights()) == []


def test_the_privatizer_follows_the_utility_loss_plus_the_weighted_privacy_term(tiny):
    """The gradient that reaches the code is dL_U/dz + privacy_weight * grad_z."""
    config = tiny("ridge", privacy_weight=2.5)
    answer = feedback("ridge", r2=0.5, shape=(80, 6))
    privatizer = PrivatizerWorker(config, threads=1)
    release = privatizer.release(0)
    privatizer.utility(release)
    (pending,) = privatizer.defender.pending
    code, of_utility = pending.code, pending.grad
    assert of_utility is not None
    code.retain_grad()
    privatizer.update([answer])
    assert code.grad is not None
    torch.testing.assert_close(code.grad, of_utility + 2.5 * torch.from_numpy(answer.grad_z))


def test_the_privacy_weight_rises_from_nothing_during_the_warm_up(tiny):
    privatizer = PrivatizerWorker(tiny(privacy_weight=3, changes={"game.warmup_epochs": 1.0}), threads=1)
    assert [privatizer.privacy_weight(round) for round in (0, 1, 2, 4, 7)] == [0, 0.75, 1.5, 3, 3]
    assert PrivatizerWorker(tiny(privacy_weight=3), threads=1).privacy_weight(0) == 3


def test_an_adversary_aims_at_the_pictures_that_the_privatizer_saw_mirrored_and_shifted(tiny):
    config = tiny("decoder", "ridge", changes={"data.max_shift_px": 2})
    release = PrivatizerWorker(config, threads=1).release(1)
    assert 0 < release.batch.mirrored.sum() < len(release.batch.rows)
    assert np.abs(release.batch.shift).max() == 2
    decoder, ridge = (AdversaryWorker(name, config, threads=1) for name in ("decoder", "ridge"))
    seen = scale(pictures(decoder.dataset.train, release.batch))
    pixels = decoder.target(release)
    np.testing.assert_allclose(pixels.values.numpy() + decoder.projection.mean, seen, atol=1e-6)
    assert not pixels.residual.any()
    components = ridge.target(release)
    energy = (components.values**2).sum(1) + components.residual
    np.testing.assert_allclose(energy.numpy(), (pixels.values**2).sum(1).numpy(), rtol=1e-4)


def test_codes_for_the_streamed_fit_change_nothing_but_a_counter(tiny, differing):
    privatizer = PrivatizerWorker(tiny("ridge_epoch"), threads=1)
    privatizer.release(0)
    state = {name: value.clone() for name, value in privatizer.defender.net.state_dict().items()}
    blocks = list(privatizer.released_blocks("train", round=0))
    assert sum(len(block.z) for block in blocks) == len(privatizer.dataset.train)
    changed = differing(state, dict(privatizer.defender.net.state_dict()))
    assert [path for path in changed if not path.endswith("num_batches_tracked")] == []


@pytest.mark.parametrize("left_over", [1, 2])
def test_the_streamed_fit_copes_with_a_last_block_of_few_rows(tiny, monkeypatch, left_over):
    from cpgan_ray.training import players

    monkeypatch.setattr(players, "EVALUATION_BLOCK", 320 - left_over)
    game = play_in_process(tiny("ridge_epoch"), threads=1)
    blocks = list(game.privatizer.released_blocks("train", round=0))
    assert sum(len(block.z) for block in blocks) == 320
    assert all(np.isfinite(block.z).all() for block in blocks)
    spread = np.concatenate([block.z for block in blocks]).std()
    assert abs(spread - 1) < 0.1


# ---------------------------------------------------------------------------------------------------- the epochwise order


def parameters(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def test_in_the_first_pass_of_an_epoch_the_head_and_the_adversaries_learn_and_in_the_second_the_privatizer_alone(tiny, differing):
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


def test_the_adversary_with_the_smallest_error_on_the_validation_split_is_the_epochs_opponent(tiny):
    game = play_in_process(tiny(changes={"game.schedule": "epochwise"}), threads=1)
    game.begin_epoch()
    (release,) = game.privatizer.released_blocks("val", round=0)
    assert release.split == "val"
    shares = {name: np.divide(*handle.score(release)) for name, handle in game.handles.items()}
    assert shares[game.chosen] == min(shares.values())
    played = game.play(1)
    opponents = [{n.split("/")[1] for n in m if n.startswith("adversary/")} for m in played]
    assert all(names == {game.chosen} for names in opponents[1:])
    assert len(played) == ROUNDS_PER_EPOCH


def test_epochwise_without_a_privacy_weight_plays_undefended(tiny):
    _, played = play_all(tiny(privacy_weight=0, epochs=1, changes={"game.schedule": "epochwise"}))
    assert len(played) == ROUNDS_PER_EPOCH


# --------------------------------------------------------------------------------------------------------- it stops on a NaN


@pytest.mark.parametrize("schedule", ["sync", "stale1"])
@pytest.mark.parametrize("name", ["mlp", "decoder"])
def test_an_adversary_that_answers_nan_stops_the_game_and_is_named_with_the_round(tiny, schedule, name):
    game = play_in_process(tiny("ridge", name, changes={"game.schedule": schedule}), threads=1)
    game.play(1)
    with torch.no_grad():
        for value in game.handles[name].adversary.network.parameters():
            value.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=rf"'{name}'.*round {2 if schedule == 'stale1' else 1}\b"):
        game.play(2)


def test_a_streamed_adversary_that_answers_nan_is_named_with_the_round(tiny):
    game = play_in_process(tiny("ridge_epoch"), threads=1)
    game.play(1)
    game.handles["ridge_epoch"].adversary.fit.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"'ridge_epoch'.*round 1\b"):
        game.play(1)


@pytest.mark.parametrize("name", ["ridge", "rbf", "fourier", "ridge_epoch", "mlp", "decoder"])
def test_a_privatizer_whose_codes_are_nan_stops_the_game_and_the_round_is_named(tiny, name):
    game = play_in_process(tiny(name), threads=1)
    game.play(1)
    with torch.no_grad():
        game.privatizer.defender.net["privatizer"].code.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"round 1\b"):
        game.play(1)


def test_a_learning_rate_that_is_too_high_stops_an_undefended_game_in_the_round_where_the_loss_is_lost(tiny):
    config = tiny(privacy_weight=0, changes={"privatizer.learning_rate": 1e30, "privatizer.lr_schedule": "constant"})
    with pytest.raises(FloatingPointError, match=r"round \d"):
        play_all(config)


def test_fewer_pictures_than_a_batch_are_refused(tiny):
    with pytest.raises(InputError, match=r"batch_size is 321.*320"):
        play_in_process(tiny("ridge", batch_size=321), threads=1)


# ------------------------------------------------------------------------------------------------------ leaks are seen


def linear_release(config: Config, *, k: int, shuffled: bool = False) -> Release:
    """Codes that are a random linear map of the pictures to k numbers; given to the wrong pictures if `shuffled`."""
    train = load(config).train
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(train))
    n = len(rows)
    batch = Batch(rows=rows, mirrored=rng.random(n) < 0.5, shift=np.zeros((n, 2), np.int16))
    x = scale(pictures(train, batch))
    z = (x @ rng.normal(size=(x.shape[1], k)) / math.sqrt(x.shape[1])).astype(np.float32)
    return Release(round=0, batch=batch, z=rng.permutation(z) if shuffled else z)


@pytest.mark.parametrize(("k", "shuffled", "low", "high"), [(192, False, 0.98, 1.0), (8, False, 0.2, 0.9), (8, True, -0.5, 0.05)])
def test_ridge_recovers_all_of_a_linear_code_as_long_as_the_picture_and_nothing_of_a_shuffled_one(tiny, k, shuffled, low, high):
    config = tiny("ridge", k=k, changes={"data.image_size": 8})
    ridge = RidgeConfig(memory_batches=0, components=0, penalties=(1e-6, 1e-4, 1e-1))
    config = replace(config, adversaries={"ridge": ridge}, game=override(config, {"game.holdout_fraction": 0.2}).game)
    found = AdversaryWorker("ridge", config, threads=1).respond(linear_release(config, k=k, shuffled=shuffled))
    assert low < found.r2 <= high
    assert found.grad_z.shape == (320, k)


def test_an_opposed_privatizer_gives_away_less_than_an_undefended_one(tiny):
    """Direction, not size: after a few epochs against ridge, a fresh ridge fit recovers less than from an undefended code."""
    config = tiny("ridge", epochs=6, changes={"adversaries.ridge.memory_batches": 3})

    def recovered(weight: float) -> float:
        game, _ = play_all(replace(config, privacy_weight=weight))
        train, val = (game.privatizer.codes(name)[0] for name in ("train", "val"))
        x, x_val = (scale(getattr(game.privatizer.dataset, n).take(np.arange(len(c)))) for n, c in (("train", train), ("val", val)))
        mean = x.mean(0)
        design = np.c_[train, np.ones(len(train))]
        weights = np.linalg.lstsq(design, x - mean, rcond=None)[0]
        errors = np.c_[val, np.ones(len(val))] @ weights - (x_val - mean)
        return 1 - float((errors**2).mean() / ((x_val - mean) ** 2).mean())

    assert recovered(5.0) < recovered(0.0) - 0.1

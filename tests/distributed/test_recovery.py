"""Tests that a game with failures has bit-identical weights and metrics to the game without failures."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import ray

from cpgan_ray.config import Config
from cpgan_ray.distributed.driver import RayGame
from cpgan_ray.training.game import Game, play_in_process
from tests.games import untimed
from tests.killing import kill, processes
from tests.process import HANG_S, wait_until

pytestmark = pytest.mark.usefixtures("ray_session")

NAMES = ("rbf", "mlp", "ridge_epoch")


def playing() -> list[psutil.Process]:
    """The adversaries that have mapped the training pictures; spares have not."""
    return [p for p in processes("AdversaryActor") if any(m.path.endswith("train.arrow") for m in p.memory_maps())]


def hang(title: str) -> None:
    """Suspend an actor's process."""
    processes(title)[0].suspend()


@pytest.fixture(scope="module")
def unbroken(tiny_config: Config) -> Callable[[Config], tuple[Game, list[dict[str, float]]]]:
    """A function from a configuration to the finished game in one process and its metrics."""
    games: dict[str, tuple[Game, list[dict[str, float]]]] = {}

    def play(config: Config) -> tuple[Game, list[dict[str, float]]]:
        key = f"{config.game.schedule} {sorted(config.adversaries)} {config.epochs}"
        if key not in games:
            game, played = play_in_process(config, threads=1), []
            while game.round < game.total_rounds:
                played += game.play(3)
            games[key] = game, untimed(played)
        return games[key]

    return play


def broken(config: Config, at: dict[int, Callable[[RayGame], object]], *, chunk: int = 2) -> tuple[Any, list[Any], Any]:
    """Play on Ray; at: number of chunks -> function called while the next chunk is played."""
    with RayGame(config) as game:
        played: list[dict[str, float]] = []
        chunks = 0
        while len(played) < game.total_rounds:
            started = game.play(chunk)
            chunks += 1
            if chunks in at:
                time.sleep(0.02)
                at[chunks](game)
            played += game.get(started)
        return game.weights(), untimed(played), list(game.events)


def settings(tiny: Callable[..., Config], *names: str, **changes: Any) -> Config:
    dotted = {"runtime.backend": "ray", "recovery.snapshot_every": 3, "recovery.backoff_s": 0.1, "epochs": 4}
    return tiny(*(names or NAMES), changes=dotted | {key.replace("__", "."): value for key, value in changes.items()})


LOSSES: dict[str, dict[int, Callable[[RayGame], object]]] = {
    "an adversary": {3: lambda game: kill("AdversaryActor")},
    "each adversary, one after the other": {n: lambda game, n=n: kill("AdversaryActor", n - 2) for n in (2, 3, 4)},
    "two adversaries at once": {4: lambda game: (kill("AdversaryActor", 0), kill("AdversaryActor", 1))},
    "the host before there is a checkpoint": {3: lambda game: kill("GameHost")},
    "the host after a checkpoint": {3: lambda game: game.snapshot(), 5: lambda game: kill("GameHost")},
    "host and adversary": {2: lambda game: game.snapshot(), 4: lambda game: (kill("AdversaryActor"), kill("GameHost"))},
}
QUICK = ("host and adversary",)


@pytest.mark.parametrize("case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in LOSSES])
def test_game_that_loses_players_is_bit_identical(case, tiny, unbroken, differing):
    config = settings(tiny)
    game, expected = unbroken(config)
    weights, played, events = broken(config, LOSSES[case])
    assert [int(m["round"]) for m in played] == list(range(16)), "each round is returned once"
    assert played == expected
    assert differing(game.weights(), weights) == []
    assert events, "the failure was reported"
    for event in events:
        assert event.seconds > 0
        assert 0 <= event.replayed <= 16
        assert event.cause


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["stale1", "epochwise"])
def test_game_with_other_schedules_that_loses_players_is_bit_identical(schedule, tiny, unbroken, differing):
    config = settings(tiny, "mlp", "ridge_epoch", game__schedule=schedule)
    game, expected = unbroken(config)
    weights, played, events = broken(config, {2: lambda game: kill("AdversaryActor")})
    assert played == expected
    assert differing(game.weights(), weights) == []
    assert events[0].players in (("mlp",), ("ridge_epoch",))


def test_suspended_adversary_is_replaced_after_its_deadline(tiny, unbroken, differing):
    config = settings(tiny, "mlp", runtime__reply_timeout_s=10.0)
    game, expected = unbroken(config)
    weights, played, events = broken(config, {3: lambda game: hang("AdversaryActor")})
    assert played == expected
    assert differing(game.weights(), weights) == []
    assert [e.players for e in events] == [("mlp",)]
    assert "no response for 10 s" in events[0].cause


def test_spare_replaces_a_lost_adversary(tiny, unbroken, differing):
    config = settings(tiny, "mlp", recovery__num_spares=1)
    game, expected = unbroken(config)
    replacements: list[list[psutil.Process]] = []

    def kill_player(game: RayGame) -> None:
        wait_until(lambda: len(processes("AdversaryActor")) == 2, "the spare does not start")
        (victim,) = playing()
        replacements.append([p for p in processes("AdversaryActor") if p != victim])
        victim.kill()
        victim.wait(HANG_S)

    weights, played, events = broken(config, {3: kill_player, 5: lambda game: replacements.append(playing())})
    assert played == expected
    assert differing(game.weights(), weights) == []
    assert events, "the failure was reported"
    spare, player = replacements
    assert player == spare, "the same process"


@pytest.mark.slow
def test_replacement_that_is_lost_while_it_starts_is_replaced(tiny, unbroken, differing):
    """The other replacement, which responds but does not play yet, must not be taken for a player."""
    config = settings(tiny, "mlp", "ridge_epoch")
    game, expected = unbroken(config)
    at_work = "AdversaryActor."  # followed by the method: the first ones prepare the data and build the adversary

    def kill_a_replacement() -> None:
        wait_until(lambda: processes(at_work), "no replacement works", every_s=0.01)
        kill(at_work)

    killer = threading.Thread(target=kill_a_replacement, daemon=True)

    def kill_both(game: RayGame) -> None:
        for player in processes("AdversaryActor"):
            player.kill()
            player.wait(HANG_S)
        killer.start()

    weights, played, events = broken(config, {3: kill_both})
    killer.join(HANG_S)
    assert played == expected
    assert differing(game.weights(), weights) == []
    assert {player for event in events for player in event.players} == {"mlp", "ridge_epoch"}


def test_game_after_too_many_losses_names_adversary_and_round(tiny):
    config = settings(tiny, "mlp", recovery__max_failures=0)
    with pytest.raises(RuntimeError, match=r"lost in round \d+: adversary 'mlp': \w*Actor\w*Error.*max_failures = 0"):
        broken(config, {2: lambda game: kill("AdversaryActor")})


@pytest.mark.slow
def test_game_after_too_many_lost_hosts_raises(tiny):
    config = settings(tiny, "mlp", recovery__max_failures=0)
    with pytest.raises(RuntimeError, match=r"max_failures = 0"):
        broken(config, {2: lambda game: kill("GameHost")})


@pytest.mark.slow
def test_game_that_lost_players_frees_all_cpus(tiny):
    broken(settings(tiny, "mlp"), {2: lambda game: kill("AdversaryActor"), 3: lambda game: kill("GameHost")})
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


# ----------------------------------------------------------------------------------------------------- snapshots, in process


@pytest.mark.parametrize("schedule", ["sync", "stale1", "epochwise"])
def test_game_restored_from_any_snapshot_is_bit_identical(schedule, tiny, differing):
    config = tiny(changes={"game.schedule": schedule, "epochs": 4})
    first = play_in_process(config, threads=1, keep=True)
    snapshots = []
    while first.round < first.total_rounds:
        first.play(1)
        snapshots.append(first.snapshot())
    second = play_in_process(config, threads=1)
    middle = len(snapshots) // 2
    for snapshot in (snapshots[middle], snapshots[0], snapshots[-1]):
        second.restore(snapshot)
        while second.round < second.total_rounds:
            second.play(2)
        assert differing(first.weights(), second.weights()) == []
        assert second.best_accuracy == first.best_accuracy


def test_snapshot_does_not_change_the_game(tiny, differing):
    config = tiny(epochs=2)
    plain, observed = play_in_process(config, threads=1), play_in_process(config, threads=1)
    while plain.round < plain.total_rounds:
        plain.play(1)
        observed.play(1)
        observed.snapshot()
    assert differing(plain.weights(), observed.weights()) == []


@pytest.fixture(autouse=True)
def awake() -> Iterator[None]:
    """Kills processes that are still suspended after a test."""
    yield
    for process in processes("AdversaryActor"):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                process.kill()

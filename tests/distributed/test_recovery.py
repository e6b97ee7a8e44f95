"""Losses: whatever dies, the game ends with the weights and the metrics of the unbroken one, bit for bit."""

import contextlib
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
    """The adversaries that have the training pictures before them, which a spare has not."""
    return [p for p in processes("AdversaryActor") if any(m.path.endswith("train.arrow") for m in p.memory_maps())]


def hang(title: str) -> None:
    """Stop an actor's process without ending it."""
    processes(title)[0].suspend()


@pytest.fixture(scope="module")
def unbroken(tiny_config: Config) -> Callable[[Config], tuple[Game, list[dict[str, float]]]]:
    """A configuration -> the game in one process, played to its end, and its metrics."""
    known: dict[str, tuple[Game, list[dict[str, float]]]] = {}

    def play(config: Config) -> tuple[Game, list[dict[str, float]]]:
        key = f"{config.game.schedule} {sorted(config.adversaries)} {config.epochs}"
        if key not in known:
            game, played = play_in_process(config, threads=1), []
            while game.round < game.total_rounds:
                played += game.play(3)
            known[key] = game, untimed(played)
        return known[key]

    return play


def broken(config: Config, at: dict[int, Callable[[RayGame], object]], *, chunk: int = 2) -> tuple[Any, list[Any], Any]:
    """Play on Ray; after so many chunks something happens while the next one is under way."""
    with RayGame(config) as game:
        played: list[dict[str, float]] = []
        number = 0
        while len(played) < game.total_rounds:
            coming = game.play(chunk)
            number += 1
            if number in at:
                time.sleep(0.02)
                at[number](game)
            played += game.get(coming)
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
QUICK = ("two adversaries at once", "host and adversary")


@pytest.mark.parametrize("case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in LOSSES])
def test_a_game_that_loses_players_ends_like_the_unbroken_one(case, tiny, unbroken, differing):
    config = settings(tiny)
    game, expected = unbroken(config)
    weights, played, events = broken(config, LOSSES[case])
    assert [int(m["round"]) for m in played] == list(range(16)), "each round is told once"
    assert played == expected
    assert differing(game.weights(), weights) == []
    assert events, "the loss was told"
    for event in events:
        assert event.seconds > 0
        assert 0 <= event.replayed <= 16
        assert event.cause


@pytest.mark.parametrize("schedule", ["stale1", "epochwise"])
def test_the_other_schedules_survive_losses_too(schedule, tiny, unbroken, differing):
    config = settings(tiny, "mlp", "ridge_epoch", game__schedule=schedule)
    game, expected = unbroken(config)
    weights, played, events = broken(config, {2: lambda game: kill("AdversaryActor")})
    assert played == expected
    assert differing(game.weights(), weights) == []
    assert events[0].players in (("mlp",), ("ridge_epoch",))


def test_an_adversary_that_hangs_is_replaced_after_its_deadline(tiny, unbroken, differing):
    config = settings(tiny, "mlp", runtime__deadline_s=10.0)
    game, expected = unbroken(config)
    weights, played, events = broken(config, {3: lambda game: hang("AdversaryActor")})
    assert played == expected
    assert differing(game.weights(), weights) == []
    assert [e.players for e in events] == [("mlp",)]
    assert "no answer for 10 s" in events[0].cause


def test_a_warm_spare_takes_the_place_of_a_lost_adversary_at_once(tiny, unbroken, differing):
    config = settings(tiny, "mlp", recovery__spares=1)
    game, expected = unbroken(config)
    in_its_place: list[list[psutil.Process]] = []

    def strike(game: RayGame) -> None:
        wait_until(lambda: len(processes("AdversaryActor")) == 2, "the spare does not come up")
        (victim,) = playing()
        in_its_place.append([p for p in processes("AdversaryActor") if p != victim])
        victim.kill()
        victim.wait(HANG_S)

    weights, played, events = broken(config, {3: strike, 5: lambda game: in_its_place.append(playing())})
    assert played == expected
    assert differing(game.weights(), weights) == []
    assert events, "the loss was told"
    spare, plays = in_its_place
    assert plays == spare, "the process that was there before"


def test_a_run_that_loses_more_than_it_may_ends_with_the_adversarys_name_and_the_round(tiny):
    config = settings(tiny, "mlp", recovery__max_failures=0)
    with pytest.raises(RuntimeError, match=r"lost in round \d+: adversary 'mlp': \w*Actor\w*Error.*max_failures = 0"):
        broken(config, {2: lambda game: kill("AdversaryActor")})


def test_a_run_that_loses_its_host_more_often_than_it_may_says_so(tiny):
    config = settings(tiny, "mlp", recovery__max_failures=0)
    with pytest.raises(RuntimeError, match=r"max_failures = 0"):
        broken(config, {2: lambda game: kill("GameHost")})


def test_nothing_is_left_of_lost_players(tiny):
    broken(settings(tiny, "mlp"), {2: lambda game: kill("AdversaryActor"), 3: lambda game: kill("GameHost")})
    until = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


# ----------------------------------------------------------------------------------------------------- snapshots, in process


@pytest.mark.parametrize("schedule", ["sync", "stale1", "epochwise"])
def test_a_game_restored_from_any_snapshot_goes_on_as_if_nothing_had_been(schedule, tiny, differing):
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


def test_taking_snapshots_changes_nothing(tiny, differing):
    config = tiny(epochs=2)
    plain, watched = play_in_process(config, threads=1), play_in_process(config, threads=1)
    while plain.round < plain.total_rounds:
        plain.play(1)
        watched.play(1)
        watched.snapshot()
    assert differing(plain.weights(), watched.weights()) == []


@pytest.fixture(autouse=True)
def awake() -> Iterator[None]:
    """Nobody stays suspended after a test."""
    yield
    for process in processes("AdversaryActor"):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                process.kill()

"""A running game, in this process or on Ray."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from cpgan_ray.common.process import available_cpus
from cpgan_ray.common.types import Event, Metrics, Outcome
from cpgan_ray.config import Config
from cpgan_ray.training.checkpoint import Snapshot
from cpgan_ray.training.game import Game, active_adversaries, play_in_process

CHUNK_S = 2.0
"""Approximate seconds of play between two reports to the driver."""


class GameSession(Protocol):
    """A running game, in any process."""

    total_rounds: int
    rounds_per_epoch: int
    events: list[Event]

    def play(self, rounds: int) -> Any: ...
    def get(self, handle: Any, /) -> list[Metrics]: ...
    def snapshot(self) -> Snapshot: ...
    def warned(self) -> bool: ...
    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]: ...
    def outcome(self) -> Outcome: ...


class LocalGame:
    """The game in this process, with the interface of `RayGame` (distributed/driver.py)."""

    def __init__(self, game: Game) -> None:
        self.game, self.total_rounds, self.rounds_per_epoch = game, game.total_rounds, game.rounds_per_epoch
        self.events: list[Event] = []

    def play(self, rounds: int) -> list[Metrics]:
        return self.game.play(rounds)

    def get(self, handle: list[Metrics], /) -> list[Metrics]:
        return handle

    def snapshot(self) -> Snapshot:
        return self.game.snapshot()

    def warned(self) -> bool:
        return False  # the players are in the driver's process, so no node can be lost separately

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.game.privatizer.sample(count)

    def outcome(self) -> Outcome:
        return self.game.privatizer.outcome()


def on_ray(config: Config) -> bool:
    """Whether the players are actors. With `auto`: if there are several adversaries, or the privatizer has several workers. With at
    most one adversary there is nothing to do in parallel."""
    several = len(active_adversaries(config)) > 1 or config.privatizer.num_workers > 1
    return config.runtime.backend == "ray" or (config.runtime.backend == "auto" and several)


@contextmanager
def open_session(config: Config, snapshot: Snapshot | None) -> Iterator[GameSession]:
    """The game on the backend of the configuration, continued from the snapshot if there is one. Its processes end with the
    block."""
    if on_ray(config):
        from cpgan_ray.distributed.driver import RayGame

        with RayGame(config, snapshot=snapshot) as game:
            yield game
    else:
        game = play_in_process(config, threads=config.runtime.threads or available_cpus(), keep=True)
        if snapshot is not None:
            game.restore(snapshot)
        yield LocalGame(game)

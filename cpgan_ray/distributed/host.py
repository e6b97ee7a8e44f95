"""The players as actors: the host that has the privatizer and the loop, and the crew of adversaries, of whom some may be lost."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.util.placement_group import PlacementGroup

from cpgan_ray.common.credentials import received
from cpgan_ray.common.types import Outcome, Played
from cpgan_ray.config import Config
from cpgan_ray.distributed.adversary_pool import OPEN_S, SUPPLY_S, Crew, supply
from cpgan_ray.distributed.resources import Bundle, means
from cpgan_ray.distributed.rpc import gather, share
from cpgan_ray.errors import LostError
from cpgan_ray.training.checkpoint import Snapshot
from cpgan_ray.training.game import Game
from cpgan_ray.training.players import PrivatizerWorker


class GameHost:
    """The central actor: the privatizer, the loop, and the adversaries' actors, which end with it.

    A plain class, built by `supply` and `open`.
    """

    calls_at_once = 1

    def supply(self, config: Config, sizes: Sequence[Bundle], group: PlacementGroup | None, environment: Mapping[str, str]) -> None:
        """The actors of all players, with the data on each one's node.

        group: whose bundles they have, this one the first; none: this process's own. environment: see `supply`.
        """
        received(environment)
        self.crew = Crew(config, sizes, group)
        supplied = self.crew.supply(self.crew.names)
        supply(config, environment)
        gather(supplied, deadline_s=SUPPLY_S)

    def open(self, snapshot: Snapshot | None = None) -> None:
        """The players themselves; snapshot: go on from there."""
        config, sizes = self.crew.config, self.crew.sizes
        opened = self.crew.open(self.crew.names)
        deadline_s = config.runtime.deadline_s
        self.game = Game(
            PrivatizerWorker(config, **means(config, sizes[0])),
            self.crew.seats,
            gather=lambda answers: gather(answers, deadline_s=deadline_s),
            share=share,
            mend=self.mend,
        )
        gather(opened, deadline_s=max(deadline_s, OPEN_S))
        if snapshot is not None:
            self.game.restore(snapshot)

    def mend(self, cause: LostError) -> None:
        assert self.game.kept is not None
        self.crew.mend(cause, round=self.game.round, kept=self.game.kept.round)

    def length(self) -> tuple[int, int]:
        """Rounds of the run, and of an epoch."""
        return self.game.total_rounds, self.game.rounds_per_epoch

    def round(self) -> int:
        """Rounds played."""
        return self.game.round

    def play(self, rounds: int) -> Played:
        """Some more rounds, and what was lost and mended meanwhile."""
        metrics = self.game.play(rounds)
        self.crew.in_a_row = 0
        events, self.crew.events = self.crew.events, []
        return Played(metrics, tuple(events))

    def snapshot(self) -> Snapshot:
        return self.game.snapshot()

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.game.privatizer.sample(count)

    def outcome(self) -> Outcome:
        return self.game.privatizer.outcome()

    def weights(self) -> dict[str, dict[str, Any]]:
        return self.game.weights()

    def workers_group(self) -> None:
        """There are none: see parallel.host.ParallelHost."""


@contextmanager
def host_here(config: Config, sizes: Sequence[Bundle]) -> Iterator[GameHost]:
    """The game's host in this process, and its adversaries as actors in this process's placement group; they end with the block."""
    host = GameHost()
    try:
        host.supply(config, sizes, None, {})
        host.open()
        yield host
    finally:
        host.crew.close()

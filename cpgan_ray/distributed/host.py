"""The host of a game: the actor with the privatizer, the training loop and the pool of adversaries."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.util.placement_group import PlacementGroup

from cpgan_ray.common.credentials import import_env
from cpgan_ray.common.types import Outcome, PlayedRounds
from cpgan_ray.config import Config
from cpgan_ray.distributed.adversary_pool import BUILD_TIMEOUT_S, PREPARE_TIMEOUT_S, AdversaryPool, prepare_data
from cpgan_ray.distributed.resources import Bundle, compute_kwargs
from cpgan_ray.distributed.rpc import gather, share
from cpgan_ray.errors import LostError
from cpgan_ray.training.checkpoint import Snapshot
from cpgan_ray.training.game import Game
from cpgan_ray.training.players import PrivatizerWorker


class GameHost:
    """The central actor: the privatizer, the training loop, and the adversaries' actors, which end with it.

    A plain class, initialised by `prepare_data` and `build`.
    """

    max_concurrency = 1

    def prepare_data(
        self, config: Config, sizes: Sequence[Bundle], group: PlacementGroup | None, environment: Mapping[str, str]
    ) -> None:
        """Starts the actors of all adversaries and prepares the data on all nodes.

        group: the placement group, with this actor in its first bundle; None: this process's own group. environment: see
        adversary_pool.prepare_data.
        """
        import_env(environment)
        self.pool = AdversaryPool(config, sizes, group)
        preparing = self.pool.prepare_data(self.pool.names)
        prepare_data(config, environment)
        gather(preparing, deadline_s=PREPARE_TIMEOUT_S)

    def build(self, snapshot: Snapshot | None = None) -> None:
        """Builds the players. snapshot: continue from it."""
        config, sizes = self.pool.config, self.pool.sizes
        building = self.pool.build(self.pool.names)
        deadline_s = config.runtime.reply_timeout_s
        self.game = Game(
            PrivatizerWorker(config, **compute_kwargs(config, sizes[0])),
            self.pool.handles,
            gather=lambda references: gather(references, deadline_s=deadline_s),
            share=share,
            replace_failed=self.replace_failed,
        )
        gather(building, deadline_s=max(deadline_s, BUILD_TIMEOUT_S))
        if snapshot is not None:
            self.game.restore(snapshot)

    def replace_failed(self, cause: LostError) -> None:
        assert self.game.last_snapshot is not None
        self.pool.replace_failed(cause, round=self.game.round, snapshot_round=self.game.last_snapshot.round)

    def length(self) -> tuple[int, int]:
        """Number of rounds of the run, and of an epoch."""
        return self.game.total_rounds, self.game.rounds_per_epoch

    def round(self) -> int:
        """Number of rounds played."""
        return self.game.round

    def play(self, rounds: int) -> PlayedRounds:
        """Plays up to `rounds` more rounds. Returns their metrics and the failures in the meantime."""
        metrics = self.game.play(rounds)
        self.pool.consecutive_failures = 0
        events, self.pool.events = self.pool.events, []
        return PlayedRounds(metrics, tuple(events))

    def snapshot(self) -> Snapshot:
        return self.game.snapshot()

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.game.privatizer.sample(count)

    def outcome(self) -> Outcome:
        return self.game.privatizer.outcome()

    def weights(self) -> dict[str, dict[str, Any]]:
        return self.game.weights()

    def workers_group(self) -> None:
        """None: only ParallelHost has workers."""


@contextmanager
def host_here(config: Config, sizes: Sequence[Bundle]) -> Iterator[GameHost]:
    """A host in this process, with adversaries as actors in this process's placement group. They end with the block."""
    host = GameHost()
    try:
        host.prepare_data(config, sizes, None, {})
        host.build()
        yield host
    finally:
        host.pool.close()

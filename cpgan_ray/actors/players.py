"""The players as actors: the host that has the privatizer and the loop, and the crew of adversaries, of whom some may be lost."""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup

from cpgan_ray.actors.answers import LOSSES, gather, one_line, share
from cpgan_ray.actors.places import Bundle, Room, attend, in_bundle, means, start
from cpgan_ray.checkpoint import Snapshot
from cpgan_ray.config import Config
from cpgan_ray.credentials import passed, received
from cpgan_ray.data import prepare
from cpgan_ray.errors import InputError, LostError
from cpgan_ray.game import Game, opponents
from cpgan_ray.messages import Event, Outcome, Played, Release
from cpgan_ray.workers import AdversaryWorker, PrivatizerWorker

PING_S = 10.0
"""How long an actor may take to say that it is there, in seconds."""

OPEN_S = 300.0
"""How long the players may take to be built, in seconds."""

SUPPLY_S = 6 * 3600.0
"""How long a node may take to fetch or to prepare the data, in seconds; one that goes meanwhile is noticed at once."""


class RaySeat:
    """An adversary's actor as the game's seat: each call returns an object reference at once."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def respond(self, release: Release) -> Any:
        return self.actor.respond.remote(release)

    def learn(self, release: Release) -> Any:
        return self.actor.learn.remote(release)

    def oppose(self, release: Release) -> Any:
        return self.actor.oppose.remote(release)

    def accumulate(self, release: Release) -> Any:
        return self.actor.accumulate.remote(release)

    def solve(self) -> Any:
        return self.actor.solve.remote()

    def score(self, release: Release) -> Any:
        return self.actor.score.remote(release)

    def weights(self) -> Any:
        return self.actor.weights.remote()

    def snapshot(self) -> Any:
        return self.actor.snapshot.remote()

    def restore(self, snapshot: bytes) -> Any:
        return self.actor.restore.remote(snapshot)


class AdversaryActor(AdversaryWorker):
    """An adversary that is built by `open`: what a constructor raises would reach the driver without its type."""

    def __init__(self) -> None:
        pass

    def supply(self, config: Config, environment: Mapping[str, str]) -> None:
        supply(config, environment)

    def open(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def ping(self) -> None:
        pass


def supply(config: Config, environment: Mapping[str, str]) -> None:
    """Have the players' data on this node, whoever asks first; environment: what may be needed to reach it (`credentials.passed`).

    Raises: InputError that names the node.
    """
    received(environment)
    try:
        prepare(config)
    except InputError as e:
        raise InputError(f"on node {socket.gethostname()}: {e}") from e


class Crew:
    """The adversaries' actors: who sits where, and who takes the place of one that is lost."""

    def __init__(self, config: Config, sizes: Sequence[Bundle], group: PlacementGroup | None) -> None:
        """sizes: of the privatizer, of each adversary, of each spare; group: whose bundles these are, or none: see `in_bundle`."""
        self.config, self.sizes, self.group = config, sizes, group
        self.names = opponents(config)
        self.bundles = {name: bundle for bundle, name in enumerate(self.names, start=1)}
        self.seats = {name: RaySeat(self.start(bundle)) for name, bundle in self.bundles.items()}
        self.spares = {bundle: self.start(bundle) for bundle in range(len(self.names) + 1, len(sizes))}
        self.failures = self.in_a_row = 0
        self.events: list[Event] = []

    def start(self, bundle: int) -> Any:
        return start(AdversaryActor, self.sizes[bundle], place=in_bundle(self.group, bundle))

    def supply(self, names: Sequence[str]) -> list[Any]:
        """Have the data on the nodes of adversaries; the references are for `gather`."""
        return [self.seats[name].actor.supply.remote(self.config, passed()) for name in names]

    def open(self, names: Sequence[str]) -> list[Any]:
        """Build adversaries in their actors; the references are for `gather`."""
        each = [(self.seats[name].actor, name, self.sizes[self.bundles[name]]) for name in names]
        return [actor.open.remote(name, self.config, overlap=True, **means(self.config, size)) for actor, name, size in each]

    def lost(self) -> dict[str, str]:
        """Who does not answer, and why: name -> cause."""
        pings = {name: seat.actor.ping.remote() for name, seat in self.seats.items()}
        patience_s = min(PING_S, self.config.runtime.deadline_s)
        ray.wait(list(pings.values()), num_returns=len(pings), timeout=patience_s)
        found = {}
        for name, ping in pings.items():
            try:
                ray.get(ping, timeout=0)
            except (GetTimeoutError, *LOSSES) as e:
                found[name] = f"no answer for {patience_s:g} s" if isinstance(e, GetTimeoutError) else one_line(e)
        return found

    def mend(self, cause: LostError, *, round: int, kept: int) -> None:
        """New actors in the seats of those that do not answer. `round`: where the game stood; `kept`: to where it goes back.

        Raises: RuntimeError that names them where too many have been lost; InputError where the cluster has no place for one in
        time; LostError where a replacement is lost at once.
        """
        recovery, started = self.config.recovery, time.perf_counter()
        gone = self.lost()
        self.failures, self.in_a_row = self.failures + 1, self.in_a_row + 1
        told = "; ".join(f"adversary {name!r}: {why}" for name, why in gone.items()) or str(cause)
        if self.failures > recovery.max_failures:
            raise RuntimeError(
                f"lost in round {round}: {told}; that is more than recovery.max_failures = {recovery.max_failures}"
            ) from cause
        if self.in_a_row > 1:
            time.sleep(min(60.0, recovery.backoff_s * 2 ** (self.in_a_row - 2)))
        for name in gone:
            self.replace(name)
        room = Room(self.sizes, option="recovery.wait_s", patience_s=recovery.wait_s)
        supplied = self.supply(list(gone))
        attend(supplied, self.group, room, deadline_s=SUPPLY_S)
        gather(supplied, deadline_s=PING_S)
        opened = self.open(list(gone))
        attend(opened, self.group, room, deadline_s=max(recovery.wait_s, self.config.runtime.deadline_s))
        gather(opened, deadline_s=PING_S)
        seconds = time.perf_counter() - started
        self.events.append(Event(round=round, replayed=round - kept, players=tuple(gone), cause=told, seconds=seconds))

    def replace(self, name: str) -> None:
        """A spare, if there is one, and a new spare in the place that becomes free; else a new actor in the same place."""
        seat, bundle = self.seats[name], self.bundles[name]
        ray.kill(seat.actor)
        fitting = [
            b for b in self.spares if all(self.sizes[b].get(kind, 0) >= amount for kind, amount in self.sizes[bundle].items())
        ]
        if fitting:
            seat.actor, self.bundles[name] = self.spares.pop(fitting[0]), fitting[0]
            self.spares[bundle] = self.start(bundle)
        else:
            seat.actor = self.start(bundle)

    def close(self) -> None:
        for actor in (*(seat.actor for seat in self.seats.values()), *self.spares.values()):
            ray.kill(actor)


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


def host_kind(config: Config) -> Any:
    """The class of the central actor: GameHost, or where the privatizer has several workers parallel.host.ParallelHost."""
    if config.privatizer.num_workers == 1:
        return GameHost
    from cpgan_ray.parallel.host import ParallelHost  # it imports Ray Train, which takes a second or two

    return ParallelHost


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

"""The same game on Ray: the central privatizer actor hosts it, each adversary is an actor, one placement group holds them all.

Only z, row numbers and grad_z travel in a round. Actors are not restarted by Ray: one that starts again from nothing would look
like privacy. The attacks of a tournament are tasks: they need nothing of each other.
"""

import io
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.state import state as ray_state
from ray.exceptions import GetTimeoutError, ObjectLostError, OwnerDiedError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cpgan_ray.checkpoint import Snapshot
from cpgan_ray.config import Config, RuntimeConfig
from cpgan_ray.credentials import passed, received
from cpgan_ray.data import prepare
from cpgan_ray.errors import InputError, LostError
from cpgan_ray.evaluation.tournament import Entry, Made, Material, make
from cpgan_ray.game import Game, opponents
from cpgan_ray.messages import Event, Metrics, Outcome, Played, Release
from cpgan_ray.process import available_cpus, pick_device, set_up_process
from cpgan_ray.workers import AdversaryWorker, PrivatizerWorker

INLINE_BYTES = 90_000
"""Ray sends arguments below 100 KB inside the call; a larger release goes to the object store once, for all adversaries."""

PLACEMENT_S = 60.0
"""How long the actors' places may take on a cluster that has room for them, in seconds."""

LOOK_S = 3.0
"""How long an answer may take before it is looked whether everybody has a place, in seconds."""

SAY_S = 30.0
"""How often it is said that a place is waited for, in seconds."""

WARNED_S = 10.0
"""How much may be lost with a node that is known to go, in seconds of play."""

KNOCK_S = 5.0
"""How long a cluster may take to answer at all, in seconds."""

LOSSES = (RayActorError, ObjectLostError, OwnerDiedError)
"""What Ray raises where a process, a node or an object is gone."""

PING_S = 10.0
"""How long an actor may take to say that it is there, in seconds."""

OPEN_S = 300.0
"""How long the players may take to be built, in seconds."""

SUPPLY_S = 6 * 3600.0
"""How long a node may take to fetch or to prepare the data, in seconds; one that goes meanwhile is noticed at once."""

END_S = 10.0
"""How long a host may take to end its workers, in seconds."""

LEAST_CPU = 0.001
"""What an actor that asks for nothing gets: a place must not be empty."""

Bundle = dict[str, float]

DESK: Bundle = {"memory": 1.0}
"""Place of a host that computes nothing: one byte, so that the workers and adversaries can have all CPUs."""


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


def share(release: Release) -> Any:
    """The release itself where it is small, else one reference to it."""
    return release if release.z.nbytes + release.batch.rows.nbytes < INLINE_BYTES else ray.put(release)


def gather(references: Sequence[Any], *, deadline_s: float) -> list[Any]:
    """The answers behind references, in one call.

    Raises: LostError where one takes longer than the deadline, or its actor, node or object is gone; what the actor raised,
    without Ray's wrapping.
    """
    try:
        return ray.get(list(references), timeout=deadline_s)
    except GetTimeoutError as e:
        raise LostError(f"an actor did not answer within {deadline_s:g} s (runtime.deadline_s)") from e
    except RayTaskError as e:
        raise e.cause from e
    except LOSSES as e:
        raise LostError(one_line(e)) from e


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


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
        """There are none: see parallel.ParallelHost."""


def host_kind(config: Config) -> Any:
    """The class of the central actor: GameHost, or where the privatizer has several workers parallel.ParallelHost."""
    if config.privatizer.num_workers == 1:
        return GameHost
    from cpgan_ray.parallel import ParallelHost  # it imports Ray Train, which takes a second or two

    return ParallelHost


def in_bundle(group: PlacementGroup | None, bundle: int) -> Any:
    """The place of a bundle; None: where this process's placement group has room."""
    return None if group is None else PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Nodes that are started, or joined, in the block have the address 127.0.0.1, and listen there alone.

    Without it their servers are open on every interface: on Linux Ray takes the machine's own address even where it is told
    127.0.0.1. Where it does not (macOS, Windows) is decided by this switch (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER).
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def connect(runtime: RuntimeConfig) -> None:
    """Join the cluster that was named, the one this job runs on, or start a local one, that only this machine can reach.

    Raises: InputError where nothing answers at the address.
    """
    if ray.is_initialized():
        return
    address = runtime.address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            knock(address)
            ray.init(address=address, **quiet)
        else:
            with on_loopback():
                ray.init(address="local", num_cpus=available_cpus(), include_dashboard=False, **quiet)
        quiet_stdout()
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init has put its own there
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, socket.gaierror) as e:
        raise InputError(f"no Ray cluster answers at {address!r}: start it, or leave --runtime.address out for a local one") from e


def quiet_stdout() -> None:
    """What Ray's daemons report goes to standard error: a job's last line on standard output is its result.

    Ray prints such reports ("a worker died ...") on standard output whatever `log_to_driver` is, some of them only as it leaves.
    """
    told = ray_worker.print_to_stdstream
    if not isinstance(told, partial):

        def print_on_stderr(data: dict[str, Any], **how: Any) -> None:
            told(data | {"is_err": True}, **how)

        ray_worker.print_to_stdstream = partial(print_on_stderr)


def knock(address: str) -> None:
    """Open and close a connection to `host:port`: Ray itself would try for minutes. Other forms of address are left to Ray.

    Raises: OSError where nothing answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def bundles(
    config: Config, names: Sequence[str], *, cluster: Mapping[str, float], nodes: Sequence[float] | None = None
) -> list[Bundle]:
    """What each actor needs, the privatizer's first, or those of its workers.

    CPUs that are not set are 1 each, or an equal share where the cluster has fewer CPUs than actors. nodes: CPUs of each node.

    Raises: InputError with the numbers where the sum does not fit the cluster.
    """
    total = cluster.get("CPU", 0.0)
    actors = config.privatizer.num_workers + len(names)
    sizes = shares(config, names, cpus=divisible([total] if nodes is None else nodes, actors))
    ensure_room(sizes, cluster, config.runtime)
    return sizes


def divisible(nodes: Sequence[float], actors: int) -> float:
    """How many of the nodes' CPUs can be divided equally among so many actors, none of which is on two nodes."""
    sizes = {cpus / n for cpus in nodes for n in range(1, actors + 1)}
    return actors * max((s for s in sizes if s and sum(int(cpus / s + 1e-9) for cpus in nodes) >= actors), default=0.0)


def shares(config: Config, names: Sequence[str], *, cpus: float) -> list[Bundle]:
    """What each actor needs, the privatizer's first, or those of its workers, where they have `cpus` CPUs between them."""
    r, workers = config.runtime, config.privatizer.num_workers
    fair = min(1.0, cpus / (len(names) + workers)) or 1.0  # none yet: it has still to grow
    own = [(a.cpus, a.gpus) if (a := config.adversaries.get(name)) else (None, None) for name in names]  # a spare has no settings
    wanted = [(r.privatizer_cpus, r.privatizer_gpus)] * workers
    wanted += [(r.adversary_cpus if c is None else c, r.adversary_gpus if g is None else g) for c, g in own]
    sizes = [{"CPU": fair if c is None else c, "GPU": g} for c, g in wanted]
    return [{kind: amount for kind, amount in s.items() if amount} or {"CPU": LEAST_CPU} for s in sizes]


def ensure_room(sizes: Sequence[Bundle], cluster: Mapping[str, float], runtime: RuntimeConfig) -> None:
    """Raises: InputError with the numbers where the actors together need more than the cluster has."""
    for kind in ("CPU", "GPU"):
        total, there = sum(s.get(kind, 0.0) for s in sizes), cluster.get(kind, 0.0)
        if total > there + 1e-6 and runtime.wait_s == 0:
            raise InputError(
                f"{len(sizes)} actors need {total:g} {kind}s, the cluster has {there:g}: lower "
                f"--runtime.adversary-{kind.lower()}s, leave adversaries out, or wait for a growing cluster with --runtime.wait-s"
            )


def reserve(sizes: list[Bundle], runtime: RuntimeConfig) -> PlacementGroup:
    """One placement group with a bundle per actor.

    Raises: InputError where the cluster has no room for it in time.
    """
    group = placement_group(sizes, strategy=runtime.placement)
    room = Room(sizes, option="runtime.wait_s", patience_s=max(runtime.wait_s, PLACEMENT_S))
    try:
        while not group.wait(1):
            room.lacks()
    except BaseException:
        remove_placement_group(group)
        raise
    return group


class Room:
    """Waiting for a cluster to have room: a line on standard error at once and then every half minute, but not for ever."""

    def __init__(self, sizes: Sequence[Bundle], *, option: str, patience_s: float) -> None:
        """option: the setting by which it waits so long."""
        self.sizes, self.option, self.patience_s = sizes, option, patience_s
        self.since: float | None = None
        self.said = -math.inf

    def lacks(self, *, for_ever: bool = False) -> None:
        """There is none at the moment.

        Raises: InputError with the numbers where there has been none for too long, unless somebody else takes care of that.
        """
        now = time.monotonic()
        self.since = self.since or now
        left = self.patience_s - (now - self.since)
        if left <= 0 and not for_ever:
            flag = "--" + self.option.replace("_", "-")
            raise InputError(
                f"no room for {self.patience_s:g} s: {self.shortage()}; add nodes, wait longer with {flag}, or ask for less "
                "(--runtime.placement, --runtime.adversary-cpus); a run that has a checkpoint goes on with --resume"
            )
        if now - self.said >= SAY_S:
            self.said = now
            told = f"waiting for room: {self.shortage()}; for up to {max(0.0, left):.0f} s ({self.option})"
            print(told, file=sys.stderr, flush=True)

    def shortage(self) -> str:
        """What is needed and what there is."""
        total, free = ray.cluster_resources(), ray.available_resources()
        kinds = [kind for kind in ("CPU", "GPU") if any(kind in size for size in self.sizes)]
        needed = " and ".join(f"{sum(size.get(kind, 0.0) for size in self.sizes):g} {kind}s" for kind in kinds)
        there = " and ".join(f"{total.get(kind, 0.0):g} {kind}s ({free.get(kind, 0.0):g} free)" for kind in kinds)
        return f"{len(self.sizes)} processes need {needed}, the cluster has {there}"


def waiting(sizes: Sequence[Bundle]) -> bool:
    """Whether a placement group of these bundles, whosoever, has no place: Ray Train does not tell which is its own."""
    found = [g for g in placement_group_table().values() if g["state"] in ("PENDING", "RESCHEDULING")]
    return any(list(g["bundles"].values()) == list(sizes) for g in found)


def attend(
    references: Sequence[Any],
    group: PlacementGroup | None,
    room: Room,
    *,
    deadline_s: float = math.inf,
    for_ever: bool = False,
    told: str | None = None,
    workers: Room | None = None,
) -> None:
    """Wait until all answers are there. Where a bundle of the group has no place, that is told, and the deadline begins anew.

    told: what is said of a long wait; workers: those of the privatizer, which are in a placement group of their own.

    Raises: LostError at the deadline; InputError where there is no room for too long, but not `for_ever` for those of the group.
    """
    said = time.monotonic()
    until = said + deadline_s
    while references and len(ray.wait(list(references), num_returns=len(references), timeout=LOOK_S)[0]) < len(references):
        if group is not None and placement_group_table(group)["state"] != "CREATED":
            room.lacks(for_ever=for_ever)
            until = time.monotonic() + deadline_s
        elif workers is not None and waiting(workers.sizes):
            workers.lacks()
            until = time.monotonic() + deadline_s
        elif time.monotonic() > until:
            raise LostError(f"an actor did not answer within {deadline_s:g} s")
        elif told is not None and time.monotonic() - said >= SAY_S:
            said = time.monotonic()
            print(told, file=sys.stderr, flush=True)


def start(kind: type, size: Bundle, *, place: Any = None, calls_at_once: int = 1) -> Any:
    """An actor of a plain class; `open` builds it. Without a place it goes where its creator's placement group has room."""
    options: dict[str, Any] = {"num_cpus": size.get("CPU", 0), "num_gpus": size.get("GPU", 0), "max_restarts": 0}
    options |= {"max_concurrency": calls_at_once} if calls_at_once > 1 else {}
    return ray.remote(kind).options(**options, scheduling_strategy=place).remote()


def means(config: Config, size: Bundle) -> dict[str, Any]:
    """How many torch threads an actor has, and how much of a GPU."""
    return {"threads": config.runtime.threads or max(1, int(size.get("CPU", 1))), "gpu_share": size.get("GPU", 0.0)}


def answer(started: Any, *, deadline_s: float | None = None) -> Any:
    """What is behind a reference; errors come without Ray's wrapping.

    Raises: LostError where the actor is gone, or has not answered by the deadline.
    """
    try:
        return ray.get(started, timeout=deadline_s)
    except RayTaskError as e:
        raise e.cause from e
    except (GetTimeoutError, *LOSSES) as e:
        raise LostError(one_line(e)) from e


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


class RayGame:
    """A game on a cluster, as its driver holds it. A context manager: leaving it ends the actors and frees their places.

    Where the host is lost, a new one goes on from the last snapshot that the driver has (`snapshot`), or from the beginning; the
    rounds that the driver knows already are played again and not told again.
    """

    def __init__(self, config: Config, *, snapshot: Snapshot | None = None) -> None:
        self.config, self.saved = config, snapshot
        self.failures, self.known = 0, snapshot.round if snapshot else 0
        self.events: list[Event] = []
        self.going: set[str] = set()
        self.warned_at = -math.inf
        connect(config.runtime)
        names = [*opponents(config), *["spare"] * config.recovery.spares]
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        self.sizes = bundles(config, names, cluster=ray.cluster_resources(), nodes=nodes)
        self.kind, workers = host_kind(config), config.privatizer.num_workers
        self.workers = self.sizes[:workers] if workers > 1 else []  # in places that Ray Train takes for them
        self.places = [DESK, *self.sizes[workers:]] if self.workers else self.sizes
        self.workers_group: PlacementGroup | None = None
        self.host: Any = None
        self.group = reserve(self.places, config.runtime)
        try:
            self.open()
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        self.host = start(self.kind, self.places[0], place=in_bundle(self.group, 0), calls_at_once=self.kind.calls_at_once)
        supplied = self.host.supply.remote(self.config, [self.sizes[0], *self.places[1:]], self.group, passed())
        told = "waiting for nodes that fetch or prepare the data"
        attend([supplied], self.group, self.room(), deadline_s=self.config.recovery.wait_s + SUPPLY_S, told=told)
        answer(supplied)
        opened = self.host.open.remote(self.saved)
        deadline_s = self.config.recovery.wait_s + OPEN_S
        attend([opened], self.group, self.room(), deadline_s=deadline_s, workers=self.room_of_workers())
        answer(opened)
        self.total_rounds, self.rounds_per_epoch = answer(self.host.length.remote())
        self.workers_group = answer(self.host.workers_group.remote())

    def room(self) -> Room:
        return Room(self.places, option="recovery.wait_s", patience_s=self.config.recovery.wait_s)

    def room_of_workers(self) -> Room | None:
        return Room(self.workers, option="recovery.wait_s", patience_s=self.config.recovery.wait_s) if self.workers else None

    def play(self, rounds: int) -> Any:
        """Start up to `rounds` more rounds; `get` waits for their metrics."""
        return self.host, self.host.play.remote(rounds), rounds

    def get(self, started: Any) -> list[Metrics]:
        """The metrics of rounds that were started; what was lost meanwhile is added to `events`."""
        while True:
            host, reference, rounds = started
            try:
                # where an adversary's place is missing the host gives up, if anybody
                attend([reference], self.group, self.room(), for_ever=True, workers=self.room_of_workers())
                played: Played = answer(reference)
                self.events += played.events
                if played.events:
                    self.workers_group = answer(host.workers_group.remote())
                fresh = [m for m in played.metrics if m["round"] >= self.known]
                if fresh:
                    self.known = int(fresh[-1]["round"]) + 1
                    return fresh
            except LostError as lost:
                if host is self.host:  # else another has taken its place already
                    self.reopen(lost)
            started = self.play(rounds)

    def warned(self) -> bool:
        """Whether a checkpoint is due since a node of the game is about to go: a VM that is pre-empted, a pod that is ended.

        Who plays there goes on until it goes; a checkpoint every few seconds is what there is to lose.
        """
        draining: dict[str, int] = ray_state.get_draining_nodes()
        if not draining:
            return False
        groups = [group for group in (self.group, self.workers_group) if group is not None]
        places = {node for group in groups for node in placement_group_table(group)["bundles_to_node_id"].values()}
        here = draining.keys() & {ray.get_runtime_context().get_node_id(), *places}
        for node in here - self.going:
            told = f"node {node[:12]} of this game is about to go: checkpoints every {WARNED_S:g} s until then"
            print(told, file=sys.stderr, flush=True)
        self.going |= here
        if not here or time.monotonic() - self.warned_at < WARNED_S:
            return False
        self.warned_at = time.monotonic()
        return True

    def reopen(self, lost: LostError) -> None:
        """Another host, which goes on from what the driver has.

        Raises: LostError where too many have been lost; InputError where the cluster has no place for it in time.
        """
        recovery, started = self.config.recovery, time.perf_counter()
        while True:
            self.failures += 1
            if self.failures > recovery.max_failures:
                raise LostError(f"{lost}; that is more than recovery.max_failures = {recovery.max_failures}") from lost
            ray.kill(self.host)
            self.free_workers()
            try:
                self.open()
                break
            except LostError as another:
                lost = another
                time.sleep(min(60.0, recovery.backoff_s * 2 ** (self.failures - 1)))
        back, seconds = self.saved.round if self.saved else 0, time.perf_counter() - started
        self.events.append(
            Event(round=self.known, replayed=self.known - back, players=("privatizer",), cause=str(lost), seconds=seconds)
        )

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """What the host answers, once it has played what the driver knows; a new host where it is lost."""
        while True:
            try:
                while (at := answer(self.host.round.remote())) < self.known:
                    answer(self.host.play.remote(self.known - at))
                return answer(question(self.host))
            except LostError as lost:
                self.reopen(lost)

    def snapshot(self) -> Snapshot:
        """The whole game, for a checkpoint; also what a new host would go on from."""
        self.saved = self.ask(lambda host: host.snapshot.remote())
        return self.saved

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.ask(lambda host: host.sample.remote(count))

    def outcome(self) -> Outcome:
        return self.ask(lambda host: host.outcome.remote())

    def weights(self) -> dict[str, dict[str, Any]]:
        return self.ask(lambda host: host.weights.remote())

    def free_workers(self) -> None:
        """End the privatizer's workers: their places outlive a host that is killed."""
        if self.workers_group is not None:
            remove_placement_group(self.workers_group)
            self.workers_group = None

    def close(self) -> None:
        """End the actors and free their places."""
        if self.workers and self.host is not None:
            with suppress(LostError):
                answer(self.host.end.remote(), deadline_s=END_S)
            self.free_workers()
        remove_placement_group(self.group)

    def __enter__(self) -> "RayGame":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attack_task(entry: Entry, material: Material, *, runtime: RuntimeConfig) -> Made:
    """One attack in a Ray worker of its own; what it fitted comes back on the CPU."""
    cpus, gpus = material.config.cpus, material.config.gpus
    set_up_process(threads=runtime.threads or max(1, int(cpus)), gpu_share=gpus)
    device = pick_device(runtime.device)
    made = make(entry, material, device=device)
    if device.type == "cpu":
        return made
    torch.save(made, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=False)  # our own bytes of a moment ago


def fit_on_ray(todo: Sequence[Entry], material: Material, *, runtime: RuntimeConfig, done: Callable[[Made], None]) -> list[Made]:
    """All attacks as Ray tasks, each with its own resources, as many at once as the cluster has room for; in the order of `todo`.

    Raises: InputError with the numbers where the cluster has no room for one; what an attack raised, without Ray's wrapping.
    """
    connect(runtime)
    config = material.config
    size: Bundle = {"CPU": config.cpus, "GPU": config.gpus}
    room = Room([size], option="runtime.wait_s", patience_s=runtime.wait_s)
    while lacking := [kind for kind, wanted in size.items() if wanted > ray.cluster_resources().get(kind, 0.0)]:
        if runtime.wait_s == 0:
            there, flag = ray.cluster_resources().get(lacking[0], 0.0), f"--attacks.{lacking[0].lower()}s"
            raise InputError(f"an attack needs {size[lacking[0]]:g} {lacking[0]}s, the cluster has {there:g}: lower {flag}")
        room.lacks()
        time.sleep(1)
    shared = ray.put(material)
    task: Any = ray.remote(attack_task).options(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=2)  # pyright: ignore
    references = [task.remote(entry, shared, runtime=runtime) for entry in todo]
    waiting, made = list(references), {}
    try:
        while waiting:
            (ready, *_), waiting = ray.wait(waiting, num_returns=1)
            made[ready] = ray.get(ready)
            done(made[ready])
        return [made[reference] for reference in references]
    except RayTaskError as e:
        raise e.cause from e
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def equipped(environment: Mapping[str, str], work: Callable[..., None], arguments: Sequence[Any]) -> None:
    """`work(*arguments)`, with what may be needed to reach the data."""
    received(environment)
    work(*arguments)


def in_tasks(
    work: Callable[..., None],
    todo: Sequence[Sequence[Any]],
    *,
    runtime: RuntimeConfig,
    cpus: float,
    gpus: float,
    done: Callable[[int], None],
) -> None:
    """`work(*arguments)` for each of `todo` as Ray tasks, as many at once as the cluster has room for. `done` hears the number of
    each that has ended; one whose process dies is done again.

    Raises: InputError with the numbers where the cluster has no room for one; what a task raised, without Ray's wrapping.
    """
    ensure_room([{"CPU": cpus, "GPU": gpus}], ray.cluster_resources(), runtime)
    task: Any = ray.remote(equipped).options(num_cpus=cpus, num_gpus=gpus, max_retries=2)  # pyright: ignore
    numbers = {task.remote(passed(), work, arguments): i for i, arguments in enumerate(todo)}
    waiting = list(numbers)
    try:
        while waiting:
            (ready, *_), waiting = ray.wait(waiting, num_returns=1)
            ray.get(ready)
            done(numbers[ready])
    except RayTaskError as e:
        raise e.cause from e
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)

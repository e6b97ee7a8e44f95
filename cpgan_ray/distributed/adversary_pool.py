"""The adversaries as Ray actors: the actor, its handle, and the pool that starts and replaces them."""

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup

from cpgan_ray.common.credentials import export_env, import_env
from cpgan_ray.common.logs import configure_like_job
from cpgan_ray.common.types import Event, Release
from cpgan_ray.config import Config
from cpgan_ray.data import prepare
from cpgan_ray.distributed.resources import Bundle, CapacityWaiter, compute_kwargs, in_bundle, start, wait_for_replies
from cpgan_ray.distributed.rpc import LOSSES, gather, one_line
from cpgan_ray.errors import InputError, LostError
from cpgan_ray.training.game import active_adversaries
from cpgan_ray.training.players import AdversaryWorker

PING_TIMEOUT_S = 10.0
"""How long an actor may take to say that it is there, in seconds."""
BUILD_TIMEOUT_S = 300.0
"""How long the players may take to be built, in seconds."""
PREPARE_TIMEOUT_S = 6 * 3600.0
"""How long a node may take to fetch or to prepare the data, in seconds; one that goes meanwhile is noticed at once."""


class RayAdversaryHandle:
    """An adversary's actor as the game's handle: each call returns an object reference at once."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def respond(self, release: Release) -> Any:
        return self.actor.respond.remote(release)

    def learn(self, release: Release) -> Any:
        return self.actor.learn.remote(release)

    def respond_without_learning(self, release: Release) -> Any:
        return self.actor.respond_without_learning.remote(release)

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

    def prepare_data(self, config: Config, environment: Mapping[str, str]) -> None:
        prepare_data(config, environment)

    def build(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def ping(self) -> None:
        pass


def prepare_data(config: Config, environment: Mapping[str, str]) -> None:
    """Have the players' data on this node, whoever asks first; environment: what may be needed to reach it (`credentials.passed`).

    Raises: InputError that names the node.
    """
    import_env(environment)
    configure_like_job()
    try:
        prepare(config)
    except InputError as e:
        raise InputError(f"on node {socket.gethostname()}: {e}") from e


class AdversaryPool:
    """The adversaries' actors: who sits where, and who takes the place of one that is lost."""

    def __init__(self, config: Config, sizes: Sequence[Bundle], group: PlacementGroup | None) -> None:
        """sizes: of the privatizer, of each adversary, of each spare; group: whose bundles these are, or none: see `in_bundle`."""
        self.config, self.sizes, self.group = config, sizes, group
        self.names = active_adversaries(config)
        self.bundles = {name: bundle for bundle, name in enumerate(self.names, start=1)}
        self.handles = {name: RayAdversaryHandle(self.start(bundle)) for name, bundle in self.bundles.items()}
        self.spares = {bundle: self.start(bundle) for bundle in range(len(self.names) + 1, len(sizes))}
        self.failures = self.in_a_row = 0
        self.events: list[Event] = []

    def start(self, bundle: int) -> Any:
        return start(AdversaryActor, self.sizes[bundle], place=in_bundle(self.group, bundle))

    def prepare_data(self, names: Sequence[str]) -> list[Any]:
        """Have the data on the nodes of adversaries; the references are for `gather`."""
        return [self.handles[name].actor.prepare_data.remote(self.config, export_env()) for name in names]

    def build(self, names: Sequence[str]) -> list[Any]:
        """Build adversaries in their actors; the references are for `gather`."""
        each = [(self.handles[name].actor, name, self.sizes[self.bundles[name]]) for name in names]
        return [
            actor.build.remote(name, self.config, overlap=True, **compute_kwargs(self.config, size)) for actor, name, size in each
        ]

    def lost(self) -> dict[str, str]:
        """Who does not answer, and why: name -> cause."""
        pings = {name: handle.actor.ping.remote() for name, handle in self.handles.items()}
        patience_s = min(PING_TIMEOUT_S, self.config.runtime.reply_timeout_s)
        ray.wait(list(pings.values()), num_returns=len(pings), timeout=patience_s)
        found = {}
        for name, ping in pings.items():
            try:
                ray.get(ping, timeout=0)
            except (GetTimeoutError, *LOSSES) as e:
                found[name] = f"no answer for {patience_s:g} s" if isinstance(e, GetTimeoutError) else one_line(e)
        return found

    def replace_failed(self, cause: LostError, *, round: int, kept: int) -> None:
        """New actors in the handles of those that do not answer. `round`: where the game stood; `kept`: to where it goes back.

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
        waiter = CapacityWaiter(self.sizes, option="recovery.replacement_timeout_s", patience_s=recovery.replacement_timeout_s)
        preparing = self.prepare_data(list(gone))
        wait_for_replies(preparing, self.group, waiter, deadline_s=PREPARE_TIMEOUT_S)
        gather(preparing, deadline_s=PING_TIMEOUT_S)
        building = self.build(list(gone))
        wait_for_replies(
            building, self.group, waiter, deadline_s=max(recovery.replacement_timeout_s, self.config.runtime.reply_timeout_s)
        )
        gather(building, deadline_s=PING_TIMEOUT_S)
        seconds = time.perf_counter() - started
        self.events.append(Event(round=round, replayed=round - kept, players=tuple(gone), cause=told, seconds=seconds))

    def replace(self, name: str) -> None:
        """A spare, if there is one, and a new spare in the place that becomes free; else a new actor in the same place."""
        handle, bundle = self.handles[name], self.bundles[name]
        ray.kill(handle.actor)
        fitting = [
            b for b in self.spares if all(self.sizes[b].get(kind, 0) >= amount for kind, amount in self.sizes[bundle].items())
        ]
        if fitting:
            handle.actor, self.bundles[name] = self.spares.pop(fitting[0]), fitting[0]
            self.spares[bundle] = self.start(bundle)
        else:
            handle.actor = self.start(bundle)

    def close(self) -> None:
        for actor in (*(handle.actor for handle in self.handles.values()), *self.spares.values()):
            ray.kill(actor)

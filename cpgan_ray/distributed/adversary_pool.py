"""The adversaries as Ray actors: the actor, its handle, and the pool that starts and replaces actors."""

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
from cpgan_ray.distributed.resources import Bundle, CapacityWaiter, compute_kwargs, in_bundle, start_actor, wait_for_replies
from cpgan_ray.distributed.rpc import LOSSES, gather, one_line
from cpgan_ray.errors import InputError, LostError
from cpgan_ray.training.game import active_adversaries
from cpgan_ray.training.players import AdversaryWorker

PING_TIMEOUT_S = 10.0
"""How long an actor may take to respond to a ping."""
BUILD_TIMEOUT_S = 300.0
"""How long the players may take to be built."""
PREPARE_TIMEOUT_S = 6 * 3600.0
"""How long a node may take to fetch or prepare the data. The loss of a node is noticed at once."""


class RayAdversaryHandle:
    """The game's handle of an adversary's actor: each call returns an object reference at once."""

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
    """An adversary that `build` constructs: an error in the actor's constructor would reach the driver without its type."""

    def __init__(self) -> None:
        pass

    def prepare_data(self, config: Config, environment: Mapping[str, str]) -> None:
        prepare_data(config, environment)

    def build(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def ping(self) -> None:
        pass


def prepare_data(config: Config, environment: Mapping[str, str]) -> None:
    """Prepares the players' data on this node, if no other process has. environment: variables to reach it, from `export_env`.

    Raises: InputError with the name of the node.
    """
    import_env(environment)
    configure_like_job()
    try:
        prepare(config)
    except InputError as e:
        raise InputError(f"on node {socket.gethostname()}: {e}") from e


class AdversaryPool:
    """The adversaries' actors, their bundles in the placement group, and their replacements."""

    def __init__(self, config: Config, sizes: Sequence[Bundle], group: PlacementGroup | None) -> None:
        """sizes: resources of the privatizer, of each adversary, of each spare. group: the placement group; None: see
        `in_bundle`."""
        self.config, self.sizes, self.group = config, sizes, group
        self.names = active_adversaries(config)
        self.bundles = {name: bundle for bundle, name in enumerate(self.names, start=1)}
        self.handles = {name: RayAdversaryHandle(self.start(bundle)) for name, bundle in self.bundles.items()}
        self.spares = {bundle: self.start(bundle) for bundle in range(len(self.names) + 1, len(sizes))}
        self.unbuilt: set[str] = set()  # adversaries whose replacement is not an adversary yet, although it responds
        self.failures = self.consecutive_failures = 0
        self.events: list[Event] = []

    def start(self, bundle: int) -> Any:
        return start_actor(AdversaryActor, self.sizes[bundle], scheduling=in_bundle(self.group, bundle))

    def prepare_data(self, names: Sequence[str]) -> list[Any]:
        """Starts preparing the data on the nodes of adversaries. Returns references for `gather`."""
        return [self.handles[name].actor.prepare_data.remote(self.config, export_env()) for name in names]

    def build(self, names: Sequence[str]) -> list[Any]:
        """Starts building adversaries in their actors. Returns references for `gather`."""
        sizes = {name: self.sizes[self.bundles[name]] for name in names}
        return [
            self.handles[name].actor.build.remote(name, self.config, overlap=True, **compute_kwargs(self.config, size))
            for name, size in sizes.items()
        ]

    def failed_adversaries(self) -> dict[str, str]:
        """Name of each adversary that does not respond -> cause."""
        pings = {name: handle.actor.ping.remote() for name, handle in self.handles.items()}
        timeout_s = min(PING_TIMEOUT_S, self.config.runtime.reply_timeout_s)
        ray.wait(list(pings.values()), num_returns=len(pings), timeout=timeout_s)
        causes = {}
        for name, ping in pings.items():
            try:
                ray.get(ping, timeout=0)
            except (GetTimeoutError, *LOSSES) as e:
                causes[name] = f"no response for {timeout_s:g} s" if isinstance(e, GetTimeoutError) else one_line(e)
        return causes

    def replace_failed(self, cause: LostError, *, round: int, snapshot_round: int) -> None:
        """Replaces the actors that do not respond. round: the current round; snapshot_round: the round to which the game returns.

        Raises: RuntimeError with their names after too many failures; InputError if the cluster has no free resources for one in
        time; LostError if a replacement fails at once.
        """
        recovery, started = self.config.recovery, time.perf_counter()
        failed = self.failed_adversaries()
        self.failures, self.consecutive_failures = self.failures + 1, self.consecutive_failures + 1
        causes = "; ".join(f"adversary {name!r}: {why}" for name, why in failed.items()) or str(cause)
        if self.failures > recovery.max_failures:
            raise RuntimeError(
                f"lost in round {round}: {causes}; that is more than recovery.max_failures = {recovery.max_failures}"
            ) from cause
        if self.consecutive_failures > 1:
            time.sleep(min(60.0, recovery.backoff_s * 2 ** (self.consecutive_failures - 2)))
        for name in failed:
            self.replace(name)
        waiter = CapacityWaiter(self.sizes, option="recovery.replacement_timeout_s", timeout_s=recovery.replacement_timeout_s)
        names = [name for name in self.names if name in self.unbuilt]  # also of an earlier attempt that another loss has ended
        preparing = self.prepare_data(names)
        wait_for_replies(preparing, self.group, waiter, deadline_s=PREPARE_TIMEOUT_S)
        gather(preparing, deadline_s=PING_TIMEOUT_S)
        building = self.build(names)
        wait_for_replies(
            building, self.group, waiter, deadline_s=max(recovery.replacement_timeout_s, self.config.runtime.reply_timeout_s)
        )
        gather(building, deadline_s=PING_TIMEOUT_S)
        self.unbuilt.clear()
        seconds = time.perf_counter() - started
        self.events.append(Event(round=round, replayed=round - snapshot_round, players=tuple(names), cause=causes, seconds=seconds))

    def replace(self, name: str) -> None:
        """Uses a spare if there is one, and starts a new spare in the freed bundle; otherwise starts a new actor in the same
        bundle."""
        handle, bundle = self.handles[name], self.bundles[name]
        self.unbuilt.add(name)
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

"""A game as its driver holds it: it places the players, asks for rounds, and starts another host where one is lost."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import ray
from ray._private.state import state as ray_state
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from cpgan_ray.common.credentials import export_env
from cpgan_ray.common.types import Event, Metrics, Outcome, PlayedRounds
from cpgan_ray.config import Config
from cpgan_ray.distributed.adversary_pool import BUILD_TIMEOUT_S, PREPARE_TIMEOUT_S
from cpgan_ray.distributed.cluster import connect
from cpgan_ray.distributed.host import GameHost
from cpgan_ray.distributed.resources import HOST_ONLY_BUNDLE, CapacityWaiter, bundles, in_bundle, reserve, start, wait_for_replies
from cpgan_ray.distributed.rpc import get_result
from cpgan_ray.errors import LostError
from cpgan_ray.training.checkpoint import Snapshot
from cpgan_ray.training.game import active_adversaries

logger = logging.getLogger(__name__)

WARNED_S = 10.0
"""How much may be lost with a node that is known to go, in seconds of play."""

END_S = 10.0
"""How long a host may take to end its workers, in seconds."""


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
        names = [*active_adversaries(config), *["spare"] * config.recovery.num_spares]
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        self.sizes = bundles(config, names, cluster=ray.cluster_resources(), nodes=nodes)
        self.kind, workers = host_kind(config), config.privatizer.num_workers
        self.workers = self.sizes[:workers] if workers > 1 else []  # in places that Ray Train takes for them
        self.places = [HOST_ONLY_BUNDLE, *self.sizes[workers:]] if self.workers else self.sizes
        self.workers_group: PlacementGroup | None = None
        self.host: Any = None
        self.group = reserve(self.places, config.runtime)
        try:
            self.build()
        except BaseException:
            self.close()
            raise

    def build(self) -> None:
        self.host = start(self.kind, self.places[0], place=in_bundle(self.group, 0), calls_at_once=self.kind.calls_at_once)
        preparing = self.host.prepare_data.remote(self.config, [self.sizes[0], *self.places[1:]], self.group, export_env())
        told = "waiting for nodes that fetch or prepare the data"
        wait_for_replies(
            [preparing],
            self.group,
            self.waiter(),
            deadline_s=self.config.recovery.replacement_timeout_s + PREPARE_TIMEOUT_S,
            told=told,
        )
        get_result(preparing)
        building = self.host.build.remote(self.saved)
        deadline_s = self.config.recovery.replacement_timeout_s + BUILD_TIMEOUT_S
        wait_for_replies([building], self.group, self.waiter(), deadline_s=deadline_s, workers=self.workers_waiter())
        get_result(building)
        self.total_rounds, self.rounds_per_epoch = get_result(self.host.length.remote())
        self.workers_group = get_result(self.host.workers_group.remote())

    def waiter(self) -> CapacityWaiter:
        return CapacityWaiter(
            self.places, option="recovery.replacement_timeout_s", patience_s=self.config.recovery.replacement_timeout_s
        )

    def workers_waiter(self) -> CapacityWaiter | None:
        return (
            CapacityWaiter(
                self.workers, option="recovery.replacement_timeout_s", patience_s=self.config.recovery.replacement_timeout_s
            )
            if self.workers
            else None
        )

    def play(self, rounds: int) -> Any:
        """Start up to `rounds` more rounds; `get` waits for their metrics."""
        return self.host, self.host.play.remote(rounds), rounds

    def get(self, started: Any) -> list[Metrics]:
        """The metrics of rounds that were started; what was lost meanwhile is added to `events`."""
        while True:
            host, reference, rounds = started
            try:
                # where an adversary's place is missing the host gives up, if anybody
                wait_for_replies([reference], self.group, self.waiter(), for_ever=True, workers=self.workers_waiter())
                played: PlayedRounds = get_result(reference)
                self.events += played.events
                if played.events:
                    self.workers_group = get_result(host.workers_group.remote())
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
            logger.warning(told)
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
                self.build()
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
                while (at := get_result(self.host.round.remote())) < self.known:
                    get_result(self.host.play.remote(self.known - at))
                return get_result(question(self.host))
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
                get_result(self.host.end.remote(), deadline_s=END_S)
            self.free_workers()
        remove_placement_group(self.group)

    def __enter__(self) -> "RayGame":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def host_kind(config: Config) -> Any:
    """The class of the central actor: GameHost, or where the privatizer has several workers parallel.host.ParallelHost."""
    if config.privatizer.num_workers == 1:
        return GameHost
    from cpgan_ray.distributed.ddp.host import ParallelHost  # it imports Ray Train, which takes a second or two

    return ParallelHost

"""The driver's side of a game: it places the players, requests rounds, and replaces a lost host."""

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
from cpgan_ray.distributed.resources import (
    HOST_ONLY_BUNDLE,
    CapacityWaiter,
    bundles,
    in_bundle,
    reserve,
    start_actor,
    wait_for_replies,
)
from cpgan_ray.distributed.rpc import get_result
from cpgan_ray.errors import LostError
from cpgan_ray.training.checkpoint import Snapshot
from cpgan_ray.training.game import active_adversaries

logger = logging.getLogger(__name__)

DRAIN_CHECKPOINT_S = 10.0
"""Interval of checkpoints after the end of a node was announced: so much play may be lost."""

END_TIMEOUT_S = 10.0
"""How long a host may take to end its workers."""


class RayGame:
    """A game on a cluster, as seen by its driver. A context manager: leaving it ends the actors and frees their resources.

    If the host is lost, a new one continues from the driver's last snapshot (`snapshot`) or from the beginning. Rounds that the
    driver has already received are played again but not returned again.
    """

    def __init__(self, config: Config, *, snapshot: Snapshot | None = None) -> None:
        self.config, self.last_snapshot = config, snapshot
        self.failures, self.received_rounds = 0, snapshot.round if snapshot else 0
        self.events: list[Event] = []
        self.draining: set[str] = set()
        self.drain_checkpoint_at = -math.inf
        connect(config.runtime)
        names = [*active_adversaries(config), *["spare"] * config.recovery.num_spares]
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        self.sizes = bundles(config, names, cluster=ray.cluster_resources(), nodes=nodes)
        self.host_class, workers = host_class(config), config.privatizer.num_workers
        self.workers = self.sizes[:workers] if workers > 1 else []  # Ray Train reserves their resources
        self.bundles = [HOST_ONLY_BUNDLE, *self.sizes[workers:]] if self.workers else self.sizes
        self.workers_group: PlacementGroup | None = None
        self.host: Any = None
        self.group = reserve(self.bundles, config.runtime)
        try:
            self.build()
        except BaseException:
            self.close()
            raise

    def build(self) -> None:
        self.host = start_actor(
            self.host_class,
            self.bundles[0],
            scheduling=in_bundle(self.group, 0),
            max_concurrency=self.host_class.max_concurrency,
        )
        preparing = self.host.prepare_data.remote(self.config, [self.sizes[0], *self.bundles[1:]], self.group, export_env())
        wait_for_replies(
            [preparing],
            self.group,
            self.waiter(),
            deadline_s=self.config.recovery.replacement_timeout_s + PREPARE_TIMEOUT_S,
            wait_message="waiting for nodes that fetch or prepare the data",
        )
        get_result(preparing)
        building = self.host.build.remote(self.last_snapshot)
        deadline_s = self.config.recovery.replacement_timeout_s + BUILD_TIMEOUT_S
        wait_for_replies([building], self.group, self.waiter(), deadline_s=deadline_s, workers=self.workers_waiter())
        get_result(building)
        self.total_rounds, self.rounds_per_epoch = get_result(self.host.length.remote())
        self.workers_group = get_result(self.host.workers_group.remote())

    def waiter(self) -> CapacityWaiter:
        return CapacityWaiter(
            self.bundles, option="recovery.replacement_timeout_s", timeout_s=self.config.recovery.replacement_timeout_s
        )

    def workers_waiter(self) -> CapacityWaiter | None:
        return (
            CapacityWaiter(
                self.workers, option="recovery.replacement_timeout_s", timeout_s=self.config.recovery.replacement_timeout_s
            )
            if self.workers
            else None
        )

    def play(self, rounds: int) -> Any:
        """Starts up to `rounds` more rounds; `get` waits for their metrics."""
        return self.host, self.host.play.remote(rounds), rounds

    def get(self, started: Any) -> list[Metrics]:
        """Waits for started rounds and returns their metrics; failures in the meantime are added to `events`."""
        while True:
            host, reference, rounds = started
            try:
                # if the resources of an adversary are missing, the host's own timeout applies
                wait_for_replies([reference], self.group, self.waiter(), no_timeout=True, workers=self.workers_waiter())
                played: PlayedRounds = get_result(reference)
                self.events += played.events
                if played.events:
                    self.workers_group = get_result(host.workers_group.remote())
                fresh = [m for m in played.metrics if m["round"] >= self.received_rounds]
                if fresh:
                    self.received_rounds = int(fresh[-1]["round"]) + 1
                    return fresh
            except LostError as lost:
                if host is self.host:  # otherwise the host has already been replaced
                    self.replace_host(lost)
            started = self.play(rounds)

    def warned(self) -> bool:
        """Whether a checkpoint is due because a node of the game will end soon, such as a pre-empted VM or a deleted pod.

        The players on the node continue until it ends; a checkpoint every DRAIN_CHECKPOINT_S limits what is lost.
        """
        draining: dict[str, int] = ray_state.get_draining_nodes()
        if not draining:
            return False
        groups = [group for group in (self.group, self.workers_group) if group is not None]
        nodes = {node for group in groups for node in placement_group_table(group)["bundles_to_node_id"].values()}
        affected = draining.keys() & {ray.get_runtime_context().get_node_id(), *nodes}
        for node in affected - self.draining:
            logger.warning(f"node {node[:12]} of this game will end soon: checkpoints every {DRAIN_CHECKPOINT_S:g} s until then")
        self.draining |= affected
        if not affected or time.monotonic() - self.drain_checkpoint_at < DRAIN_CHECKPOINT_S:
            return False
        self.drain_checkpoint_at = time.monotonic()
        return True

    def replace_host(self, lost: LostError) -> None:
        """Starts another host, which continues from the driver's last snapshot.

        Raises: LostError after too many failures; InputError if the cluster has no free resources for it in time.
        """
        recovery, started = self.config.recovery, time.perf_counter()
        while True:
            self.failures += 1
            if self.failures > recovery.max_failures:
                raise LostError(f"{lost}; that is more than recovery.max_failures = {recovery.max_failures}") from lost
            ray.kill(self.host)
            self.remove_workers()
            try:
                self.build()
                break
            except LostError as next_loss:
                lost = next_loss
                time.sleep(min(60.0, recovery.backoff_s * 2 ** (self.failures - 1)))
        resumed_at, seconds = self.last_snapshot.round if self.last_snapshot else 0, time.perf_counter() - started
        replayed = self.received_rounds - resumed_at
        self.events.append(
            Event(round=self.received_rounds, replayed=replayed, players=("privatizer",), cause=str(lost), seconds=seconds)
        )

    def call_host(self, call: Callable[[Any], Any]) -> Any:
        """The result of a call of the host, after it has played all rounds that the driver has received. Replaces a lost host."""
        while True:
            try:
                while (round := get_result(self.host.round.remote())) < self.received_rounds:
                    get_result(self.host.play.remote(self.received_rounds - round))
                return get_result(call(self.host))
            except LostError as lost:
                self.replace_host(lost)

    def snapshot(self) -> Snapshot:
        """The state of the whole game, for a checkpoint; a new host would continue from it."""
        self.last_snapshot = self.call_host(lambda host: host.snapshot.remote())
        return self.last_snapshot

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.call_host(lambda host: host.sample.remote(count))

    def outcome(self) -> Outcome:
        return self.call_host(lambda host: host.outcome.remote())

    def weights(self) -> dict[str, dict[str, Any]]:
        return self.call_host(lambda host: host.weights.remote())

    def remove_workers(self) -> None:
        """Ends the privatizer's workers: their placement group outlives a killed host."""
        if self.workers_group is not None:
            remove_placement_group(self.workers_group)
            self.workers_group = None

    def close(self) -> None:
        """Ends the actors and frees their resources."""
        if self.workers and self.host is not None:
            with suppress(LostError):
                get_result(self.host.end.remote(), deadline_s=END_TIMEOUT_S)
            self.remove_workers()
        remove_placement_group(self.group)

    def __enter__(self) -> "RayGame":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def host_class(config: Config) -> Any:
    """The class of the central actor: GameHost, or ParallelHost if the privatizer has several workers."""
    if config.privatizer.num_workers == 1:
        return GameHost
    from cpgan_ray.distributed.ddp.host import ParallelHost  # it imports Ray Train, which takes 1 to 2 s

    return ParallelHost

"""Places of actors: how much each needs, one placement group for all, and waiting for waiter."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cpgan_ray.config import Config, RuntimeConfig
from cpgan_ray.errors import InputError, LostError

logger = logging.getLogger(__name__)

Bundle = dict[str, float]

HOST_ONLY_BUNDLE: Bundle = {"memory": 1.0}
"""Place of a host that computes nothing: one byte, so that the workers and adversaries can have all CPUs."""

MIN_CPU = 0.001
"""What an actor that asks for nothing gets: a place must not be empty."""

PLACEMENT_S = 60.0
"""How long the actors' places may take on a cluster that has room for them, in seconds."""

LACKING = ("NO_RESOURCES", "INFEASIBLE")
"""What Ray says of a placement group for which there is no waiter, `scheduling_state` in its table; others are being placed."""

POLL_EVERY_S = 3.0
"""How long an answer may take before it is looked whether everybody has a place, in seconds."""

LOG_EVERY_S = 30.0
"""How often it is said that a place is waited for, in seconds."""


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
    return [{kind: amount for kind, amount in s.items() if amount} or {"CPU": MIN_CPU} for s in sizes]


def ensure_room(sizes: Sequence[Bundle], cluster: Mapping[str, float], runtime: RuntimeConfig) -> None:
    """Raises: InputError with the numbers where the actors together need more than the cluster has."""
    for kind in ("CPU", "GPU"):
        total, there = sum(s.get(kind, 0.0) for s in sizes), cluster.get(kind, 0.0)
        if total > there + 1e-6 and runtime.startup_timeout_s == 0:
            raise InputError(
                f"{len(sizes)} actors need {total:g} {kind}s, the cluster has {there:g}: lower "
                f"--runtime.adversary-{kind.lower()}s, leave adversaries out, or wait for a growing cluster with "
                "--runtime.startup-timeout-s"
            )


def reserve(sizes: list[Bundle], runtime: RuntimeConfig) -> PlacementGroup:
    """One placement group with a bundle per actor.

    Raises: InputError where the cluster has no room for it in time.
    """
    group = placement_group(sizes, strategy=runtime.placement)
    waiter = CapacityWaiter(sizes, option="runtime.startup_timeout_s", patience_s=max(runtime.startup_timeout_s, PLACEMENT_S))
    try:
        while not group.wait(1):
            waiter.report_shortage(silently=placement_group_table(group)["stats"]["scheduling_state"] not in LACKING)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def in_bundle(group: PlacementGroup | None, bundle: int) -> Any:
    """The place of a bundle; None: where this process's placement group has waiter."""
    return None if group is None else PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


def start(kind: type, size: Bundle, *, place: Any = None, calls_at_once: int = 1) -> Any:
    """An actor of a plain class; `open` builds it. Without a place it goes where its creator's placement group has waiter."""
    options: dict[str, Any] = {"num_cpus": size.get("CPU", 0), "num_gpus": size.get("GPU", 0), "max_restarts": 0}
    options |= {"max_concurrency": calls_at_once} if calls_at_once > 1 else {}
    return ray.remote(kind).options(**options, scheduling_strategy=place).remote()


def compute_kwargs(config: Config, size: Bundle) -> dict[str, Any]:
    """How many torch threads an actor has, and how much of a GPU."""
    return {"threads": config.runtime.threads or max(1, int(size.get("CPU", 1))), "gpu_share": size.get("GPU", 0.0)}


class CapacityWaiter:
    """Waiting for a cluster to have waiter: a line on standard error at once and then every half minute, but not for ever."""

    def __init__(self, sizes: Sequence[Bundle], *, option: str, patience_s: float) -> None:
        """option: the setting by which it waits so long."""
        self.sizes, self.option, self.patience_s = sizes, option, patience_s
        self.since: float | None = None
        self.said = -math.inf

    def report_shortage(self, *, for_ever: bool = False, silently: bool = False) -> None:
        """There is none at the moment. silently: there is, but it is not ours yet.

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
        if now - self.said >= LOG_EVERY_S and not silently:
            self.said = now
            told = f"waiting for room: {self.shortage()}; for up to {max(0.0, left):.0f} s ({self.option})"
            logger.info(told)

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


def wait_for_replies(
    references: Sequence[Any],
    group: PlacementGroup | None,
    waiter: CapacityWaiter,
    *,
    deadline_s: float = math.inf,
    for_ever: bool = False,
    told: str | None = None,
    workers: CapacityWaiter | None = None,
) -> None:
    """Wait until all answers are there. Where a bundle of the group has no place, that is told, and the deadline begins anew.

    told: what is said of a long wait; workers: those of the privatizer, which are in a placement group of their own.

    Raises: LostError at the deadline; InputError where there is no room for too long, but not `for_ever` for those of the group.
    """
    said = time.monotonic()
    until = said + deadline_s
    while references and len(ray.wait(list(references), num_returns=len(references), timeout=POLL_EVERY_S)[0]) < len(references):
        if group is not None and placement_group_table(group)["state"] != "CREATED":
            waiter.report_shortage(for_ever=for_ever)
            until = time.monotonic() + deadline_s
        elif workers is not None and waiting(workers.sizes):
            workers.report_shortage()
            until = time.monotonic() + deadline_s
        elif time.monotonic() > until:
            raise LostError(f"an actor did not answer within {deadline_s:g} s")
        elif told is not None and time.monotonic() - said >= LOG_EVERY_S:
            said = time.monotonic()
            logger.info(told)

"""Resources of actors: how much each one needs, one placement group for all, and waiting for free resources."""

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
"""Bundle of a host that computes nothing: one byte of memory, so that workers and adversaries can use all CPUs."""

MIN_CPU = 0.001
"""CPUs of an actor that requests nothing: a bundle must not be empty."""

PLACEMENT_TIMEOUT_S = 60.0
"""How long placing the actors may take on a cluster that has enough resources."""

SHORTAGE_STATES = ("NO_RESOURCES", "INFEASIBLE")
"""Values of `scheduling_state` in Ray's table of placement groups if resources are missing; others mean: being placed."""

POLL_EVERY_S = 3.0
"""How long to wait for replies before checking whether all actors have resources."""

LOG_EVERY_S = 30.0
"""Interval of the log lines about a shortage of resources."""


def bundles(
    config: Config, names: Sequence[str], *, cluster: Mapping[str, float], nodes: Sequence[float] | None = None
) -> list[Bundle]:
    """The resources of each actor; the privatizer, or its workers, come first.

    CPUs that are not set are 1 each, or an equal share if the cluster has fewer CPUs than actors. nodes: CPUs of each node.

    Raises: InputError with the numbers if the sum exceeds the cluster.
    """
    total = cluster.get("CPU", 0.0)
    actors = config.privatizer.num_workers + len(names)
    sizes = shares(config, names, cpus=usable_cpus([total] if nodes is None else nodes, actors))
    ensure_capacity(sizes, cluster, config.runtime)
    return sizes


def usable_cpus(nodes: Sequence[float], actors: int) -> float:
    """How many of the nodes' CPUs can be divided equally among `actors` actors, if each actor is on one node."""
    sizes = {cpus / n for cpus in nodes for n in range(1, actors + 1)}
    return actors * max((s for s in sizes if s and sum(int(cpus / s + 1e-9) for cpus in nodes) >= actors), default=0.0)


def shares(config: Config, names: Sequence[str], *, cpus: float) -> list[Bundle]:
    """The resources of each actor if they share `cpus` CPUs; the privatizer, or its workers, come first."""
    r, workers = config.runtime, config.privatizer.num_workers
    fair = min(1.0, cpus / (len(names) + workers)) or 1.0  # 1 if the cluster has no CPUs yet
    settings = [(a.cpus, a.gpus) if (a := config.adversaries.get(name)) else (None, None) for name in names]  # a spare has none
    requests = [(r.privatizer_cpus, r.privatizer_gpus)] * workers
    requests += [(r.adversary_cpus if c is None else c, r.adversary_gpus if g is None else g) for c, g in settings]
    sizes = [{"CPU": fair if c is None else c, "GPU": g} for c, g in requests]
    return [{kind: amount for kind, amount in s.items() if amount} or {"CPU": MIN_CPU} for s in sizes]


def ensure_capacity(sizes: Sequence[Bundle], cluster: Mapping[str, float], runtime: RuntimeConfig) -> None:
    """Raises: InputError with the numbers if the actors together need more than the cluster has."""
    for kind in ("CPU", "GPU"):
        total, available = sum(s.get(kind, 0.0) for s in sizes), cluster.get(kind, 0.0)
        if total > available + 1e-6 and runtime.startup_timeout_s == 0:
            raise InputError(
                f"{len(sizes)} actors need {total:g} {kind}s, the cluster has {available:g}: lower "
                f"--runtime.adversary-{kind.lower()}s, remove adversaries, or wait for a growing cluster with "
                "--runtime.startup-timeout-s"
            )


def reserve(sizes: list[Bundle], runtime: RuntimeConfig) -> PlacementGroup:
    """Creates one placement group with a bundle per actor.

    Raises: InputError if the cluster does not have the resources in time.
    """
    group = placement_group(sizes, strategy=runtime.placement)
    waiter = CapacityWaiter(
        sizes, option="runtime.startup_timeout_s", timeout_s=max(runtime.startup_timeout_s, PLACEMENT_TIMEOUT_S)
    )
    try:
        while not group.wait(1):
            waiter.report_shortage(quiet=placement_group_table(group)["stats"]["scheduling_state"] not in SHORTAGE_STATES)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def in_bundle(group: PlacementGroup | None, bundle: int) -> Any:
    """Scheduling strategy for a bundle of a group. Without a group: None, which means this process's own placement group."""
    return None if group is None else PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


def start_actor(actor_class: type, size: Bundle, *, scheduling: Any = None, max_concurrency: int = 1) -> Any:
    """Starts an actor of a plain class. scheduling: strategy; None: in the placement group of the creator, if it has one."""
    options: dict[str, Any] = {"num_cpus": size.get("CPU", 0), "num_gpus": size.get("GPU", 0), "max_restarts": 0}
    options |= {"max_concurrency": max_concurrency} if max_concurrency > 1 else {}
    return ray.remote(actor_class).options(**options, scheduling_strategy=scheduling).remote()


def compute_kwargs(config: Config, size: Bundle) -> dict[str, Any]:
    """Arguments of `set_up_process` for an actor: its torch threads and its share of a GPU."""
    return {"threads": config.runtime.threads or max(1, int(size.get("CPU", 1))), "gpu_share": size.get("GPU", 0.0)}


class CapacityWaiter:
    """Waits for free resources: logs a line at once and then every LOG_EVERY_S, and raises after a timeout."""

    def __init__(self, sizes: Sequence[Bundle], *, option: str, timeout_s: float) -> None:
        """option: the setting that defines the timeout."""
        self.sizes, self.option, self.timeout_s = sizes, option, timeout_s
        self.since: float | None = None
        self.logged_at = -math.inf

    def report_shortage(self, *, no_timeout: bool = False, quiet: bool = False) -> None:
        """Call this while the resources are missing. quiet: do not log; the resources exist but are not assigned yet.

        Raises: InputError with the numbers after the timeout, except with `no_timeout`.
        """
        now = time.monotonic()
        self.since = self.since or now
        remaining_s = self.timeout_s - (now - self.since)
        if remaining_s <= 0 and not no_timeout:
            flag = "--" + self.option.replace("_", "-")
            raise InputError(
                f"not enough free resources for {self.timeout_s:g} s: {self.shortage()}; add nodes, wait longer with {flag}, or "
                "request less (--runtime.placement, --runtime.adversary-cpus); --resume continues a run that has a checkpoint"
            )
        if now - self.logged_at >= LOG_EVERY_S and not quiet:
            self.logged_at = now
            limit = f"for up to {max(0.0, remaining_s):.0f} s ({self.option})"
            logger.info(f"waiting for free resources: {self.shortage()}; {limit}")

    def shortage(self) -> str:
        """The needed, the total and the free resources."""
        total, free = ray.cluster_resources(), ray.available_resources()
        kinds = [kind for kind in ("CPU", "GPU") if any(kind in size for size in self.sizes)]
        needed = " and ".join(f"{sum(size.get(kind, 0.0) for size in self.sizes):g} {kind}s" for kind in kinds)
        available = " and ".join(f"{total.get(kind, 0.0):g} {kind}s ({free.get(kind, 0.0):g} free)" for kind in kinds)
        return f"{len(self.sizes)} processes need {needed}, the cluster has {available}"


def is_pending(sizes: Sequence[Bundle]) -> bool:
    """Whether any placement group with these bundles is not placed: Ray Train does not report which group is its own."""
    pending = [g for g in placement_group_table().values() if g["state"] in ("PENDING", "RESCHEDULING")]
    return any(list(g["bundles"].values()) == list(sizes) for g in pending)


def wait_for_replies(
    references: Sequence[Any],
    group: PlacementGroup | None,
    waiter: CapacityWaiter,
    *,
    deadline_s: float = math.inf,
    no_timeout: bool = False,
    wait_message: str | None = None,
    workers: CapacityWaiter | None = None,
) -> None:
    """Waits for all replies. While resources of the group are missing, this is logged and the deadline starts again.

    wait_message: logged regularly during a long wait. workers: waiter of the privatizer's workers, which have their own placement
    group. no_timeout: wait for the group's resources without a timeout.

    Raises: LostError at the deadline; InputError if resources are missing until the waiter's timeout.
    """
    logged_at = time.monotonic()
    deadline = logged_at + deadline_s
    while references and len(ray.wait(list(references), num_returns=len(references), timeout=POLL_EVERY_S)[0]) < len(references):
        if group is not None and placement_group_table(group)["state"] != "CREATED":
            waiter.report_shortage(no_timeout=no_timeout)
            deadline = time.monotonic() + deadline_s
        elif workers is not None and is_pending(workers.sizes):
            workers.report_shortage()
            deadline = time.monotonic() + deadline_s
        elif time.monotonic() > deadline:
            raise LostError(f"an actor did not respond within {deadline_s:g} s")
        elif wait_message is not None and time.monotonic() - logged_at >= LOG_EVERY_S:
            logged_at = time.monotonic()
            logger.info(wait_message)

"""The same game on Ray: the central privatizer actor hosts it, each adversary is an actor, one placement group holds them all.

Only z, row numbers and grad_z travel in a round. Actors are not restarted by Ray: one that starts again from nothing would look
like privacy. The attacks of a tournament are tasks: they need nothing of each other.
"""

import io
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cpgan_ray.config import Config, RuntimeConfig
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.tournament import Entry, Made, Material, make
from cpgan_ray.game import Game, opponents
from cpgan_ray.messages import Metrics, Outcome, Release
from cpgan_ray.process import available_cpus, pick_device, set_up_process
from cpgan_ray.workers import AdversaryWorker, PrivatizerWorker

INLINE_BYTES = 90_000
"""Ray sends arguments below 100 KB inside the call; a larger release goes to the object store once, for all adversaries."""

PLACEMENT_S = 60.0
"""How long the actors' places may take on a cluster that has room for them, in seconds."""

KNOCK_S = 5.0
"""How long a cluster may take to answer at all, in seconds."""

LEAST_CPU = 0.001
"""What an actor that asks for nothing gets: a place must not be empty."""

Bundle = dict[str, float]


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


def share(release: Release) -> Any:
    """The release itself where it is small, else one reference to it."""
    return release if release.z.nbytes + release.batch.rows.nbytes < INLINE_BYTES else ray.put(release)


def gather(references: Sequence[Any], *, deadline_s: float) -> list[Any]:
    """The answers behind references, in one call.

    Raises: TimeoutError where one takes longer than the deadline; what the actor raised, without Ray's wrapping.
    """
    try:
        return ray.get(list(references), timeout=deadline_s)
    except GetTimeoutError as e:
        raise TimeoutError(f"an actor did not answer within {deadline_s:g} s (runtime.deadline_s)") from e
    except RayTaskError as e:
        raise e.cause from e


class AdversaryActor(AdversaryWorker):
    """An adversary that is built by `open`: what a constructor raises would reach the driver without its type."""

    def __init__(self) -> None:
        pass

    def open(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class GameHost:
    """The central actor: the privatizer and the loop, built by `open`. A plain class; Ray is applied in `RayGame.start`."""

    def open(self, config: Config, actors: Mapping[str, Any], *, threads: int, gpu_share: float = 0.0) -> None:
        seats = {name: RaySeat(actor) for name, actor in actors.items()}
        deadline_s = config.runtime.deadline_s
        privatizer = PrivatizerWorker(config, threads=threads, gpu_share=gpu_share)
        self.game = Game(privatizer, seats, gather=lambda answers: gather(answers, deadline_s=deadline_s), share=share)

    def length(self) -> tuple[int, int]:
        """Rounds of the run, and of an epoch."""
        return self.game.total_rounds, self.game.rounds_per_epoch

    def play(self, rounds: int) -> list[Metrics]:
        return self.game.play(rounds)

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.game.privatizer.sample(count)

    def outcome(self) -> Outcome:
        return self.game.privatizer.outcome()

    def weights(self) -> dict[str, dict[str, Any]]:
        return self.game.weights()


def connect(runtime: RuntimeConfig) -> None:
    """Join the cluster that was named, the one this job runs on, or start a local one.

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
            ray.init(address="local", num_cpus=available_cpus(), include_dashboard=False, **quiet)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init has put its own there
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, socket.gaierror) as e:
        raise InputError(f"no Ray cluster answers at {address!r}: start it, or leave --runtime.address out for a local one") from e


def knock(address: str) -> None:
    """Open and close a connection to `host:port`: Ray itself would try for minutes. Other forms of address are left to Ray.

    Raises: OSError where nothing answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def bundles(config: Config, names: Sequence[str], *, cluster: Mapping[str, float]) -> list[Bundle]:
    """What each actor needs, the privatizer's first.

    CPUs that are not set are 1 each, or an equal share where the cluster has fewer CPUs than actors.

    Raises: InputError with the numbers where the sum does not fit the cluster.
    """
    sizes = shares(config, names, cpus=cluster.get("CPU", 0.0))
    ensure_room(sizes, cluster, config.runtime)
    return sizes


def shares(config: Config, names: Sequence[str], *, cpus: float) -> list[Bundle]:
    """What each actor needs, the privatizer's first, where they have `cpus` CPUs between them."""
    r = config.runtime
    fair = min(1.0, cpus / (len(names) + 1))
    own = [(config.adversaries[name].cpus, config.adversaries[name].gpus) for name in names]
    wanted = [(r.privatizer_cpus, r.privatizer_gpus)]
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
    if not group.wait(max(runtime.wait_s, PLACEMENT_S)):
        remove_placement_group(group)
        free = {kind: ray.available_resources().get(kind, 0.0) for kind in ("CPU", "GPU")}
        raise InputError(
            f"no room for {len(sizes)} actors that need {sizes}: {free['CPU']:g} CPUs and {free['GPU']:g} GPUs are free; "
            f"wait longer with --runtime.wait-s, or ask for less (--runtime.placement is {runtime.placement})"
        )
    return group


def start(kind: type, size: Bundle, *, place: Any = None) -> Any:
    """An actor of a plain class; `open` builds it. Without a place it goes where its creator's placement group has room."""
    options: dict[str, Any] = {"num_cpus": size.get("CPU", 0), "num_gpus": size.get("GPU", 0), "max_restarts": 0}
    return ray.remote(kind).options(**options, scheduling_strategy=place).remote()


def means(config: Config, size: Bundle) -> dict[str, Any]:
    """How many torch threads an actor has, and how much of a GPU."""
    return {"threads": config.runtime.threads or max(1, int(size.get("CPU", 1))), "gpu_share": size.get("GPU", 0.0)}


def open_adversaries(config: Config, actors: Mapping[str, Any], sizes: Sequence[Bundle]) -> list[Any]:
    """Build each adversary in its actor; the references are for `answer`."""
    each = zip(actors.items(), sizes, strict=True)
    return [actor.open.remote(name, config, overlap=True, **means(config, size)) for (name, actor), size in each]


def answer(started: Any) -> Any:
    """What is behind a reference, or several; errors come without Ray's wrapping."""
    try:
        return ray.get(started)
    except RayTaskError as e:
        raise e.cause from e


@contextmanager
def host_here(config: Config, sizes: Sequence[Bundle]) -> Iterator[Game]:
    """The game with its privatizer in this process and its adversaries as actors in this process's placement group.

    They end with the block. `sizes`: of the privatizer and of each adversary.
    """
    names = opponents(config)
    actors = {name: start(AdversaryActor, size) for name, size in zip(names, sizes[1:], strict=True)}
    try:
        opened = open_adversaries(config, actors, sizes[1:])
        host = GameHost()
        host.open(config, actors, **means(config, sizes[0]))
        answer(opened)
        yield host.game
    finally:
        for actor in actors.values():
            ray.kill(actor)


class RayGame:
    """A game on a cluster, as its driver holds it. A context manager: leaving it ends the actors and frees their places."""

    def __init__(self, config: Config) -> None:
        self.config = config
        connect(config.runtime)
        names = opponents(config)
        sizes = bundles(config, names, cluster=ray.cluster_resources())
        self.group = reserve(sizes, config.runtime)
        try:
            actors = [
                start(AdversaryActor if bundle else GameHost, size, place=self.place(bundle)) for bundle, size in enumerate(sizes)
            ]
            self.host, self.adversaries = actors[0], dict(zip(names, actors[1:], strict=True))
            opened = [self.host.open.remote(config, self.adversaries, **means(config, sizes[0]))]
            self.get([*opened, *open_adversaries(config, self.adversaries, sizes[1:])])
            self.total_rounds, self.rounds_per_epoch = self.get(self.host.length.remote())
        except BaseException:
            self.close()
            raise

    def place(self, bundle: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)

    def play(self, rounds: int) -> Any:
        """Start up to `rounds` more rounds; `get` waits for their metrics."""
        return self.host.play.remote(rounds)

    def get(self, started: Any) -> Any:
        return answer(started)

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.get(self.host.sample.remote(count))

    def outcome(self) -> Outcome:
        return self.get(self.host.outcome.remote())

    def weights(self) -> dict[str, dict[str, Any]]:
        return self.get(self.host.weights.remote())

    def close(self) -> None:
        """End the actors and free their places."""
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
    cluster, config = ray.cluster_resources(), material.config
    for kind, wanted in (("CPU", config.cpus), ("GPU", config.gpus)):
        if wanted > cluster.get(kind, 0.0):
            raise InputError(
                f"an attack needs {wanted:g} {kind}s, the cluster has {cluster.get(kind, 0.0):g}: lower --attacks.{kind.lower()}s"
            )
    shared = ray.put(material)
    task: Any = ray.remote(attack_task).options(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=2)  # pyright: ignore
    references = [task.remote(entry, shared, runtime=runtime) for entry in todo]
    waiting = list(references)
    try:
        while waiting:
            (ready, *_), waiting = ray.wait(waiting, num_returns=1)
            done(ray.get(ready))
        return ray.get(references)
    except RayTaskError as e:
        raise e.cause from e
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)

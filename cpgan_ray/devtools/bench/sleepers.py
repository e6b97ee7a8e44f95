"""Measures rounds against sleeping adversaries: the overhead of the game itself, on one node and on several."""

import itertools
import statistics
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from cpgan_ray.common.types import Batch, Feedback, Metrics, Release
from cpgan_ray.config import Config, RidgeConfig
from cpgan_ray.devtools.bench.settings import Settings

SLEEP_S = 0.02
SLEEPS_S = (0.2, 0.1, 0.05, 0.15)
"""Sleep times of the adversaries spread over nodes, repeated in this order; a decoder on a GPU takes about as long."""


def measure_orchestration(s: Settings, folder: Path) -> dict[str, Any]:
    """Median round time with K adversaries spread over the nodes, as a multiple of the slowest adversary's time, and the CPU time
    of the privatizer's process. Here all nodes share this machine's cores; on separate machines a round takes the slowest
    adversary's time plus at most that CPU time."""
    import ray

    from cpgan_ray.devtools.chaos.kills import local_cluster

    result: dict[str, Any] = {}
    with local_cluster() as cluster:
        for _ in range(s.nodes):
            cluster.add_node(num_cpus=max(s.crowds) // s.nodes + 1)
        sleepers = {}
        for i in range(max(s.crowds)):
            seconds = SLEEPS_S[i % len(SLEEPS_S)]
            sleepers[f"sleeper{i}"] = (
                ray.remote(SleepingAdversary).options(num_cpus=1, scheduling_strategy="SPREAD").remote("", seconds)
            )
        for count in s.crowds:
            round_s, cpu_s = sleeping_rounds_s(s, dict(itertools.islice(sleepers.items(), count)))
            result[f"round_over_slowest_k{count}"] = round_s / max(SLEEPS_S[:count])
            result[f"privatizer_cpu_ms_k{count}"] = 1000 * cpu_s
    return result | {"nodes": s.nodes, "slowest_ms": 1000 * max(SLEEPS_S)}


def sleeping_round_s(s: Settings) -> float:
    """Median seconds of a round against sleeping adversaries."""
    import ray

    names = [f"sleeper{i}" for i in range(s.sleepers)]
    sleepers = {name: ray.remote(SleepingAdversary).options(num_cpus=0).remote(name) for name in names}
    try:
        return sleeping_rounds_s(s, sleepers)[0]
    finally:
        for actor in sleepers.values():
            ray.kill(cast(Any, actor))


def sleeping_rounds_s(s: Settings, sleepers: dict[str, Any]) -> tuple[float, float]:
    """Median seconds of a round of a new host against these actors, and the host's CPU seconds per round."""
    import ray

    config = Config(k=s.k, batch_size=s.batch_size, adversaries={name: RidgeConfig() for name in sleepers})
    host = ray.remote(IdleHost).options(num_cpus=0).remote(config, sleepers)
    ray.get(host.play.remote(s.warmup))
    played = ray.get(host.play.remote(s.repeats * s.rounds))
    ray.kill(cast(Any, host))
    return statistics.median(m["time/round_s"] for m in played), played[0]["cpu_s"]


class SleepingAdversary:
    """An adversary that sleeps and returns a zero gradient."""

    def __init__(self, name: str, seconds: float = SLEEP_S) -> None:
        self.name, self.seconds = name, seconds

    def respond(self, release: Release) -> Feedback:
        time.sleep(self.seconds)
        return Feedback(name=self.name, round=release.round, grad_z=np.zeros_like(release.z), r2=0.0, metrics={"mse": 0.0})


class IdlePrivatizer:
    """A privatizer that computes nothing, so that a round consists only of the game's overhead."""

    def __init__(self, config: Config) -> None:
        self.config, self.rounds_per_epoch = config, 2**30
        rng = np.random.default_rng(0)
        self.z = rng.standard_normal((config.batch_size, config.k), np.float32)
        rows = np.arange(config.batch_size)
        self.batch = Batch(rows=rows, mirrored=np.zeros(len(rows), bool), shift=np.zeros((len(rows), 2), np.int16))

    def release(self, round: int) -> Release:
        return Release(round=round, batch=self.batch, z=self.z)

    def utility(self, release: Release) -> Metrics:
        return {}

    def update(self, feedback: list[Feedback]) -> Metrics:
        return {f"adversary/{f.name}/r2": f.r2 for f in feedback}


class IdleHost:
    """A host like GameHost with an idle privatizer."""

    def __init__(self, config: Config, actors: dict[str, Any]) -> None:
        from cpgan_ray.distributed.adversary_pool import RayAdversaryHandle
        from cpgan_ray.distributed.rpc import gather, share
        from cpgan_ray.training.game import Game

        handles = {name: RayAdversaryHandle(actor) for name, actor in actors.items()}
        privatizer = cast(Any, IdlePrivatizer(config))
        self.game = Game(privatizer, handles, gather=lambda references: gather(references, deadline_s=60.0), share=share)

    def play(self, rounds: int) -> list[Metrics]:
        """Plays rounds. Returns their metrics, with the CPU seconds of this process per round."""
        before = time.process_time()
        played = self.game.play(rounds)
        return [m | {"cpu_s": (time.process_time() - before) / rounds} for m in played]

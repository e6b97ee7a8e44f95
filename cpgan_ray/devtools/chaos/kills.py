"""Kills of players, drivers and nodes, and the undisturbed game with which each result is compared."""

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cpgan_ray.common.types import Event, Metrics
from cpgan_ray.config import Config, override
from cpgan_ray.devtools.chaos.settings import FAST_HEALTH, JOB, KILLS_PER_GAME, PLAYERS, Settings, Tally
from cpgan_ray.training.checkpoint import Checkpoints

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


# The game


def unbroken(config: Config) -> dict[str, dict[str, Any]]:
    """The weights of the undisturbed game, played in this process."""
    from cpgan_ray.training.game import play_in_process

    game = play_in_process(config, threads=1)
    while game.round < game.total_rounds:
        game.play(game.rounds_per_epoch)
    return game.weights()


def same(state: Any, other: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    import torch

    if isinstance(state, torch.Tensor):
        return isinstance(other, torch.Tensor) and state.dtype == other.dtype and torch.equal(state, other)
    if isinstance(state, dict):
        return isinstance(other, dict) and state.keys() == other.keys() and all(same(state[key], other[key]) for key in state)
    if isinstance(state, list | tuple):
        return type(state) is type(other) and len(state) == len(other) and all(map(same, state, other))
    return bool(state == other)


def play_disturbed(config: Config, moments: list[float], strike: Callable[[], bool]) -> tuple[dict[str, Any], list[Event], int]:
    """Plays a game on Ray and calls `strike` after these shares of the rounds. Returns weights, failures and number of strikes."""
    from cpgan_ray.distributed.driver import RayGame

    struck, waiting = 0, list(moments)
    with RayGame(config) as game:
        done = saved = 0
        while done < game.total_rounds:
            started = game.play(4)
            if waiting and done / game.total_rounds >= waiting[0] and strike():
                waiting.pop(0)
                struck += 1
            played: list[Metrics] = game.get(started)
            done = int(played[-1]["round"]) + 1
            if done - saved >= config.recovery.checkpoint_every:
                game.snapshot()
                saved = done
        return game.weights(), list(game.events), struck


# Players


def players() -> list[psutil.Process]:
    """The processes of the players among the descendants of this process."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if line and line[0].startswith(PLAYERS):
                processes.append(process)
    return processes


def kill_players(config: Config, expected: dict[str, Any], s: Settings, tally: Tally) -> None:
    """Plays games with a few kills each, until there are `s.kills` kills."""
    rng = random.Random(s.seed)

    def strike() -> bool:
        time.sleep(rng.uniform(0, 0.1))  # a random moment in the current rounds
        alive = players()
        if alive:
            rng.choice(alive).kill()
        return bool(alive)

    while tally.struck["players"] < s.kills:
        count = min(KILLS_PER_GAME, s.kills - tally.struck["players"])
        moments = sorted(rng.uniform(0.02, 0.9) for _ in range(count))
        weights, events, struck = play_disturbed(config, moments, strike)
        record(tally, "players", struck, same(weights, expected), events)


def record(tally: Tally, kind: str, struck: int, identical: bool, events: Sequence[Event] = ()) -> None:
    tally.struck[kind] += struck
    tally.games += 1
    tally.different += not identical
    if kind in tally.events:
        tally.events[kind] += events
    logger.info(f"{kind}: {tally.struck[kind]} killed, {tally.games} games so far, {tally.different} ended differently")


# Drivers


def kill_drivers(flags: Sequence[str], expected: dict[str, Any], s: Settings, tally: Tally, folder: Path) -> None:
    """Runs jobs, kills their driver at a random moment after a checkpoint, and resumes them until they finish."""
    rng = random.Random(s.seed + 1)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    while tally.struck["drivers"] < s.drivers:
        output = folder / f"run-{tally.games}"
        command = [*flags, "--tracking.uri", uri, "--output", str(output)]
        struck = 0
        for _ in range(min(2, s.drivers - tally.struck["drivers"])):
            struck += kill_driver(command, output, rng, tally)
            command = ["--resume", str(output)]
        if not (output / "report" / "report.json").is_file():
            run_job(command).wait()
        record(tally, "drivers", struck, ends_like(output, expected))
    if s.drivers:
        tally.running_left += num_running(uri)


def run_job(arguments: Sequence[str]) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, str(JOB), *arguments], env=environment, start_new_session=True, **quiet)


def kill_driver(command: Sequence[str], output: Path, rng: random.Random, tally: Tally) -> int:
    """Starts the job and kills it at a random time after a new checkpoint. Returns 1, or 0 if the job finished before."""
    checkpoints = Checkpoints(str(output / "checkpoints"), keep=1)
    before = checkpoints.names()[-1:]
    job = run_job(command)
    while job.poll() is None and checkpoints.names()[-1:] == before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 1.0))
    if job.poll() is not None:
        return 0
    job.send_signal(signal.SIGKILL)
    job.wait()
    tally.lost_checkpoints += checkpoints.latest() is None
    return 1


def ends_like(output: Path, expected: dict[str, Any]) -> bool:
    """Whether the exported privatizer of a run has the expected weights."""
    import torch

    path = output / "privatizer.pt2"
    if not path.is_file():
        return False
    exported = {name.removeprefix("privatizer."): value for name, value in torch.export.load(path).state_dict.items()}
    net = {name.removeprefix("privatizer."): value for name, value in expected["privatizer"]["net"].items()}
    shared = [name for name in exported if name in net]
    return len(shared) > 4 and all(torch.equal(exported[name], net[name]) for name in shared)


def num_running(uri: str) -> int:
    from cpgan_ray.tracking.store import running_runs

    return len(running_runs(uri))


# Nodes


@contextlib.contextmanager
def local_cluster(settings: Mapping[str, int] | None = None) -> Iterator["Cluster"]:
    """A cluster on only this machine, which this process joins. Its head has no CPUs: add nodes with `add_node`.

    settings: system configuration of Ray.
    """
    import ray
    from ray.cluster_utils import Cluster

    from cpgan_ray.distributed.cluster import on_loopback

    ray.shutdown()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with on_loopback():
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": dict(settings or {})}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="error")  # pyright: ignore[reportArgumentType]
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def crash_nodes(config: Config, expected: dict[str, Any], s: Settings, tally: Tally) -> None:
    """Plays games on a local cluster with a head without CPUs and two nodes; one of them crashes and is replaced."""
    if not s.nodes:
        return
    rng = random.Random(s.seed + 2)
    with local_cluster(FAST_HEALTH) as cluster:
        nodes = [cluster.add_node(num_cpus=4) for _ in range(2)]
        spread_out = override(config, {"runtime.placement": "SPREAD", "recovery.replacement_timeout_s": 120.0})

        def strike() -> bool:
            cluster.remove_node(nodes.pop(rng.randrange(len(nodes))), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=4))
            return True

        while tally.struck["nodes"] < s.nodes:
            weights, events, struck = play_disturbed(spread_out, [rng.uniform(0.1, 0.6)], strike)
            record(tally, "nodes", struck, same(weights, expected), events)

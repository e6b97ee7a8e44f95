"""Measures rounds with K decoders on Ray and in one process, and the bytes of a message."""

import itertools
import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cpgan_ray.common.types import Feedback, Metrics, Release
from cpgan_ray.config import Config, DataConfig, NeuralConfig, PrivatizerConfig, RuntimeConfig, override
from cpgan_ray.devtools.bench.material import synthetic, timed
from cpgan_ray.devtools.bench.settings import Settings
from cpgan_ray.devtools.bench.sleepers import sleeping_round_s

if TYPE_CHECKING:
    from cpgan_ray.distributed.driver import RayGame
    from cpgan_ray.training.game import Game

SETTLE_ROUNDS = 2
"""Rounds at the beginning of a turn that are not measured, because the variant was idle before."""


def measure_speed(s: Settings, folder: Path) -> dict[str, Any]:
    """All values of the table."""
    import ray

    from cpgan_ray.common.process import available_cpus
    from cpgan_ray.data import prepare
    from cpgan_ray.distributed.cluster import connect

    cores, load = available_cpus(), os.getloadavg()[0]
    rounds = s.warmup + s.repeats * (s.rounds + SETTLE_ROUNDS) + s.rounds
    synthetic(folder, rows=int(rounds * s.batch_size / 0.9) + 40, image_size=s.image_size)
    configs = {k: decoder_game(s, k, folder) for k in s.adversaries}
    prepare(configs[1], progress=False)
    os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise Ray's actors run at a lower priority than the other variant
    connect(RuntimeConfig())
    with game_processes(configs, {1, cores}) as pools:
        seconds = {1: take_turns(s, configs[1], pools)}
        threads = min(pools, key=lambda n: statistics.median(seconds[1][f"sequential_{n}"]))
        largest = s.adversaries[-1]
        for k in s.adversaries[1:]:
            schedules = ("sync", "stale1") if k == largest else ("sync",)
            seconds[k] = take_turns(s, configs[k], {threads: pools[threads]}, schedules)
        sequential_s, critical_s, release, reply = pools[1].submit(play_timed, largest, s.rounds).result()

    def speedup(k: int, side: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[k][f"sequential_{threads}"], seconds[k][side], strict=True))

    result: dict[str, Any] = {
        "speedup_k1": speedup(1, f"sequential_{cores}"),  # the choice of backend `auto`
        "speedup_k1_ray": speedup(1, "ray_sync"),
        **{f"speedup_k{k}": speedup(k, "ray_sync") for k in s.adversaries[1:]},
        f"speedup_k{largest}_stale1": speedup(largest, "ray_stale1"),
        f"critical_path_speedup_k{largest}": sequential_s / critical_s,
        f"round_ms_sleep20_k{s.sleepers}": 1000 * sleeping_round_s(s),
        "bytes_per_release": release,
        "bytes_per_reply": reply,
        "sequential_threads": threads,
    }
    ray.shutdown()
    for k, sides in seconds.items():
        result |= {f"round_ms_k{k}_{name}": 1000 * statistics.median(times) for name, times in sides.items()}
    machine = f"{cores} x {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    return result | {"machine": machine, "load_before": load, "load_after": os.getloadavg()[0], "settings": vars(s)}


def decoder_game(s: Settings, num_adversaries: int, folder: Path) -> Config:
    """A game of one long epoch against decoders that differ only in their random streams."""
    return Config(
        preset="bench",
        data_dir=folder,
        k=s.k,
        epochs=1,
        batch_size=s.batch_size,
        data=DataConfig(dataset="celeba", image_size=s.image_size),
        privatizer=PrivatizerConfig(width=s.width, depth=4),
        adversaries={f"decoder{i}": NeuralConfig(architecture="conv", width=s.width) for i in range(num_adversaries)},
        # small shares, so that two games run at the same time; one thread each
        runtime=RuntimeConfig(privatizer_cpus=0.1, adversary_cpus=0.1),
    )


@contextmanager
def game_processes(configs: dict[int, Config], threads: set[int]) -> Iterator[dict[int, ProcessPoolExecutor]]:
    """Number of torch threads -> a process that has all games."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {n: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for n in sorted(threads)}
        for building in [pool.submit(open_games, configs, n) for n, pool in pools.items()]:
            building.result()
        yield pools


def take_turns(
    s: Settings, config: Config, pools: dict[int, ProcessPoolExecutor], schedules: Sequence[str] = ("sync",)
) -> dict[str, list[float]]:
    """Variant (`sequential_<threads>` or `ray_<schedule>`) -> seconds per round of each turn."""
    from cpgan_ray.distributed.driver import RayGame

    with ExitStack() as stack:
        sides: dict[str, Callable[[int], list[Metrics]]] = {
            f"sequential_{n}": partial(play_in, pool, len(config.adversaries)) for n, pool in pools.items()
        }
        for schedule in schedules:
            game = stack.enter_context(RayGame(override(config, {"game.schedule": schedule})))
            sides[f"ray_{schedule}"] = partial(play_on, game)
        for play in sides.values():
            play(s.warmup)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _, (name, play) in itertools.product(range(s.repeats), sides.items()):
            seconds[name].append(statistics.fmean(m["time/round_s"] for m in play(s.rounds + SETTLE_ROUNDS)[SETTLE_ROUNDS:]))
    return seconds


def play_in(pool: ProcessPoolExecutor, num_adversaries: int, rounds: int) -> list[Metrics]:
    return pool.submit(play_here, num_adversaries, rounds).result()


def play_on(game: "RayGame", rounds: int) -> list[Metrics]:
    return game.get(game.play(rounds))


# The game in one process, which is separate from the benchmark's process


_games: dict[int, "Game"] = {}
"""Number of adversaries -> game."""


def open_games(configs: dict[int, Config], threads: int) -> None:
    from cpgan_ray.training.game import play_in_process

    _games.update({k: play_in_process(config, threads=threads) for k, config in configs.items()})


def play_here(num_adversaries: int, rounds: int) -> list[Metrics]:
    return _games[num_adversaries].play(rounds)


def play_timed(num_adversaries: int, rounds: int) -> tuple[float, float, int, int]:
    """Plays rounds and times each part. Returns the seconds of a round in one process, the seconds of a round if each player had
    its own cores, and the bytes of a release and of a reply.

    On its own cores an adversary learns while the privatizer makes its step and the next codes. A round then takes the maximum of
    codes + slowest response + step and of each adversary's response + learning.
    """
    game = _games[num_adversaries]
    handles = cast(list[Any], list(game.handles.values()))
    sequential, critical, sizes = [], [], (0, 0)
    for round in range(game.round, game.round + rounds):
        release, release_s = timed(game.privatizer.release, round)
        replies = [timed(handle.respond, release) for handle in handles]
        _, utility_s = timed(game.privatizer.utility, release)
        _, update_s = timed(game.privatizer.update, release, [feedback for feedback, _ in replies])
        work = [(respond_s, timed(handle.finish_learning)[1]) for handle, (_, respond_s) in zip(handles, replies, strict=True)]
        sequential.append(release_s + utility_s + update_s + sum(r + learn for r, learn in work))
        path = release_s + max(utility_s, *(r for r, _ in work)) + update_s
        critical.append(max(path, *(r + learn for r, learn in work)))
        sizes = num_bytes(release), num_bytes(replies[0][0])
    game.round += rounds
    return statistics.median(sequential), statistics.median(critical), *sizes


def num_bytes(message: Release | Feedback) -> int:
    """Size of a message as pickled by Ray: protocol 5, with arrays in separate buffers."""
    from ray.cloudpickle import cloudpickle

    buffers: list[Any] = []
    pickled = cloudpickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    return len(pickled) + sum(len(buffer.raw()) for buffer in buffers)

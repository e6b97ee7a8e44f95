"""What the actors gain, and what they cost: rounds per second, overhead of a round, bytes of a message, memory of each process.

    python -m cpgan_ray.bench                      # a table, in about four minutes
    python -m cpgan_ray.bench --json               # the last line printed is a JSON object
    python -m cpgan_ray.bench --checkpoints        # instead: what a checkpoint costs a game of CelebA's size, in about five minutes
    python -m cpgan_ray.bench --nodes 8            # instead: rounds of 1 to 64 sleeping adversaries on so many local nodes
    python -m cpgan_ray.bench --series             # instead: HAR's networks beside the same in plane convolutions, in seconds
    python -m cpgan_ray.bench --memory 200000      # instead: peak memory of a run on so many pictures (10 GB of disk, half an hour)

Speed is that of K convolutional decoders on Ray against the same game in one process, with one torch thread or with all cores,
whichever is faster. The sides take turns in one run; a number is the median over the turns of the ratio of two sides.
"""

import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psutil

from cpgan_ray import cli
from cpgan_ray.config import (
    AttackConfig,
    Config,
    DataConfig,
    KernelConfig,
    NeuralConfig,
    PrivatizerConfig,
    RidgeConfig,
    RuntimeConfig,
    TrackingConfig,
    override,
)
from cpgan_ray.errors import InputError
from cpgan_ray.messages import Batch, Feedback, Metrics, Release
from cpgan_ray.presets import preset

if TYPE_CHECKING:
    from cpgan_ray.actors.driver import RayGame
    from cpgan_ray.checkpoint import Checkpoints
    from cpgan_ray.game import Game
    from cpgan_ray.training import Running

SETTLE = 2
"""First rounds of a turn that do not count: the side was idle before it."""
SLEEP_S = 0.02
SLEEPS_S = (0.2, 0.1, 0.05, 0.15)
"""Of the adversaries spread over nodes, in turn: a decoder on a GPU takes about as long."""
DISTINCT = 400
"""Different pictures in a synthetic data set; the rest are links to them."""
SAMPLE_S = 0.5
FACES, EVERY = 4_000, 50
"""Of the measurement of checkpoints: pictures, and rounds from one to the next."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Defaults are those of the reported numbers; smaller ones only show that it works."""

    json: bool = False
    """End with one line of JSON instead of a table."""
    checkpoints: bool = False
    """Measure checkpoints instead: turns of `rounds` rounds of preset celeba on procedural faces, with a checkpoint and without."""
    series: bool = False
    """Measure a step of the original's networks for series (HAR) instead, beside the same in plane convolutions."""
    memory: int = 0
    """Measure memory instead, on so many synthetic 112 x 112 pictures."""
    nodes: int = 0
    """Measure orchestration instead: rounds of 1 to 64 adversaries that sleep, spread over so many nodes on this machine."""
    crowds: tuple[int, ...] = (1, 8, 16, 32, 64)
    """How many adversaries are spread over the nodes, in turn."""
    repeats: int = 6
    """Turns of each side."""
    rounds: int = 10
    """Rounds of a turn."""
    warmup: int = 6
    """Rounds of each side before its first turn."""
    image_size: int = 64
    """Side of the pictures, in pixels."""
    batch_size: int = 128
    """Pictures per round."""
    k: int = 128
    """Length of the code."""
    width: int = 8
    """Channels of the encoder's first stage and of the decoders' last but one; 4 stages double them up to 8 times that."""
    adversaries: tuple[int, ...] = (1, 2, 4)
    """How many decoders play, from game to game; the last is also played with schedule `stale1`."""
    sleepers: int = 16
    """Adversaries that sleep 20 ms instead of computing."""

    def __post_init__(self) -> None:
        for name in ("repeats", "rounds", "warmup", "batch_size", "k", "width", "sleepers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.nodes < 0:
            raise InputError(f"nodes is {self.nodes}; it must be at least 0")
        if not self.crowds or min(self.crowds) < 1:
            raise InputError(f"crowds is {self.crowds}; it must be one or more numbers of at least 1")
        if len(self.adversaries) < 2 or self.adversaries[0] != 1:
            raise InputError(f"adversaries is {self.adversaries}; it must be 1 and one or more larger numbers")


# Games to measure


def decoder_game(s: Settings, num_adversaries: int, folder: Path) -> Config:
    """A game against so many decoders that differ in their random streams only, in one long epoch."""
    return Config(
        preset="bench",
        data_dir=folder,
        k=s.k,
        epochs=1,
        batch_size=s.batch_size,
        data=DataConfig(dataset="celeba", image_size=s.image_size),
        privatizer=PrivatizerConfig(width=s.width, depth=4),
        adversaries={f"decoder{i}": NeuralConfig(architecture="conv", width=s.width) for i in range(num_adversaries)},
        runtime=RuntimeConfig(privatizer_cpus=0.1, adversary_cpus=0.1),  # so that two games fit side by side; one thread each
    )


def synthetic(folder: Path, *, rows: int, image_size: int) -> None:
    """A data set of `rows` pictures with 5 random attributes in CelebA's layout: a few procedural faces under many names."""
    from cpgan_ray.data.faces import write_faces

    write_faces(folder, num_identities=DISTINCT, pictures_per_identity=1, size=(image_size, image_size))
    pictures = folder / "img_align_celeba"
    for row in range(DISTINCT, rows):
        (pictures / f"{row + 1:06d}.jpg").hardlink_to(pictures / f"{row % DISTINCT + 1:06d}.jpg")
    for row in range(rows, DISTINCT):
        (pictures / f"{row + 1:06d}.jpg").unlink()
    names = [f"{row + 1:06d}.jpg" for row in range(rows)]
    signs = np.random.default_rng(0).choice([-1, 1], (rows, 5))
    splits = np.searchsorted([0.9 * rows, 0.95 * rows], np.arange(rows), side="right")
    attributes = [str(rows), "A B C D E", *(f"{n} {' '.join(map(str, v))}" for n, v in zip(names, signs.tolist(), strict=True))]
    tables = {
        "list_attr_celeba.txt": attributes,
        "identity_CelebA.txt": [f"{name} {row + 1}" for row, name in enumerate(names)],
        "list_eval_partition.txt": [f"{name} {split}" for name, split in zip(names, splits.tolist(), strict=True)],
    }
    for file, lines in tables.items():
        (folder / file).write_text("\n".join(lines) + "\n")


# The game in one process


_games: dict[int, "Game"] = {}
"""Of a process of its own: number of adversaries -> game."""


def open_games(configs: dict[int, Config], threads: int) -> None:
    from cpgan_ray.game import play_in_process

    _games.update({k: play_in_process(config, threads=threads) for k, config in configs.items()})


def play_here(num_adversaries: int, rounds: int) -> list[Metrics]:
    return _games[num_adversaries].play(rounds)


def play_apart(num_adversaries: int, rounds: int) -> tuple[float, float, int, int]:
    """Rounds with a clock on each part: seconds of a round in one process, seconds of one in which each player has cores of its
    own, and the bytes of a release and of a reply.

    With cores of its own an adversary learns while the privatizer makes its step and the next codes. A round then takes
    the longer of codes + slowest answer + step and an adversary's answer + learning.
    """
    game = _games[num_adversaries]
    seats = cast(list[Any], list(game.seats.values()))
    sequential, critical, sizes = [], [], (0, 0)
    for round in range(game.round, game.round + rounds):
        release, release_s = timed(game.privatizer.release, round)
        answers = [timed(seat.respond, release) for seat in seats]
        _, utility_s = timed(game.privatizer.utility, release)
        _, update_s = timed(game.privatizer.update, [feedback for feedback, _ in answers])
        work = [(respond_s, timed(seat.finish_learning)[1]) for seat, (_, respond_s) in zip(seats, answers, strict=True)]
        sequential.append(release_s + utility_s + update_s + sum(r + learn for r, learn in work))
        path = release_s + max(utility_s, *(r for r, _ in work)) + update_s
        critical.append(max(path, *(r + learn for r, learn in work)))
        sizes = num_bytes(release), num_bytes(answers[0][0])
    game.round += rounds
    return statistics.median(sequential), statistics.median(critical), *sizes


def timed(work: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What it returns, and its seconds."""
    started = time.perf_counter()
    return work(*args), time.perf_counter() - started


def num_bytes(message: Release | Feedback) -> int:
    """Size of a message as Ray pickles it: protocol 5, arrays beside the pickle."""
    from ray.cloudpickle import cloudpickle

    beside: list[Any] = []
    pickled = cloudpickle.dumps(message, protocol=5, buffer_callback=beside.append)
    return len(pickled) + sum(len(buffer.raw()) for buffer in beside)


# Adversaries that sleep


class SleepingAdversary:
    """A seat that takes some time for nothing."""

    def __init__(self, name: str, seconds: float = SLEEP_S) -> None:
        self.name, self.seconds = name, seconds

    def respond(self, release: Release) -> Feedback:
        time.sleep(self.seconds)
        return Feedback(name=self.name, round=release.round, grad_z=np.zeros_like(release.z), r2=0.0, metrics={"mse": 0.0})


class IdlePrivatizer:
    """A privatizer that computes nothing: what is left of a round is the game's own overhead."""

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
    """GameHost with an idle privatizer."""

    def __init__(self, config: Config, actors: dict[str, Any]) -> None:
        from cpgan_ray.actors.answers import gather, share
        from cpgan_ray.actors.players import RaySeat
        from cpgan_ray.game import Game

        seats = {name: RaySeat(actor) for name, actor in actors.items()}
        privatizer = cast(Any, IdlePrivatizer(config))
        self.game = Game(privatizer, seats, gather=lambda answers: gather(answers, deadline_s=60.0), share=share)

    def play(self, rounds: int) -> list[Metrics]:
        """The rounds' metrics, with the CPU seconds of this process in a round."""
        before = time.process_time()
        played = self.game.play(rounds)
        return [m | {"cpu_s": (time.process_time() - before) / rounds} for m in played]


def sleeping_round_s(s: Settings) -> float:
    """Median seconds of a round against adversaries that sleep."""
    import ray

    names = [f"sleeper{i}" for i in range(s.sleepers)]
    sleepers = {name: ray.remote(SleepingAdversary).options(num_cpus=0).remote(name) for name in names}
    try:
        return sleeping_rounds_s(s, sleepers)[0]
    finally:
        for actor in sleepers.values():
            ray.kill(cast(Any, actor))


def sleeping_rounds_s(s: Settings, sleepers: dict[str, Any]) -> tuple[float, float]:
    """Median seconds of a round of a host of their own against these actors, and its CPU seconds."""
    import ray

    config = Config(k=s.k, batch_size=s.batch_size, adversaries={name: RidgeConfig() for name in sleepers})
    host = ray.remote(IdleHost).options(num_cpus=0).remote(config, sleepers)
    ray.get(host.play.remote(s.warmup))
    played = ray.get(host.play.remote(s.repeats * s.rounds))
    ray.kill(cast(Any, host))
    return statistics.median(m["time/round_s"] for m in played), played[0]["cpu_s"]


def measure_orchestration(s: Settings, folder: Path) -> dict[str, Any]:
    """Median round of K adversaries, spread over the nodes, as a multiple of the slowest one's own time, and the CPU time that it
    costs the privatizer's process. Here nodes and adversaries have this machine's cores between them: with machines of their own
    a round takes the slowest one's time and at most that CPU time."""
    import ray

    from cpgan_ray.chaos import local_cluster

    result: dict[str, Any] = {}
    with local_cluster() as cluster:
        for _ in range(s.nodes):
            cluster.add_node(num_cpus=max(s.crowds) // s.nodes + 1)
        crowd = {}
        for i in range(max(s.crowds)):
            seconds = SLEEPS_S[i % len(SLEEPS_S)]
            crowd[f"sleeper{i}"] = (
                ray.remote(SleepingAdversary).options(num_cpus=1, scheduling_strategy="SPREAD").remote("", seconds)
            )
        for count in s.crowds:
            round_s, cpu_s = sleeping_rounds_s(s, dict(itertools.islice(crowd.items(), count)))
            result[f"round_over_slowest_k{count}"] = round_s / max(SLEEPS_S[:count])
            result[f"privatizer_cpu_ms_k{count}"] = 1000 * cpu_s
    return result | {"nodes": s.nodes, "slowest_ms": 1000 * max(SLEEPS_S)}


# Speed


@contextmanager
def processes(configs: dict[int, Config], threads: set[int]) -> Iterator[dict[int, ProcessPoolExecutor]]:
    """Torch threads -> a process that holds all the games."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {n: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for n in sorted(threads)}
        for opened in [pool.submit(open_games, configs, n) for n, pool in pools.items()]:
            opened.result()
        yield pools


def take_turns(
    s: Settings, config: Config, pools: dict[int, ProcessPoolExecutor], schedules: Sequence[str] = ("sync",)
) -> dict[str, list[float]]:
    """Seconds per round, turn by turn, of each side: `sequential_<threads>` and `ray_<schedule>`."""
    from cpgan_ray.actors.driver import RayGame

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
            seconds[name].append(statistics.fmean(m["time/round_s"] for m in play(s.rounds + SETTLE)[SETTLE:]))
    return seconds


def play_in(pool: ProcessPoolExecutor, num_adversaries: int, rounds: int) -> list[Metrics]:
    return pool.submit(play_here, num_adversaries, rounds).result()


def play_on(game: "RayGame", rounds: int) -> list[Metrics]:
    return game.get(game.play(rounds))


def measure_speed(s: Settings, folder: Path) -> dict[str, Any]:
    """All that is in the table."""
    import ray

    from cpgan_ray.actors.cluster import connect
    from cpgan_ray.data import prepare
    from cpgan_ray.process import available_cpus

    cores, load = available_cpus(), os.getloadavg()[0]
    rounds = s.warmup + s.repeats * (s.rounds + SETTLE) + s.rounds
    synthetic(folder, rows=int(rounds * s.batch_size / 0.9) + 40, image_size=s.image_size)
    configs = {k: decoder_game(s, k, folder) for k in s.adversaries}
    prepare(configs[1], progress=False)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's actors step back for other processes: not for the other side
    connect(RuntimeConfig())
    with processes(configs, {1, cores}) as pools:
        seconds = {1: take_turns(s, configs[1], pools)}
        threads = min(pools, key=lambda n: statistics.median(seconds[1][f"sequential_{n}"]))
        most = s.adversaries[-1]
        for k in s.adversaries[1:]:
            schedules = ("sync", "stale1") if k == most else ("sync",)
            seconds[k] = take_turns(s, configs[k], {threads: pools[threads]}, schedules)
        sequential_s, critical_s, release, reply = pools[1].submit(play_apart, most, s.rounds).result()

    def speedup(k: int, side: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[k][f"sequential_{threads}"], seconds[k][side], strict=True))

    result: dict[str, Any] = {
        "speedup_k1": speedup(1, f"sequential_{cores}"),  # what `auto` chooses
        "speedup_k1_ray": speedup(1, "ray_sync"),
        **{f"speedup_k{k}": speedup(k, "ray_sync") for k in s.adversaries[1:]},
        f"speedup_k{most}_stale1": speedup(most, "ray_stale1"),
        f"critical_path_speedup_k{most}": sequential_s / critical_s,
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


# Checkpoints


def measure_checkpoints(s: Settings, folder: Path) -> dict[str, Any]:
    """What a snapshot of the whole game and its checkpoint on disk cost: the seconds that they take, and how much longer a turn
    with them is than one without, as shares of the time of `EVERY` rounds.

    Nothing is played meanwhile, which a run's driver does while it writes: this is the most that it may cost.
    """
    import ray

    from cpgan_ray.checkpoint import Checkpoints
    from cpgan_ray.process import available_cpus, set_up_process
    from cpgan_ray.training import running

    synthetic(folder, rows=FACES, image_size=s.image_size)
    changes = {"runtime.privatizer_cpus": 0.1, "runtime.adversary_cpus": 0.1, "recovery.snapshot_every": 10**9, "epochs": 10**6}
    config = override(preset("celeba"), {"data_dir": str(folder), "data.image_size": s.image_size, "k": s.k, **changes})
    os.environ.setdefault("RAY_worker_niceness", "0")
    set_up_process(threads=available_cpus())
    result: dict[str, Any] = {}
    for backend in ("local", "ray"):
        kept = Checkpoints(str(folder / f"checkpoints-{backend}"), keep=2)
        one = override(config, {"runtime.backend": backend})
        plain, watched, saving = [], [], []
        with running(one, None) as game, running(one, None) as saved:
            play_for(game, s.warmup)
            play_for(saved, s.warmup)
            for turn in range(s.repeats):
                for with_it in (True, False) if turn % 2 else (False, True):
                    seconds = timed(play_for, saved if with_it else game, s.rounds)[1]
                    if with_it:
                        saving.append(timed(save, saved, kept)[1])
                    (watched if with_it else plain).append(seconds)
        rounds_s = [EVERY / s.rounds * seconds for seconds in plain]
        longer = [a + b - c for a, b, c in zip(watched, saving, plain, strict=True)]
        result |= {
            f"round_ms_{backend}": 1000 * statistics.median(plain) / s.rounds,
            f"checkpoint_ms_{backend}": 1000 * statistics.median(saving),
            f"checkpoint_share_{backend}": statistics.median(a / b for a, b in zip(saving, rounds_s, strict=True)),
            f"longer_share_{backend}": statistics.median(a / b for a, b in zip(longer, rounds_s, strict=True)),
            f"checkpoint_mb_{backend}": max(path.stat().st_size for path in Path(kept.root).iterdir()) / 1e6,
        }
    ray.shutdown()
    return result | {"every": EVERY, "rounds": s.rounds, "repeats": s.repeats}


def play_for(game: "Running", rounds: int) -> None:
    """So many rounds, over ends of epochs."""
    done = 0
    while done < rounds:
        done += len(game.get(game.play(rounds - done)))


def save(game: "Running", checkpoints: "Checkpoints") -> None:
    checkpoints.write(game.snapshot())


# Memory


def role(process: psutil.Process) -> str:
    """What a process of the run is: the actor's class for Ray's workers, else the program's name."""
    title = process.cmdline()[0] if process.pid != os.getpid() and process.cmdline() else "driver"
    return title.removeprefix("ray::").split(".")[0].split()[0] if title.startswith("ray::") else Path(title).name


def own_mb(pid: int) -> float:
    """Resident memory of a process that is no file's and no shared memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def sample(peaks: dict[str, float], done: threading.Event) -> None:
    """Note every process of this one's tree until done."""
    me = psutil.Process()
    while not done.wait(SAMPLE_S):
        for process in [me, *me.children(recursive=True)]:
            try:
                name, mb = role(process), own_mb(process.pid)
            except (psutil.Error, OSError, IndexError):
                continue  # it has ended
            peaks[name] = max(peaks.get(name, 0.0), mb)


def measure_memory(s: Settings, folder: Path) -> dict[str, Any]:
    """Peak of own memory by role over preparing, one epoch against one adversary of each kind, and the attacks."""
    from cpgan_ray.data import prepare
    from cpgan_ray.training import train

    synthetic(folder, rows=s.memory, image_size=112)
    config = Config(
        preset="bench",
        data_dir=folder,
        output=folder / "output",
        epochs=1,
        data=DataConfig(dataset="celeba", image_size=112),
        privatizer=PrivatizerConfig(width=4, depth=4),
        adversaries={
            "ridge": RidgeConfig(),
            "ridge_epoch": RidgeConfig(fit="epoch"),
            "rbf": KernelConfig(bandwidths=(1.0,), penalties=(1e-3,)),
            "decoder": NeuralConfig(architecture="conv", width=4),
        },
        attacks=AttackConfig(
            max_rows=20_000, mlp_widths=(256,), epochs=1, doublings=0, restarts=1, kernel_features=1024, decoder_width=4, shares=()
        ),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
    )
    peaks: dict[str, float] = {}
    done = threading.Event()
    sampler = threading.Thread(target=sample, args=(peaks, done))
    sampler.start()
    try:
        _, prepare_s = timed(prepare, config)
        _, train_s = timed(train, config)
    finally:
        done.set()
        sampler.join()
    return {"rows": s.memory, "peak_own_mb": peaks, "prepare_s": prepare_s, "train_s": train_s}


def measure_series(s: Settings, folder: Path) -> dict[str, Any]:
    """Milliseconds of a forward and a backward pass, one thread; the sides take turns."""
    import torch

    from cpgan_ray.nets.lenet import lenet_stages
    from cpgan_ray.nets.paper_decoders import PaperDecoder
    from cpgan_ray.nets.same import TransposedSame
    from cpgan_ray.nets.series import SeriesConv2d

    class Plane(torch.nn.Module):
        """The same convolution with all columns of its kernel."""

        def __init__(self, conv: SeriesConv2d | TransposedSame) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(self.conv, SeriesConv2d):
                return torch.nn.Conv2d.forward(self.conv, x)
            return self.conv.conv(x)[:, :, : x.shape[2] * self.conv.stride[0], :1]

    def step_ms(net: torch.nn.Module, x: torch.Tensor) -> float:
        begun = time.perf_counter()
        net(x).square().mean().backward()
        return 1000 * (time.perf_counter() - begun)

    torch.set_num_threads(1)
    shape = (128, 1, 9)
    inputs = {"privatizer": torch.randn(s.batch_size, 9, 128, 1), "decoder": torch.randn(s.batch_size, 32)}
    nets = {"privatizer": lenet_stages(shape), "decoder": PaperDecoder(32, image_shape=shape).layers}
    found: dict[str, Any] = {}
    for name, net in nets.items():
        plane = torch.nn.Sequential(*(Plane(m) if isinstance(m, SeriesConv2d | TransposedSame) else m for m in net))
        sides = {"series": net, "plane": plane}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn, (side, this) in itertools.product(range(s.warmup + s.repeats * s.rounds), sides.items()):
            took = step_ms(this, inputs[name])
            if turn >= s.warmup:
                times[side].append(took)
        found |= {f"{name}_{side}_ms": statistics.median(some) for side, some in times.items()}
        found[f"{name}_speedup"] = statistics.median(b / a for a, b in zip(times["series"], times["plane"], strict=True))
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> None:
    s = cli.read_flags(Settings, Settings(), sys.argv[1:] if arguments is None else arguments, usage=__doc__ or "")
    with tempfile.TemporaryDirectory(prefix="cpgan-bench-") as folder:
        measure = measure_memory if s.memory else measure_checkpoints if s.checkpoints else measure_speed
        measure = measure_orchestration if s.nodes else measure_series if s.series else measure
        result = rounded(measure(s, Path(folder) / "data"))
    if s.json or s.memory:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:28} {value}" for name, value in result.items()))
    sys.stdout.flush()


if __name__ == "__main__":
    cli.run(main)

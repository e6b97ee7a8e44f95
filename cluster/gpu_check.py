"""Check on this machine's GPU what the project does on a GPU. Each check prints one line.

    make gpu-check
    ray job submit --working-dir . --entrypoint-num-gpus 1 -- python cluster/gpu_check.py      # on a node with a GPU

Exit status 0: all checks passed. 1: a check failed, or there is no CUDA device and nothing was checked.
"""

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cpgan_ray.common.types import Metrics
from cpgan_ray.config import Config, NeuralConfig, PrivatizerConfig, override
from cpgan_ray.config.presets import preset
from cpgan_ray.models.building import build_privatizer
from cpgan_ray.training.game import active_adversaries, play_in_process

ROUNDS = 3
TOLERANCE = 0.02
"""Allowed difference of a metric, absolute and relative: each device adds in its own order, and codes are rounded."""


def game_config(device: str, **fields: Any) -> Config:
    """The smoke preset without dropout, whose random numbers depend on the device."""
    config = override(preset("smoke"), {"runtime.device": device, "utility.dropout": 0.0, "epochs": 1, **fields})
    adversaries = {name: a for name, a in config.adversaries.items() if not (isinstance(a, NeuralConfig) and a.dropout)}
    return Config(**{**vars(config), "adversaries": adversaries})


def largest_difference(metrics: Sequence[Metrics], expected: Sequence[Metrics]) -> float:
    """The largest difference between the metrics of two games, in units of TOLERANCE; times do not count."""
    names = [name for name in metrics[0] if not name.startswith("time/")]
    pairs = [(a[name], b[name]) for a, b in zip(metrics, expected, strict=True) for name in names if name in a]
    return max(abs(x - y) / (TOLERANCE * (1 + abs(y))) for x, y in pairs)


def check_game(device: str, **fields: Any) -> str:
    """A game in this process on the device has the metrics of the game on the CPU."""
    metrics = play_in_process(game_config(device, **fields), threads=1).play(ROUNDS)
    expected = play_in_process(game_config("cpu", **fields), threads=1).play(ROUNDS)
    difference = largest_difference(metrics, expected)
    assert difference <= 1, f"metrics differ by {difference:.1f} times the tolerance"
    return f"metrics of {ROUNDS} rounds differ by {difference:.2f} times the tolerance"


def check_actors(device: str, **fields: Any) -> str:
    """Players as Ray actors, each with a fraction of one GPU, have the metrics of the game in one process."""
    import ray

    from cpgan_ray.distributed.driver import RayGame

    config = game_config(device, **fields)
    share = round(1 / (len(active_adversaries(config)) + 1) - 0.001, 3) if device == "cuda" else 0.0
    config = override(config, {"runtime.privatizer_gpus": share, "runtime.adversary_gpus": share})
    with RayGame(config) as players:
        gpus_in_use = ray.cluster_resources().get("GPU", 0.0) - ray.available_resources().get("GPU", 0.0)
        metrics = []
        while len(metrics) < ROUNDS:
            metrics += players.get(players.play(ROUNDS - len(metrics)))
    assert device != "cuda" or gpus_in_use > 0, "the actors hold no GPU"
    difference = largest_difference(metrics, play_in_process(config, threads=1).play(ROUNDS))
    assert difference <= 1, f"metrics differ by {difference:.1f} times the tolerance"
    actors = len(active_adversaries(config)) + 1
    return f"{actors} actors with {share} GPUs each, metrics differ by {difference:.2f} times the tolerance"


def check_bfloat16(device: str) -> str:
    """A privatizer's codes under bfloat16 autocast equal those of float32, within the precision of bfloat16."""
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "not supported by this device"
    torch.manual_seed(0)
    net = build_privatizer(PrivatizerConfig(), k=32, image_shape=(64, 64, 3)).to(device).train()
    x = torch.rand(64, 3, 64, 64, device=device) * 2 - 1
    with torch.no_grad():
        exact = net(x)
        with torch.autocast(device, dtype=torch.bfloat16):
            codes = net(x)
    error = float((codes.float() - exact).norm() / exact.norm())
    assert error < 0.1, f"relative error {error:.3f}"
    return f"relative error {error:.4f}"


def check_transfers(device: str) -> str:
    """Page-locked memory is copied to the device and back unchanged, without blocking."""
    x = torch.randint(0, 256, (512, 3, 64, 64), dtype=torch.uint8)
    x = x.pin_memory() if device == "cuda" else x
    back = x.to(device, non_blocking=True).to("cpu", non_blocking=False)
    assert torch.equal(x, back)
    assert device != "cuda" or x.is_pinned()
    return f"{x.numel() / 2**20:.1f} MiB"


def all_reduce_process(rank: int, world: int, device: str, rendezvous: str) -> None:
    """One process of an all-reduce."""
    device_name = f"cuda:{rank}" if device == "cuda" else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        x = torch.full((1000,), rank + 1.0, device=device_name)
        dist.all_reduce(x)
        assert bool((x == world * (world + 1) / 2).all())
    finally:
        dist.destroy_process_group()


def check_all_reduce(device: str) -> str:
    """NCCL (gloo on the CPU) sums over processes, one for each device."""
    world = torch.cuda.device_count() if device == "cuda" else 2
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(all_reduce_process, args=(world, device, str(Path(folder) / "rendezvous")), nprocs=world)  # pyright: ignore
    return f"{world} processes"


CHECKS: dict[str, Callable[[str], str]] = {
    "game": check_game,
    "actors": check_actors,
    "bfloat16": check_bfloat16,
    "transfers": check_transfers,
    "all-reduce": check_all_reduce,
}


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was checked", file=sys.stderr)
        return 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    failed = 0
    for name, check in CHECKS.items():
        started = time.perf_counter()
        try:
            verdict = f"passed: {check('cuda')}"
        except Exception:
            failed += 1
            verdict = f"FAILED\n{traceback.format_exc()}"
        print(f"{name:<12}{time.perf_counter() - started:6.1f} s  {verdict}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

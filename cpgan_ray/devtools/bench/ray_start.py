"""How long a local Ray takes to start and to end: as a job starts it, and with every process that Ray starts by default."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from cpgan_ray.devtools.bench.settings import Settings

SIDES = {"default": "contextlib.nullcontext", "needed": "cluster.only_needed_processes"}
CODE = """
import contextlib, json, time
import ray
from cpgan_ray.config import RuntimeConfig
from cpgan_ray.distributed import cluster
cluster.only_needed_processes = {side}
started = time.perf_counter()
cluster.connect(RuntimeConfig())
ready = time.perf_counter()
ray.shutdown()
print(json.dumps([ready - started, time.perf_counter() - ready]))
"""


def measure_ray_start(s: Settings, folder: Path) -> dict[str, Any]:
    """Medians over the turns, in seconds, and the ratio of the two sides' sums. The sides take turns, each in a new process."""
    seconds: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for _ in range(s.ray_starts):
        for side, code in SIDES.items():
            command = [sys.executable, "-c", CODE.format(side=code)]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[side].append(json.loads(ran.stdout.splitlines()[-1]))
    medians = {
        f"{side}_{name}_s": round(statistics.median(turn[i] for turn in measured), 2)
        for side, measured in seconds.items()
        for i, name in enumerate(("start", "end"))
    }
    ratios = [sum(needed) / sum(default) for needed, default in zip(seconds["needed"], seconds["default"], strict=True)]
    return medians | {"ratio": round(statistics.median(ratios), 2)}

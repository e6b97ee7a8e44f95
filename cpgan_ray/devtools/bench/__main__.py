"""The command line of the benchmark: measures what the flags select, and prints it."""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cpgan_ray import cli
from cpgan_ray.devtools import bench
from cpgan_ray.devtools.bench.settings import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    s = cli.read_flags(Settings, Settings(), sys.argv[1:] if arguments is None else arguments, usage=bench.__doc__ or "")
    with tempfile.TemporaryDirectory(prefix="cpgan-bench-") as folder:
        result = round_values(select_measurement(s)(s, Path(folder) / "data"))
    if s.json or s.memory:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:28} {value}" for name, value in result.items()))
    sys.stdout.flush()


def select_measurement(s: Settings) -> Callable[[Settings, Path], dict[str, Any]]:
    """The function of the selected measurement; only its module is imported."""
    if s.serve:
        from cpgan_ray.devtools.bench.serving import measure_serving as measure
    elif s.nodes:
        from cpgan_ray.devtools.bench.sleepers import measure_orchestration as measure
    elif s.ray_starts:
        from cpgan_ray.devtools.bench.ray_start import measure_ray_start as measure
    elif s.process_starts:
        from cpgan_ray.devtools.bench.process_start import measure_process_start as measure
    elif s.layers:
        from cpgan_ray.devtools.bench.layers import measure_layers as measure
    elif s.memory:
        from cpgan_ray.devtools.bench.memory import measure_memory as measure
    elif s.tournament:
        from cpgan_ray.devtools.bench.tournament import measure_tournament as measure
    elif s.checkpoints:
        from cpgan_ray.devtools.bench.checkpoints import measure_checkpoints as measure
    else:
        from cpgan_ray.devtools.bench.rounds import measure_speed as measure
    return measure


def round_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: round_values(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    cli.run(main)

"""The command line of the fault test."""

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpgan_ray import cli
from cpgan_ray.config import override
from cpgan_ray.devtools import chaos
from cpgan_ray.devtools.chaos.kills import crash_nodes, kill_drivers, kill_players, unbroken
from cpgan_ray.devtools.chaos.settings import GAME, JOB, RECOVERY, TRACKING, Settings, Tally
from cpgan_ray.errors import InputError


def main(arguments: Sequence[str] | None = None) -> None:
    s = cli.read_flags(Settings, Settings(), sys.argv[1:] if arguments is None else arguments, usage=chaos.__doc__ or "")
    with tempfile.TemporaryDirectory(prefix="cpgan-chaos-") as folder:
        result = run_serving_test(s, Path(folder)) if s.serve else run_fault_test(s, Path(folder))
    if s.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:20} {value}" for name, value in result.items()))
    sys.stdout.flush()
    if failed(result):
        sys.exit(cli.FAILED)


def failed(result: dict[str, Any]) -> bool:
    """Whether a disturbance has changed a result, or has lost anything."""
    names = ("wrong", "failed", "lost_checkpoints", "running_left")
    return not result.get("identical", True) or any(result.get(name) for name in names)


def run_serving_test(s: Settings, folder: Path) -> dict[str, Any]:
    """Disturbs the service while clients ask it, and returns the results."""
    from cpgan_ray.devtools.chaos.serving import run_serving_test

    return run_serving_test(s, folder)


def run_fault_test(s: Settings, folder: Path) -> dict[str, Any]:
    """Runs all games with kills, and returns the results."""
    if s.drivers and not JOB.is_file():
        raise InputError(f"{JOB} is missing: kills of drivers need a checkout of the project; give --drivers 0")
    flags = [*GAME.split(), *RECOVERY.split(), *TRACKING.split(), "--cache-dir", str(folder / "cache")]
    config = override(cli.parse(flags, default="smoke", description=""), {"recovery.num_spares": s.spares})
    expected = unbroken(config)
    tally = Tally()
    kill_players(config, expected, s, tally)
    kill_drivers(flags, expected, s, tally, folder)
    crash_nodes(config, expected, s, tally)
    seconds = {kind: [event.seconds for event in events] for kind, events in tally.events.items()}
    return {
        "kills": sum(tally.struck.values()),
        "identical": tally.different == 0,
        "lost_checkpoints": tally.lost_checkpoints,
        "running_left": tally.running_left,
        "recovery_s": spread(seconds["players"]),
        "node_recovery_s": spread(seconds["nodes"]),
        "struck": tally.struck,
        "games": tally.games,
        "spares": s.spares,
    }


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    return {"median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)} if seconds else None


if __name__ == "__main__":
    cli.run(main)

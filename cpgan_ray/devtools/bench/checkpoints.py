"""Measures the cost of a checkpoint in a game of CelebA's size."""

import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpgan_ray.config import override
from cpgan_ray.config.presets import preset
from cpgan_ray.devtools.bench.material import synthetic, timed
from cpgan_ray.devtools.bench.settings import Settings

if TYPE_CHECKING:
    from cpgan_ray.pipelines.session import GameSession
    from cpgan_ray.training.checkpoint import Checkpoints

FACES, EVERY = 4_000, 50
"""Number of pictures, and number of rounds between two checkpoints."""


def measure_checkpoints(s: Settings, folder: Path) -> dict[str, Any]:
    """Cost of a snapshot of the whole game and its checkpoint on disk: their time, and how much longer a turn takes with them than
    without them, both also as shares of the time of `EVERY` rounds.

    No rounds are played while a checkpoint is written, unlike in a run: the result is an upper bound of the cost.
    """
    import ray

    from cpgan_ray.common.process import available_cpus, set_up_process
    from cpgan_ray.pipelines.session import open_session
    from cpgan_ray.training.checkpoint import Checkpoints

    synthetic(folder, rows=FACES, image_size=s.image_size)
    changes = {"runtime.privatizer_cpus": 0.1, "runtime.adversary_cpus": 0.1, "recovery.snapshot_every": 10**9, "epochs": 10**6}
    config = override(preset("celeba"), {"data_dir": str(folder), "data.image_size": s.image_size, "k": s.k, **changes})
    os.environ.setdefault("RAY_worker_niceness", "0")
    set_up_process(threads=available_cpus())
    result: dict[str, Any] = {}
    for backend in ("local", "ray"):
        checkpoints = Checkpoints(str(folder / f"checkpoints-{backend}"), keep=2)
        backend_config = override(config, {"runtime.backend": backend})
        plain, with_checkpoint, saving = [], [], []
        with open_session(backend_config, None) as game, open_session(backend_config, None) as saved:
            play_for(game, s.warmup)
            play_for(saved, s.warmup)
            for turn in range(s.repeats):
                for saves in (True, False) if turn % 2 else (False, True):
                    seconds = timed(play_for, saved if saves else game, s.rounds)[1]
                    if saves:
                        saving.append(timed(save, saved, checkpoints)[1])
                    (with_checkpoint if saves else plain).append(seconds)
        rounds_s = [EVERY / s.rounds * seconds for seconds in plain]
        longer = [a + b - c for a, b, c in zip(with_checkpoint, saving, plain, strict=True)]
        result |= {
            f"round_ms_{backend}": 1000 * statistics.median(plain) / s.rounds,
            f"checkpoint_ms_{backend}": 1000 * statistics.median(saving),
            f"checkpoint_share_{backend}": statistics.median(a / b for a, b in zip(saving, rounds_s, strict=True)),
            f"longer_share_{backend}": statistics.median(a / b for a, b in zip(longer, rounds_s, strict=True)),
            f"checkpoint_mb_{backend}": max(path.stat().st_size for path in Path(checkpoints.root).iterdir()) / 1e6,
        }
    ray.shutdown()
    return result | {"every": EVERY, "rounds": s.rounds, "repeats": s.repeats}


def play_for(game: "GameSession", rounds: int) -> None:
    """Plays `rounds` rounds, also past the end of an epoch."""
    done = 0
    while done < rounds:
        done += len(game.get(game.play(rounds - done)))


def save(game: "GameSession", checkpoints: "Checkpoints") -> None:
    checkpoints.write(game.snapshot())

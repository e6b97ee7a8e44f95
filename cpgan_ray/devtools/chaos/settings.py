"""Settings and counts of the fault test."""

from dataclasses import dataclass, field
from pathlib import Path

from cpgan_ray.common.types import Event
from cpgan_ray.errors import InputError

JOB = Path(__file__).parents[3] / "jobs" / "train_celeba.py"
PLAYERS = ("ray::AdversaryActor", "ray::GameHost")
GAME = "smoke --epochs 24 --data.image-size 16 --batch-size 80 --privatizer.depth 2 --attacks.names ridge --runtime.backend ray"
RECOVERY = "--recovery.snapshot-every 7 --recovery.checkpoint-every 11 --recovery.max-failures 1000 --recovery.backoff-s 0.1"
TRACKING = "--tracking.no-log-models --tracking.no-system-metrics"
KILLS_PER_GAME = 5
FAST_HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""System configuration of Ray by which a node counts as lost after 3 s instead of 15 s."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    kills: int = 50
    """Kills of random players at random moments."""
    drivers: int = 10
    """Kills of the driver, each followed by --resume."""
    nodes: int = 5
    """Crashes of a node of a local cluster."""
    spares: int = 0
    """Spare adversary actors."""
    seed: int = 0
    """Seed of the random moments and victims."""
    json: bool = False
    """End with one line of JSON instead of a table."""

    def __post_init__(self) -> None:
        for name in ("kills", "drivers", "nodes", "spares"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0")


@dataclass
class Tally:
    """Counts of the fault test so far."""

    struck: dict[str, int] = field(default_factory=lambda: {"players": 0, "drivers": 0, "nodes": 0})
    games: int = 0
    different: int = 0  # games whose weights differ from the undisturbed game
    lost_checkpoints: int = 0
    running_left: int = 0
    events: dict[str, list[Event]] = field(default_factory=lambda: {"players": [], "nodes": []})

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
MAX_CLIENTS, MAX_SECONDS = 256, 1e6
"""Each client is a thread with two connections; a replica allows 512."""
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
    serve: bool = False
    """Disturb the service of `jobs/serve.py` instead, with its two replicas, while clients ask it."""
    replica_kills: int = 20
    """With `--serve`: kills of random replicas at random moments, each as soon as both replicas answer."""
    redeployments: int = 5
    """With `--serve`: changes between two bundles with other codes and other answers, at random moments."""
    clients: int = 16
    """With `--serve`: clients that ask all the time."""
    seconds: float = 300.0
    """With `--serve`: how long they ask."""
    seed: int = 0
    """Seed of the random moments and victims."""
    json: bool = False
    """End with one line of JSON instead of a table."""

    def __post_init__(self) -> None:
        for name in ("kills", "drivers", "nodes", "spares", "replica_kills", "redeployments"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 1 <= self.clients <= MAX_CLIENTS:
            raise InputError(f"clients is {self.clients}; it must be 1 to {MAX_CLIENTS}")
        if not 0 < self.seconds <= MAX_SECONDS:
            raise InputError(f"seconds is {self.seconds}; it must be above 0 and at most {MAX_SECONDS:g}")


@dataclass
class Tally:
    """Counts of the fault test so far."""

    struck: dict[str, int] = field(default_factory=lambda: {"players": 0, "drivers": 0, "nodes": 0})
    games: int = 0
    different: int = 0  # games whose weights differ from the undisturbed game
    lost_checkpoints: int = 0
    running_left: int = 0
    events: dict[str, list[Event]] = field(default_factory=lambda: {"players": [], "nodes": []})

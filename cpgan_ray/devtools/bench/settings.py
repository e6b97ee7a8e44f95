"""Settings of the benchmark."""

from dataclasses import dataclass
from pathlib import Path

from cpgan_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The defaults are the settings of the reported numbers; smaller values are only for tests."""

    json: bool = False
    """End with one line of JSON instead of a table."""
    checkpoints: bool = False
    """Measure checkpoints instead: turns of `rounds` rounds of preset celeba on procedural faces, with and without a checkpoint."""
    layers: bool = False
    """Measure this package's layers instead, compared with torch's layers."""
    memory: int = 0
    """Measure memory instead, with this number of synthetic 112 x 112 pictures."""
    nodes: int = 0
    """Measure orchestration instead: rounds of 1 to 64 sleeping adversaries, spread over this number of nodes on this machine."""
    ray_starts: int = 0
    """Measure the start and the end of a local Ray instead, in this number of turns of each variant."""
    process_starts: int = 0
    """Measure the CPU time of a process until it can compute instead, in this number of turns of each variant."""
    serve: bool = False
    """Measure the service instead, next to plain uvicorn and `mlflow models serve`."""
    serve_bundle: Path | None = None
    """Bundle that is served and whose bytes are measured; default: one of preset `faces`' networks without training."""
    serve_clients: tuple[int, ...] = (1, 16, 64)
    """Clients of the service, one number after the other."""
    serve_codes: tuple[int, ...] = (1, 32, 256)
    """Codes in a request, one number after the other."""
    serve_seconds: float = 3.0
    """Seconds of each cell."""
    serve_replicas: int = 2
    """Processes of each server."""
    tournament: Path | None = None
    """Measure the attacks of a tournament instead, one after the other: the output folder of a finished run, whose codes are
    attacked with the settings of the run. Nothing is written."""
    tournament_attacks: tuple[str, ...] = ()
    """Names of the attacks that are measured; default: all of the run."""
    tournament_variant: str = "leaked"
    """Variant of the attacks that are measured."""
    crowds: tuple[int, ...] = (1, 8, 16, 32, 64)
    """Numbers of adversaries that are spread over the nodes, one after the other."""
    repeats: int = 6
    """Turns of each variant."""
    rounds: int = 10
    """Rounds per turn."""
    warmup: int = 6
    """Rounds of each variant before its first turn."""
    image_size: int = 64
    """Side of the pictures, in pixels."""
    batch_size: int = 128
    """Pictures per round."""
    k: int = 128
    """Length of the code."""
    width: int = 8
    """Channels of the encoder's first stage and of the decoders' second-to-last stage; 4 stages double them up to 8 times that
    number."""
    adversaries: tuple[int, ...] = (1, 2, 4)
    """Number of decoders in each game; the last game is also played with schedule `stale1`."""
    sleepers: int = 16
    """Adversaries that sleep 20 ms instead of computing."""

    def __post_init__(self) -> None:
        for name in ("repeats", "rounds", "warmup", "batch_size", "k", "width", "sleepers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, largest in (("serve_clients", 256), ("serve_codes", 256)):
            values = getattr(self, name)
            if not values or not 1 <= min(values) <= max(values) <= largest:
                raise InputError(f"{name} is {values}; it must be one or more numbers from 1 to {largest}")
        if not 1 <= self.serve_replicas <= 64:
            raise InputError(f"serve_replicas is {self.serve_replicas}; it must be 1 to 64")
        if not 0 < self.serve_seconds <= 3600:
            raise InputError(f"serve_seconds is {self.serve_seconds}; it must be above 0 and at most 3600")
        if self.serve_bundle is not None and not self.serve:
            raise InputError("serve_bundle is only for the measurement of the service: add --serve")
        if self.tournament is None and self.tournament_attacks:
            raise InputError("tournament_attacks is only for the measurement of a tournament: add --tournament RUN")
        for name in ("nodes", "ray_starts", "process_starts"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not self.crowds or min(self.crowds) < 1:
            raise InputError(f"crowds is {self.crowds}; it must be one or more numbers of at least 1")
        if len(self.adversaries) < 2 or self.adversaries[0] != 1:
            raise InputError(f"adversaries is {self.adversaries}; it must be 1 and one or more larger numbers")

"""What crosses a process border during a game. Arrays are numpy; those that arrive through Ray are read-only.

A release costs 4 k + 13 bytes per picture, a feedback 4 k: pictures never travel.
"""

from dataclasses import dataclass

import numpy as np

Metrics = dict[str, float]
"""Metric name (a path, defined in metrics.py, explained in docs/outputs.md) -> value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Which pictures of a split, and how. Made by `data.base.batch`; every player reads the pictures from its own node."""

    rows: np.ndarray  # (B,) int64, row numbers in the split
    mirrored: np.ndarray  # (B,) bool
    shift: np.ndarray  # (B, 2) int16, pixels down and to the right, after mirroring


@dataclass(frozen=True)
class Release:
    """The codes of a round's pictures. Made by PrivatizerWorker.release; read by every AdversaryWorker."""

    round: int
    batch: Batch
    z: np.ndarray  # (B, k) float32
    split: str = "train"  # which split the rows are of


@dataclass(frozen=True)
class Feedback:
    """An adversary's answer to a release. Made by AdversaryWorker.respond; read by PrivatizerWorker.update."""

    name: str  # of the adversary
    round: int
    grad_z: np.ndarray  # (B, k) float32: d(privacy term of this adversary) / dz
    r2: float  # share of variance recovered on rows that the adversary was not fitted on
    metrics: Metrics


@dataclass(frozen=True)
class Outcome:
    """What a finished game hands to the evaluation. Made by PrivatizerWorker.outcome; read by the driver."""

    codes: dict[str, np.ndarray]  # (N, k) float32 of `train`, `val`, `test`; `train_mirrored`, `val_mirrored` where there are such
    logits: dict[str, np.ndarray]  # (N, L or C) float32 of `val`, `test`
    programs: dict[str, bytes]  # torch.export programs: `privatizer`, `utility_head`


@dataclass(frozen=True, kw_only=True)
class Event:
    """A loss that the game survived. Made by actors.Crew and actors.RayGame; logged by the driver."""

    round: int  # where the game stood
    replayed: int  # rounds that were played again
    players: tuple[str, ...]  # who was replaced; empty: an object was lost
    cause: str
    seconds: float  # until the replacements were there


@dataclass(frozen=True)
class Played:
    """Some rounds. Made by actors.GameHost.play; read by the driver."""

    metrics: list[Metrics]  # of each round, with its `round`
    events: tuple[Event, ...]

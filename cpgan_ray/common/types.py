"""Messages between the processes of a game. Arrays are numpy arrays; arrays that arrive through Ray are read-only.

A release costs 4 k + 13 bytes per picture, a feedback 4 k: pictures never travel.
"""

from dataclasses import dataclass

import numpy as np

Metrics = dict[str, float]
"""Metric name (a path, defined in metric_names.py, explained in docs/outputs.md) -> value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Row numbers and augmentation of a batch. Made by `data.batching`; every player reads the pictures from its own node."""

    rows: np.ndarray  # (B,) int64, row numbers in the split
    mirrored: np.ndarray  # (B,) bool
    shift: np.ndarray  # (B, 2) int16, pixels down and to the right, after mirroring

    def __getitem__(self, rows: slice | np.ndarray) -> "Batch":
        return Batch(rows=self.rows[rows], mirrored=self.mirrored[rows], shift=self.shift[rows])


@dataclass(frozen=True)
class Release:
    """The codes of a round's pictures. Made by PrivatizerWorker.release; read by every AdversaryWorker."""

    round: int
    batch: Batch
    z: np.ndarray  # (B, k) float32
    split: str = "train"  # the split of the rows


@dataclass(frozen=True)
class Feedback:
    """An adversary's response to a release. Made by AdversaryWorker.respond; read by PrivatizerWorker.update."""

    name: str  # name of the adversary
    round: int
    grad_z: np.ndarray  # (B, k) float32: d(privacy term of this adversary) / dz
    r2: float  # share of variance recovered on rows that the adversary was not fitted on
    metrics: Metrics


@dataclass(frozen=True)
class Outcome:
    """The result of a finished game, for the evaluation. Made by PrivatizerWorker.outcome; read by the driver."""

    codes: dict[str, np.ndarray]  # (N, k) float32 of all sets of data/views.py
    logits: dict[str, np.ndarray]  # (N, num_logits) float32 of the same sets
    programs: dict[str, bytes]  # torch.export programs: `privatizer`, `utility_head`


@dataclass(frozen=True, kw_only=True)
class Event:
    """A failure that the game recovered from. Made by AdversaryPool and RayGame; logged by the driver."""

    round: int  # the round at the time of the failure
    replayed: int  # rounds that were played again
    players: tuple[str, ...]  # the replaced players; empty if only an object was lost
    cause: str
    seconds: float  # until the replacements were ready


@dataclass(frozen=True)
class PlayedRounds:
    """The metrics and failures of consecutive rounds. Made by GameHost.play; read by the driver."""

    metrics: list[Metrics]  # one dict per round, which includes the number `round`
    events: tuple[Event, ...]

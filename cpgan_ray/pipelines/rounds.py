"""The rounds of a run: played in chunks and logged, with checkpoints and callbacks between them."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.signals import defer_signals
from cpgan_ray.common.types import Metrics
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection, scale
from cpgan_ray.evaluation.attacks import ridge_attack
from cpgan_ray.evaluation.fitting import EvaluationContext
from cpgan_ray.evaluation.quick import QUICK_ROWS, quick_r2
from cpgan_ray.evaluation.report.panels import panel, reconstruct_rows
from cpgan_ray.pipelines.session import CHUNK_S, GameSession
from cpgan_ray.tracking import Console, Tracker
from cpgan_ray.training.checkpoint import Checkpoints, Snapshot

logger = logging.getLogger(__name__)

PANEL_PICTURES = 10


@dataclass(frozen=True)
class PeriodicCallback:
    """A function to call every so many rounds, while no round is played. It gets the game and the metrics of the last round."""

    every: int
    act: Callable[[GameSession, Metrics], None]

    def due(self, done: int) -> bool:
        return self.every > 0 and done % self.every == 0


class CheckpointWriter:
    """Writes checkpoints when they are due. If one cannot be written, a warning is logged and the earlier checkpoints stay."""

    def __init__(self, checkpoints: Checkpoints, every: int) -> None:
        self.checkpoints, self.every = checkpoints, every
        self.last: int | None = None

    def due(self, done: int, *, last: bool) -> bool:
        """Whether a checkpoint is due after `done` rounds. last: whether this may be the last opportunity."""
        if self.last is None:
            self.last = done - done % self.every if self.every else done
        return self.every > 0 and (last or done - self.last >= self.every)

    def write(self, snapshot: Snapshot) -> None:
        self.last = snapshot.round
        try:
            self.checkpoints.write(snapshot)
        except OSError as e:
            logger.warning(f"checkpoint of round {snapshot.round} not written to {self.checkpoints.location} ({redacted(str(e))})")


def play(
    game: GameSession,
    tracker: Tracker,
    *,
    names: Sequence[str],
    callbacks: Sequence[PeriodicCallback],
    writer: CheckpointWriter,
    done: int = 0,
) -> None:
    """Play all rounds from `done` on, and log them in chunks. The next chunk is played while the last one is logged, except when a
    callback is due.

    After a signal to stop, it finishes the current chunk, writes a checkpoint and ends the process.
    """
    if done == game.total_rounds:
        return
    console = Console(total_rounds=game.total_rounds, rounds_per_epoch=game.rounds_per_epoch, names=names, done=done)
    pending = game.play(1)
    with defer_signals() as stop, closing(console):
        while done < game.total_rounds:
            rounds = game.get(pending)
            done = int(rounds[-1]["round"]) + 1
            chunk = max(1, round(CHUNK_S * len(rounds) / sum(m["time/round_s"] for m in rounds)))
            over, stopping = done == game.total_rounds, stop.requested  # read once, because a signal may arrive at any line
            due = [callback for callback in callbacks if callback.due(done) and not over]
            snapshot = game.snapshot() if writer.due(done, last=over or stopping or game.warned()) else None
            if not (over or due or stopping):
                pending = game.play(chunk)
            for values in rounds:
                tracker.log({name: value for name, value in values.items() if name != "round"}, step=int(values["round"]))
            console.show(rounds)
            tracker.log_events(game.events)
            game.events.clear()
            if snapshot is not None:
                tracker.settle()  # the rounds before a checkpoint must be logged before it is written
                writer.write(snapshot)
            if stopping:
                stop.now()
            for callback in due:
                callback.act(game, rounds[-1])
            if due:
                pending = game.play(chunk)


def panel_drawer(config: Config, dataset: Dataset, tracker: Tracker) -> Callable[[GameSession, Metrics], None]:
    """A callback during training that logs test pictures and their reconstructions by a ridge attack."""

    def draw(game: GameSession, last: Metrics) -> None:
        basis = projection(dataset, components=DEFAULT_COMPONENTS)
        data = EvaluationContext(dataset, game.outcome().codes, config.attacks, config.seed).data("leaked")
        rows = np.arange(min(PANEL_PICTURES, len(dataset.test)))
        images = {
            "original": scale(dataset.test.take(rows)),
            "defended,\nridge attack": reconstruct_rows(data, ridge_attack(data, config.attacks), rows, np.asarray(basis.mean)),
        }
        tracker.log_panel(panel(images, dataset), step=int(last["round"]))

    return draw


def quick_attacker(
    config: Config, dataset: Dataset, tracker: Tracker, report: Callable[[Metrics], None]
) -> Callable[[GameSession, Metrics], None]:
    """A callback during training that runs a quick fresh attack on the current codes, logs its R2, and calls `report` with `epoch`,
    both validation accuracies of `utility/` and `privacy/quick_r2`."""

    def attack(game: GameSession, last: Metrics) -> None:
        round = int(last["round"])
        r2 = quick_r2(game.sample(QUICK_ROWS), dataset, seed=config.seed)
        tracker.log({"privacy/quick_r2": r2}, step=round)
        tracker.settle()  # the next call may end this process, and a stopped trial must show why
        epoch = (round + 1) // game.rounds_per_epoch
        utility = {name: last[name] for name in ("utility/val_accuracy", "utility/val_balanced_accuracy")}
        report({"epoch": epoch, **utility, "privacy/quick_r2": r2})

    return attack

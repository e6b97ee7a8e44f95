"""The game: one privatizer, its adversaries, and the loop. Imports no Ray: the handles decide where the adversaries run."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from cpgan_ray.common.registry import remember
from cpgan_ray.common.types import Feedback, Metrics, Release
from cpgan_ray.config import Config
from cpgan_ray.errors import LostError
from cpgan_ray.training.checkpoint import Snapshot
from cpgan_ray.training.players import AdversaryWorker, PrivatizerWorker

T = TypeVar("T")


class AdversaryHandle(Protocol):
    """An adversary as the game sees it. Each method starts the work; `gather` turns what it returned into the answer.

    AdversaryWorker is a handle itself (its answer is what it returned); actors.RaySeat returns object references.
    """

    def respond(self, release: Release) -> Any: ...
    def learn(self, release: Release) -> Any: ...
    def respond_without_learning(self, release: Release) -> Any: ...
    def accumulate(self, release: Release) -> Any: ...
    def solve(self) -> Any: ...
    def score(self, release: Release) -> Any: ...
    def weights(self) -> Any: ...
    def snapshot(self) -> Any: ...
    def restore(self, snapshot: bytes) -> Any: ...


def gather_in_process(answers: Sequence[Any]) -> list[Any]:
    """In one process the answers are there already."""
    return list(answers)


class Game:
    """The loop over rounds. `share` prepares a release for several handles (an object reference on Ray), `gather` waits for their
    replies.

    `replace_failed` is called when a player is lost: it replaces the actors behind the handles, or raises. Then all players return
    to the last snapshot, and the rounds since are played again: the outcome is that of a game in which nothing was lost.
    """

    def __init__(
        self,
        privatizer: PrivatizerWorker,
        handles: Mapping[str, AdversaryHandle],
        *,
        gather: Callable[[Sequence[Any]], list[Any]] = gather_in_process,
        share: Callable[[Release], Any] = lambda release: release,
        replace_failed: Callable[[LostError], None] | None = None,
        keep: bool = False,
    ) -> None:
        """keep: take snapshots even if nobody mends, for whoever writes checkpoints."""
        self.config: Config = privatizer.config
        self.privatizer, self.handles, self.gather, self.share, self.replace_failed = (
            privatizer,
            dict(handles),
            gather,
            share,
            replace_failed,
        )
        self.rounds_per_epoch = privatizer.rounds_per_epoch
        self.total_rounds = self.rounds_per_epoch * self.config.epochs
        self.round = 0
        self.best_accuracy = 0.0
        self.val_accuracy: float | None = None
        self.keeping = keep or replace_failed is not None
        self.last_snapshot: Snapshot | None = None
        self.epoch_started = time.perf_counter()
        self.inflight: tuple[Release, list[Any]] | None = None
        self.streamed = [
            name for name, c in self.config.adversaries.items() if name in self.handles and getattr(c, "fit", None) == "epoch"
        ]

    def play(self, rounds: int) -> list[Metrics]:
        """Up to `rounds` more rounds, but not past the end of an epoch; the metrics of each, with its `round`.

        The last round of an epoch carries the validation metrics. `epochwise` plays whole epochs.
        """
        stop = min(self.round + rounds, (self.round // self.rounds_per_epoch + 1) * self.rounds_per_epoch, self.total_rounds)
        epochwise = self.config.game.schedule == "epochwise"
        if epochwise:
            stop = min((self.round // self.rounds_per_epoch + 1) * self.rounds_per_epoch, self.total_rounds)
        start, played = self.round, {}
        while self.round < stop:
            round = self.round
            try:
                if self.keeping and self.due():
                    self.snapshot()
                played[round] = {"round": float(round)} | self.play_round()
            except LostError as lost:
                self.rollback(lost)
        return [played[round] for round in range(start, stop)]

    def play_round(self) -> Metrics:
        """The next round, with what belongs to it at the beginning or the end of an epoch."""
        started = time.perf_counter()
        if self.round % self.rounds_per_epoch == 0:
            self.begin_epoch()
        metrics = SCHEDULES[self.config.game.schedule](self)
        metrics["time/round_s"] = time.perf_counter() - started
        self.round += 1
        if self.round % self.rounds_per_epoch == 0:
            metrics |= self.end_epoch()
        return metrics

    def due(self) -> bool:
        """Whether a snapshot is to be taken before the next round."""
        if self.last_snapshot is None:
            return True
        return self.at_rest and self.round - self.last_snapshot.round >= self.config.recovery.snapshot_every

    @property
    def at_rest(self) -> bool:
        """Whether the game can be left here: within an epoch `stale1` has codes in flight and `epochwise` an opponent."""
        return self.config.game.schedule == "sync" or self.round % self.rounds_per_epoch == 0

    def snapshot(self) -> Snapshot:
        """The whole game as it stands between two rounds, which is also what it would go back to; the last one kept where it is
        not at rest."""
        if not self.at_rest:
            assert self.last_snapshot is not None
            return self.last_snapshot
        names = list(self.handles)
        states = self.gather([self.handles[name].snapshot() for name in names])
        players = {"privatizer": self.privatizer.snapshot(), **dict(zip(names, states, strict=True))}
        self.last_snapshot = Snapshot(self.round, self.best_accuracy, self.val_accuracy, players)
        return self.last_snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """All players as they were."""
        self.inflight = None
        restored = [handle.restore(snapshot.players[name]) for name, handle in self.handles.items()]
        self.privatizer.restore(snapshot.players["privatizer"])
        self.gather(restored)
        self.round, self.best_accuracy, self.val_accuracy = snapshot.round, snapshot.best_accuracy, snapshot.val_accuracy
        self.last_snapshot, self.epoch_started = snapshot, time.perf_counter()

    def rollback(self, lost: LostError) -> None:
        """Mend what was lost, and go back to the last snapshot; again where somebody is lost on the way.

        Raises: LostError where nobody mends; what `replace_failed` raises when it gives up.
        """
        while self.replace_failed is not None and self.last_snapshot is not None:
            try:
                self.replace_failed(lost)
                self.restore(self.last_snapshot)
                return
            except LostError as another:
                lost = another
        raise lost

    def begin_epoch(self) -> None:
        self.epoch_started = time.perf_counter()
        if self.config.game.schedule == "epochwise":
            self.choose_adversary()
        else:
            self.fit_streamed()

    def end_epoch(self) -> Metrics:
        metrics = self.privatizer.validate()
        self.val_accuracy = metrics["utility/val_accuracy"]
        self.best_accuracy = max(self.best_accuracy, self.val_accuracy)
        metrics["utility/val_accuracy_best"] = self.best_accuracy
        return metrics | {"time/epoch_s": time.perf_counter() - self.epoch_started}

    def ask(self, release: Release) -> list[Any]:
        """Start every adversary on a release."""
        shared = self.share(release)
        return [handle.respond(shared) for handle in self.handles.values()]

    def answers(self, started: list[Any]) -> tuple[list[Feedback], float]:
        """Wait for the adversaries; also how long that took, in seconds."""
        before = time.perf_counter()
        return self.gather(started), time.perf_counter() - before

    def play_sync(self) -> Metrics:
        """One exact round: the utility's half is computed while the adversaries work."""
        release = self.privatizer.release(self.round)
        started = self.ask(release)
        metrics = self.privatizer.utility(release)
        feedback, waited = self.answers(started)
        return metrics | self.privatizer.update(feedback) | {"time/adversary_wait_s": waited}

    def play_stale1(self) -> Metrics:
        """One round with the gradient at the weights of one step ago, at which its codes were released.

        The next round's codes go to the adversaries before this round's step, so they have work while the privatizer has its own.
        An epoch's first gradient is not delayed: nothing is in flight across its end.
        """
        if self.inflight is None:
            release = self.privatizer.release(self.round)
            self.inflight = (release, self.ask(release))
        (release, started), self.inflight = self.inflight, None
        if (self.round + 1) % self.rounds_per_epoch:
            coming = self.privatizer.release(self.round + 1, ahead=True)
            self.inflight = (coming, self.ask(coming))
        metrics = self.privatizer.utility(release)
        feedback, waited = self.answers(started)
        return metrics | self.privatizer.update(feedback) | {"time/adversary_wait_s": waited}

    def play_epochwise(self) -> Metrics:
        """One step of the privatizer alone against the adversary chosen for this epoch."""
        release = self.privatizer.release(self.round)
        started = [self.handles[self.chosen].respond_without_learning(self.share(release))] if self.handles else []
        metrics = self.privatizer.utility(release)
        feedback, waited = self.answers(started)
        return metrics | self.privatizer.update(feedback, move_head=False) | {"time/adversary_wait_s": waited}

    def choose_adversary(self) -> None:
        """The paper's epoch of teaching: the neural adversaries and the utility head learn on every batch; the closed-form ones are
        fitted on all training codes; the adversary with the smallest error on the validation split is the epoch's opponent."""
        neural = [handle for name, handle in self.handles.items() if name not in self.streamed]
        for round in range(self.round, self.round + self.rounds_per_epoch):
            release = self.privatizer.release(round)
            shared = self.share(release)
            started = [handle.learn(shared) for handle in neural]
            self.privatizer.utility(release)
            self.privatizer.step_head()
            self.gather(started)
        self.fit_streamed()
        if self.handles:
            scores = dict.fromkeys(self.handles, 0.0)
            for release in self.privatizer.released_blocks("val", round=self.round):
                shared = self.share(release)
                for name, (errors, mean_errors) in zip(
                    self.handles, self.gather([s.score(shared) for s in self.handles.values()]), strict=True
                ):
                    scores[name] += errors / mean_errors
            self.chosen = min(scores, key=scores.__getitem__)

    def fit_streamed(self) -> None:
        """Once per epoch: all training codes, block by block, to the adversaries with `fit="epoch"`."""
        handles = [self.handles[name] for name in self.streamed]
        if not handles:
            return
        for release in self.privatizer.released_blocks("train", round=self.round):
            shared = self.share(release)
            self.gather([handle.accumulate(shared) for handle in handles])
        self.gather([handle.solve() for handle in handles])

    def weights(self) -> dict[str, dict[str, Any]]:
        """Every player's state, by name; the defender's is `privatizer`."""
        names = list(self.handles)
        states = self.gather([self.handles[name].weights() for name in names])
        return {"privatizer": self.privatizer.weights(), **dict(zip(names, states, strict=True))}


SCHEDULES: dict[str, Callable[[Game], Metrics]] = {
    "sync": Game.play_sync,
    "stale1": Game.play_stale1,
    "epochwise": Game.play_epochwise,
}
remember(__name__, "SCHEDULES")


def play_in_process(config: Config, *, threads: int, keep: bool = False) -> Game:
    """The game with all its players in this process: the reference for every other way of running it."""
    privatizer = PrivatizerWorker(config, threads=threads)
    handles = {name: AdversaryWorker(name, config, threads=threads) for name in active_adversaries(config)}
    return Game(privatizer, handles, keep=keep)


def active_adversaries(config: Config) -> list[str]:
    """Who plays: nobody against the undefended control."""
    return list(config.adversaries) if config.privacy_weight > 0 else []

"""The game: one privatizer, its adversaries, and the training loop. It does not import Ray: handles decide where adversaries
run."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from cpgan_ray.common.registry import remember
from cpgan_ray.common.types import Feedback, Metrics, Release
from cpgan_ray.config import Config
from cpgan_ray.errors import LostError
from cpgan_ray.training.aggregate import by_target
from cpgan_ray.training.checkpoint import Snapshot
from cpgan_ray.training.players import AdversaryWorker, PrivatizerWorker

T = TypeVar("T")


class AdversaryHandle(Protocol):
    """An adversary as the game sees it. Each method starts the work; `gather` turns its return value into the result.

    An AdversaryWorker is itself a handle: its methods return the results. RayAdversaryHandle's methods return object references.
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


def gather_in_process(replies: Sequence[Any]) -> list[Any]:
    """The results of handles in this process: their methods have already returned them."""
    return list(replies)


class Game:
    """The loop over rounds. `share` prepares a release for several handles (an object reference on Ray), `gather` waits for their
    replies.

    `replace_failed` is called when a player is lost: it replaces the actors behind the handles, or raises. Then all players return
    to the last snapshot, and the later rounds are played again. The result is the same as without the failure.
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
        """keep: take snapshots even without `replace_failed`, for checkpoints."""
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
        self.chosen: list[str] = []
        self.streamed = [
            name for name, c in self.config.adversaries.items() if name in self.handles and getattr(c, "fit", None) == "epoch"
        ]

    def play(self, rounds: int) -> list[Metrics]:
        """Plays up to `rounds` more rounds, but not past the end of an epoch. Returns each round's metrics, which include `round`.

        The metrics of an epoch's last round include the validation metrics. `epochwise` plays whole epochs.
        """
        stop = min(self.round + rounds, (self.round // self.rounds_per_epoch + 1) * self.rounds_per_epoch, self.total_rounds)
        epochwise = self.config.game.schedule == "epochwise"
        if epochwise:
            stop = min((self.round // self.rounds_per_epoch + 1) * self.rounds_per_epoch, self.total_rounds)
        start, played = self.round, {}
        while self.round < stop:
            round = self.round
            try:
                if self.keeping and self.snapshot_due():
                    self.snapshot()
                played[round] = {"round": float(round)} | self.play_round()
            except LostError as lost:
                self.rollback(lost)
        return [played[round] for round in range(start, stop)]

    def play_round(self) -> Metrics:
        """Plays the next round, with the work at the beginning and at the end of an epoch."""
        started = time.perf_counter()
        if self.round % self.rounds_per_epoch == 0:
            self.begin_epoch()
        metrics = SCHEDULES[self.config.game.schedule](self)
        metrics["time/round_s"] = time.perf_counter() - started
        self.round += 1
        if self.round % self.rounds_per_epoch == 0:
            metrics |= self.end_epoch()
        return metrics

    def snapshot_due(self) -> bool:
        """Whether to take a snapshot before the next round."""
        if self.last_snapshot is None:
            return True
        return self.can_snapshot and self.round - self.last_snapshot.round >= self.config.recovery.snapshot_every

    @property
    def can_snapshot(self) -> bool:
        """Whether the game can be resumed from here. Inside an epoch `stale1` has codes in flight and `epochwise` a chosen
        adversary."""
        return self.config.game.schedule == "sync" or self.round % self.rounds_per_epoch == 0

    def snapshot(self) -> Snapshot:
        """Takes and returns a snapshot of the game between two rounds, to which `rollback` returns. Returns the last snapshot if
        the game cannot be resumed from this round."""
        if not self.can_snapshot:
            assert self.last_snapshot is not None
            return self.last_snapshot
        names = list(self.handles)
        states = self.gather([self.handles[name].snapshot() for name in names])
        players = {"privatizer": self.privatizer.snapshot(), **dict(zip(names, states, strict=True))}
        self.last_snapshot = Snapshot(self.round, self.best_accuracy, self.val_accuracy, players)
        return self.last_snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Restores all players from a snapshot."""
        self.inflight = None
        restored = [handle.restore(snapshot.players[name]) for name, handle in self.handles.items()]
        self.privatizer.restore(snapshot.players["privatizer"])
        self.gather(restored)
        self.round, self.best_accuracy, self.val_accuracy = snapshot.round, snapshot.best_accuracy, snapshot.val_accuracy
        self.last_snapshot, self.epoch_started = snapshot, time.perf_counter()

    def rollback(self, lost: LostError) -> None:
        """Replaces the lost players and returns to the last snapshot; starts again if another player is lost meanwhile.

        Raises: LostError without `replace_failed`; otherwise the error of `replace_failed` if it gives up.
        """
        while self.replace_failed is not None and self.last_snapshot is not None:
            try:
                self.replace_failed(lost)
                self.restore(self.last_snapshot)
                return
            except LostError as next_loss:
                lost = next_loss
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

    def start_responses(self, release: Release) -> list[Any]:
        """Sends a release to every adversary; returns the started calls."""
        shared = self.share(release)
        return [handle.respond(shared) for handle in self.handles.values()]

    def wait_for_feedback(self, started: list[Any]) -> tuple[list[Feedback], float]:
        """Waits for the adversaries. Returns their feedback and the waiting time in seconds."""
        before = time.perf_counter()
        return self.gather(started), time.perf_counter() - before

    def play_sync(self) -> Metrics:
        """One exact round. The utility gradient is computed while the adversaries work."""
        release = self.privatizer.release(self.round)
        started = self.start_responses(release)
        metrics = self.privatizer.utility(release)
        feedback, wait_s = self.wait_for_feedback(started)
        return metrics | self.privatizer.update(release, feedback) | {"time/adversary_wait_s": wait_s}

    def play_stale1(self) -> Metrics:
        """One round with a gradient that is one step old: it is taken at the weights with which its codes were released.

        The next round's codes are sent to the adversaries before this round's step, so that both sides work at the same time. The
        first gradient of an epoch is not delayed: no codes are in flight at the end of an epoch.
        """
        if self.inflight is None:
            release = self.privatizer.release(self.round)
            self.inflight = (release, self.start_responses(release))
        (release, started), self.inflight = self.inflight, None
        if (self.round + 1) % self.rounds_per_epoch:
            next_release = self.privatizer.release(self.round + 1, ahead=True)
            self.inflight = (next_release, self.start_responses(next_release))
        metrics = self.privatizer.utility(release)
        feedback, wait_s = self.wait_for_feedback(started)
        return metrics | self.privatizer.update(release, feedback) | {"time/adversary_wait_s": wait_s}

    def play_epochwise(self) -> Metrics:
        """One step of only the privatizer, against the adversaries chosen for this epoch, one for each target."""
        release = self.privatizer.release(self.round)
        shared = self.share(release)
        started = [self.handles[name].respond_without_learning(shared) for name in self.chosen]
        metrics = self.privatizer.utility(release)
        feedback, wait_s = self.wait_for_feedback(started)
        return metrics | self.privatizer.update(release, feedback, move_head=False) | {"time/adversary_wait_s": wait_s}

    def choose_adversary(self) -> None:
        """The paper's training epoch of the adversaries. Neural adversaries and the utility head learn on every batch, closed-form
        adversaries are fitted on all training codes. The one with the smallest validation error is chosen for this epoch, for each
        target."""
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
                    scores[name] += errors / mean_errors if mean_errors else 0.0
            self.chosen = [min(names, key=scores.__getitem__) for names in by_target([*self.handles], self.config).values()]

    def fit_streamed(self) -> None:
        """Fits the adversaries with `fit="epoch"` on all training codes, block by block. Runs once per epoch."""
        handles = [self.handles[name] for name in self.streamed]
        if not handles:
            return
        for release in self.privatizer.released_blocks("train", round=self.round):
            shared = self.share(release)
            self.gather([handle.accumulate(shared) for handle in handles])
        self.gather([handle.solve() for handle in handles])

    def weights(self) -> dict[str, dict[str, Any]]:
        """Name of each player -> its weights; `privatizer` includes the utility head."""
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
    """A game with all players in this process. All other ways to run a game must give the same results."""
    privatizer = PrivatizerWorker(config, threads=threads)
    handles = {name: AdversaryWorker(name, config, threads=threads) for name in active_adversaries(config)}
    return Game(privatizer, handles, keep=keep)


def active_adversaries(config: Config) -> list[str]:
    """Names of the adversaries that play: those whose target has a weight above 0; none in the undefended control."""
    return [name for name, adversary in config.adversaries.items() if config.target_weight(adversary.target) > 0]

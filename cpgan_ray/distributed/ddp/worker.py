"""One of the privatizer's workers: it plays the game in step with the others, as the host orders."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from pyarrow.fs import FileSystem
from ray.train import Checkpoint, CheckpointConsistencyMode
from ray.train.collective import broadcast_from_rank_zero
from ray.util.placement_group import get_current_placement_group

from cpgan_ray.common.registry import remember
from cpgan_ray.common.types import Release
from cpgan_ray.config import Config
from cpgan_ray.distributed.adversary_pool import RayAdversaryHandle, prepare_data
from cpgan_ray.distributed.ddp.batch import Group
from cpgan_ray.distributed.resources import Bundle, compute_kwargs
from cpgan_ray.distributed.rpc import gather, get_result, one_line, share
from cpgan_ray.errors import InputError, LostError
from cpgan_ray.training.checkpoint import Snapshot, decode, encode
from cpgan_ray.training.game import Game, active_adversaries
from cpgan_ray.training.players import PrivatizerWorker

GRACE_S = 60
"""How much later than an adversary's deadline workers give each other up, in seconds."""

GAME = "game.ckpt"
"""The one file of a checkpoint of Ray Train: one of this project's."""


@dataclass(frozen=True)
class Command:
    """What the workers are to do next. Made by ParallelHost.command; read by every worker."""

    number: int
    at: int  # rounds that have been told: those who have played fewer play them first
    question: str  # a key of QUESTIONS
    argument: int = 0


@dataclass(frozen=True)
class Start:
    """What a worker begins with. Made by ParallelHost.train; in Ray Train's `train_loop_config`, so nothing large."""

    config: Config
    size: Bundle  # of a worker
    host: Any  # handle of the ParallelHost


class NonzeroRankHandle:
    """The handle of an adversary for all workers but the first: `gather` brings the answers."""

    def _nothing(self, *_: Any) -> None:
        return None

    respond = learn = respond_without_learning = accumulate = solve = score = weights = snapshot = restore = _nothing


class StoppedError(Exception):
    """The game is over, by an error that the host knows: no worker need try again."""


class Worker:
    """One of the group: its game, in step with the others', and what it asks of the host."""

    def __init__(self, start: Start) -> None:
        """Build the players, and put all of them where the last checkpoint was."""
        self.config, self.host = start.config, start.host
        self.peers = Group(start.config)
        self.first = self.peers.rank == 0
        privatizer = PrivatizerWorker(start.config, **compute_kwargs(start.config, start.size), peers=self.peers)
        self.number, self.reported = 0, -1
        handles: dict[str, Any] = {name: NonzeroRankHandle() for name in active_adversaries(start.config)}
        if self.first:
            self.number, actors = get_result(self.host.enter.remote(get_current_placement_group()))
            handles = {name: RayAdversaryHandle(actor) for name, actor in actors.items()}
        self.game = Game(privatizer, handles, gather=self.gather, share=self.shared, replace_failed=self.replace_failed)
        checkpoint = ray.train.get_checkpoint()
        self.go_to(get_result(self.host.beginning.remote()) if checkpoint is None else read(checkpoint))
        if checkpoint is None:
            self.report()
            ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        if self.first:
            get_result(self.host.ready.remote(self.number, self.game.round))

    def go_to(self, snapshot: Snapshot | None) -> None:
        """All players as they were in a snapshot; none: they are at the beginning, which is kept."""
        while True:
            try:
                if snapshot is None:
                    self.game.snapshot()
                else:
                    self.game.restore(snapshot)
                return
            except LostError as lost:
                self.replace_failed(lost)

    def shared(self, release: Release) -> Any:
        return share(release) if self.first else None

    def next_command(self) -> Command | None:
        """The next one, for all; None: there are no more. Ray Train's own broadcast waits as long as it takes."""
        return broadcast_from_rank_zero(get_result(self.host.next.remote(self.number)) if self.first else None)

    def gather(self, answers: Sequence[Any]) -> list[Any]:
        """The adversaries' answers, everywhere. Their snapshots stay with the first worker, which is the only one to need them.

        Raises: LostError everywhere where one is lost; StoppedError where one raised anything else.
        """
        if not answers:
            return []
        found: list[Any] | Exception = []
        if self.first:
            try:
                found = gather(answers, deadline_s=self.config.runtime.reply_timeout_s)
            except LostError as e:
                found = e
            except Exception as e:
                get_result(self.host.fail.remote(e))
                found = StoppedError(one_line(e))
        told = found if isinstance(found, Exception) else [None if isinstance(f, bytes) else f for f in found]
        told = self.peers.broadcast(told)
        if isinstance(told, Exception):
            raise told
        return found if self.first and not isinstance(found, Exception) else told

    def replace_failed(self, lost: LostError) -> None:
        """New actors in the handles of lost adversaries, see actors.Crew.replace_failed.

        Raises: LostError where one is lost again; StoppedError where the host gives up.
        """
        failed: Exception | None = None
        if self.first:
            kept = self.game.last_snapshot.round if self.game.last_snapshot else self.game.round
            found: dict[str, Any] | Exception = get_result(self.host.replace_failed.remote(str(lost), self.game.round, kept))
            if isinstance(found, Exception):
                failed = found
            else:
                self.game.handles |= {name: RayAdversaryHandle(actor) for name, actor in found.items()}
        failed = broadcast_from_rank_zero(failed)  # it may take minutes
        if failed is not None:
            raise failed

    def report(self) -> None:
        """A checkpoint of Ray Train: the whole game, the adversaries with it. The first worker writes it.

        Its rounds have been told: a group that starts from it has nothing to tell of them.
        """
        snapshot = self.game.snapshot()
        self.reported = snapshot.round
        with tempfile.TemporaryDirectory() as folder:
            if self.first:
                Path(folder, GAME).write_bytes(encode(snapshot))
            ray.train.report({"round": snapshot.round}, checkpoint=Checkpoint.from_directory(folder) if self.first else None)

    def report_epoch(self) -> None:
        if self.game.round % self.game.rounds_per_epoch == 0 and self.game.round != self.reported:
            self.report()

    def follow(self, command: Command) -> None:
        """Do what is asked; the first worker answers. Then, at the end of an epoch, a checkpoint is reported."""
        while self.game.round < command.at:
            self.game.play(command.at - self.game.round)
            self.report_epoch()
        found = COMMANDS[command.question](self.game, command.argument)
        if self.first:
            get_result(self.host.reply.remote(self.number, command.number, found, self.game.round))
        self.report_epoch()


COMMANDS: dict[str, Callable[[Game, int], Any]] = {
    "length": lambda game, _: (game.total_rounds, game.rounds_per_epoch),
    "play": Game.play,
    "snapshot": lambda game, _: game.snapshot(),
    "sample": lambda game, count: game.privatizer.sample(count),
    "outcome": lambda game, _: game.privatizer.outcome(),
    "weights": lambda game, _: game.weights(),
}
remember(__name__, "COMMANDS")


def work(told: dict[str, Start]) -> None:
    """What Ray Train runs in each worker: orders of the host, until there are no more.

    What all workers raise alike (bad input, a number that is not finite) ends the game; anything else is a worker lost.
    """
    start = told["start"]
    try:
        prepare_data(start.config, get_result(start.host.environment.remote()))
        broadcast_from_rank_zero(None)  # when all nodes have the data: torch.distributed waits less long
        worker = Worker(start)
        while (command := worker.next_command()) is not None:
            worker.follow(command)
    except StoppedError:
        return
    except (InputError, FloatingPointError) as e:
        get_result(start.host.fail.remote(e))


def read(checkpoint: Checkpoint) -> Snapshot:
    """The game in a checkpoint of Ray Train."""
    system: FileSystem = checkpoint.filesystem  # pyright: ignore[reportAssignmentType]
    with system.open_input_stream(f"{checkpoint.path}/{GAME}") as stream:
        return decode(stream.read(), checkpoint.path)

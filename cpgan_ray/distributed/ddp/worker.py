"""A worker of the privatizer: it plays the game in lockstep with the others and follows the host's commands."""

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
"""How long after an adversary's deadline the workers wait for each other."""

GAME = "game.ckpt"
"""The only file of a Ray Train checkpoint; it has the format of this package's checkpoints."""


@dataclass(frozen=True)
class Command:
    """A command to all workers. Made by ParallelHost.command; read by every worker."""

    number: int
    rounds_done: int  # rounds whose metrics were returned; workers that have played fewer rounds play them first
    name: str  # a key of COMMANDS
    argument: int = 0


@dataclass(frozen=True)
class Start:
    """A worker's configuration. Made by ParallelHost.train; part of Ray Train's `train_loop_config`, so it must be small."""

    config: Config
    size: Bundle  # resources of a worker
    host: Any  # actor handle of the ParallelHost


class NonzeroRankHandle:
    """The handle of an adversary on all workers except the first: it does nothing, and `gather` gets the replies from the first."""

    def _nothing(self, *_: Any) -> None:
        return None

    respond = learn = respond_without_learning = accumulate = solve = score = weights = snapshot = restore = _nothing


class StoppedError(Exception):
    """The game has ended by an error that the host already has: workers must not try again."""


class Worker:
    """A worker with its copy of the game, and its communication with the host."""

    def __init__(self, start: Start) -> None:
        """Builds the players and restores them from the last checkpoint."""
        self.config, self.host = start.config, start.host
        self.peers = Group(start.config)
        self.first = self.peers.rank == 0
        privatizer = PrivatizerWorker(start.config, **compute_kwargs(start.config, start.size), peers=self.peers)
        self.group, self.reported = 0, -1
        handles: dict[str, Any] = {name: NonzeroRankHandle() for name in active_adversaries(start.config)}
        if self.first:
            self.group, actors = get_result(self.host.register_group.remote(get_current_placement_group()))
            handles = {name: RayAdversaryHandle(actor) for name, actor in actors.items()}
        self.game = Game(privatizer, handles, gather=self.gather, share=self.shared, replace_failed=self.replace_failed)
        checkpoint = ray.train.get_checkpoint()
        self.restore(get_result(self.host.initial_snapshot.remote()) if checkpoint is None else read(checkpoint))
        if checkpoint is None:
            self.report()
            ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        if self.first:
            get_result(self.host.report_ready.remote(self.group, self.game.round))

    def restore(self, snapshot: Snapshot | None) -> None:
        """Restores all players from a snapshot. None: takes a snapshot of the beginning instead."""
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
        """The next command, on all workers; None: there are no more. Ray Train's broadcast waits without a timeout."""
        return broadcast_from_rank_zero(get_result(self.host.next_command.remote(self.group)) if self.first else None)

    def gather(self, references: Sequence[Any]) -> list[Any]:
        """The adversaries' replies, on all workers. Snapshots stay on the first worker, because only it needs them.

        Raises: on all workers LostError if an adversary is lost, or StoppedError after any other error of an adversary.
        """
        if not references:
            return []
        replies: list[Any] | Exception = []
        if self.first:
            try:
                replies = gather(references, deadline_s=self.config.runtime.reply_timeout_s)
            except LostError as e:
                replies = e
            except Exception as e:
                get_result(self.host.fail.remote(e))
                replies = StoppedError(one_line(e))
        shared = replies if isinstance(replies, Exception) else [None if isinstance(r, bytes) else r for r in replies]
        shared = self.peers.broadcast(shared)
        if isinstance(shared, Exception):
            raise shared
        return replies if self.first and not isinstance(replies, Exception) else shared

    def replace_failed(self, lost: LostError) -> None:
        """Replaces lost adversaries by new actors, see AdversaryPool.replace_failed.

        Raises: LostError if one is lost again; StoppedError if the host gives up.
        """
        error: Exception | None = None
        if self.first:
            snapshot_round = self.game.last_snapshot.round if self.game.last_snapshot else self.game.round
            actors: dict[str, Any] | Exception = get_result(
                self.host.replace_failed.remote(str(lost), self.game.round, snapshot_round)
            )
            if isinstance(actors, Exception):
                error = actors
            else:
                self.game.handles |= {name: RayAdversaryHandle(actor) for name, actor in actors.items()}
        error = broadcast_from_rank_zero(error)  # may take minutes
        if error is not None:
            raise error

    def report(self) -> None:
        """Reports a checkpoint to Ray Train: the whole game including the adversaries. The first worker writes it.

        The metrics of its rounds have been returned: a group that starts from it does not return them again.
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
        """Executes a command; the first worker replies. At the end of an epoch a checkpoint is reported."""
        while self.game.round < command.rounds_done:
            self.game.play(command.rounds_done - self.game.round)
            self.report_epoch()
        result = COMMANDS[command.name](self.game, command.argument)
        if self.first:
            get_result(self.host.reply.remote(self.group, command.number, result, self.game.round))
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


def run_worker(loop_config: dict[str, Start]) -> None:
    """The function that Ray Train runs in each worker: executes the host's commands until there are no more.

    Errors that all workers raise (bad input, a value that is not finite) end the game; after any other error the worker counts as
    lost.
    """
    start = loop_config["start"]
    try:
        prepare_data(start.config, get_result(start.host.environment.remote()))
        broadcast_from_rank_zero(None)  # waits until all nodes have the data: torch.distributed has a shorter timeout
        worker = Worker(start)
        while (command := worker.next_command()) is not None:
            worker.follow(command)
    except StoppedError:
        return
    except (InputError, FloatingPointError) as e:
        get_result(start.host.fail.remote(e))


def read(checkpoint: Checkpoint) -> Snapshot:
    """The snapshot in a checkpoint of Ray Train."""
    system: FileSystem = checkpoint.filesystem  # pyright: ignore[reportAssignmentType]
    with system.open_input_stream(f"{checkpoint.path}/{GAME}") as stream:
        return decode(stream.read(), checkpoint.path)

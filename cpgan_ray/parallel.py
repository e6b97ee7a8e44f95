"""A privatizer of several workers: a worker group of Ray Train that shares every batch, against the same adversaries' actors.

Each worker plays the same game in step with the others. It encodes its rows of the round's batch; the codes are gathered, so that
the adversaries see the whole batch, as they do with one worker, and the first worker's seats are their actors: their answers go to
all. Networks are wrapped by DistributedDataParallel; batch statistics and the draws of dropout are those of the whole batch. The
outcome is that of one worker, to float tolerance.

Ray Train restarts a group that has lost a worker, from the last checkpoint that it has committed. The adversaries outlive the
group, and have played on; so a checkpoint holds them too, and all go back to it.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from pyarrow.fs import FileSystem
from ray.train import Checkpoint, CheckpointConfig, CheckpointConsistencyMode, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cpgan_ray.actors import OPEN_S, SUPPLY_S, Bundle, Crew, RaySeat, answer, gather, means, one_line, share, supply
from cpgan_ray.checkpoint import Checkpoints, Snapshot, decode, encode
from cpgan_ray.config import Config
from cpgan_ray.credentials import received
from cpgan_ray.errors import InputError, LostError
from cpgan_ray.game import Game, opponents
from cpgan_ray.messages import Event, Outcome, Played, Release
from cpgan_ray.process import pick_device
from cpgan_ray.workers import PrivatizerWorker

POLL_S = "0.5"
"""How often Ray Train's controller looks at its workers, in seconds; it takes one report of each at a look."""

GRACE_S = 60
"""How much later than an adversary's deadline workers give each other up, in seconds."""

TRAIN = "train"
"""Ray Train's folder, beside the run's checkpoints."""

GAME = "game.ckpt"
"""The one file of a checkpoint of Ray Train: one of this project's."""


# ------------------------------------------------------------------------------------------------- a batch in several hands


class Group:
    """The workers that share a batch, as privatizer.Peers: torch.distributed's default process group."""

    def __init__(self, config: Config) -> None:
        self.count, self.rank = dist.get_world_size(), dist.get_rank()
        self.device, self.batch_size = pick_device(config.runtime.device), config.batch_size

    def own(self, num_rows: int) -> slice:
        """As even as can be; all rows where there are fewer of them than workers."""
        if num_rows < self.count:
            return slice(0, num_rows)
        return slice(num_rows * self.rank // self.count, num_rows * (self.rank + 1) // self.count)

    def gather(self, part: Tensor, num_rows: int) -> Tensor:
        """Shares need not be of one size, which rules all_gather out: the sum of what is zero outside each one's rows."""
        if num_rows < self.count:
            return part
        whole = part.new_zeros(num_rows, *part.shape[1:])
        whole[self.own(num_rows)] = part.detach()
        dist.all_reduce(whole)
        return whole

    def total(self, value: Tensor) -> Tensor:
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def average(self, values: Sequence[Tensor]) -> list[Tensor]:
        """For the copies of `stale1`: DistributedDataParallel knows a module's own parameters alone."""
        if not values:
            return []
        flat = self.total(torch.cat([value.flatten() for value in values])) / self.count
        parts = flat.split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def joined(self, network: nn.Module) -> nn.Module:
        make_whole(network, rows=self.own(self.batch_size), num_rows=self.batch_size)
        # batch statistics are the same everywhere already
        return prepare_model(network, move_to_device=self.device, parallel_strategy_kwargs={"broadcast_buffers": False})

    def tell(self, value: Any) -> Any:
        """What the first worker has, everywhere."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def make_whole(network: nn.Module, *, rows: slice, num_rows: int) -> None:
    """Batch norms of the whole batch and the dropout that these rows have in it, in the place of a network's own; parameters,
    buffers and their names are the same."""
    for name, part in network.named_children():
        if isinstance(part, _BatchNorm):
            setattr(network, name, whole_norm(part))
        elif isinstance(part, nn.Dropout) and part.p > 0:
            setattr(network, name, WholeDropout(part.p, rows=rows, num_rows=num_rows))
        else:
            make_whole(part, rows=rows, num_rows=num_rows)


def whole_norm(norm: _BatchNorm) -> _BatchNorm:
    """torch's SyncBatchNorm takes tensors on a GPU alone."""
    if norm.running_mean is not None and norm.running_mean.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # pyright: ignore[reportReturnType]
    whole = WholeBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
    for name, value in (*norm.named_parameters(), *norm.named_buffers()):
        setattr(whole, name, value)
    return whole


class WholeBatchNorm(_BatchNorm):
    """Batch norm with the statistics of all workers' rows (B, C, ...) in training; in use the usual one."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        mean, variance, count = whole_statistics(input.detach())
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            for running, found in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
                running.mul_(1 - self.momentum).add_(self.momentum * found)
        return Normalised.apply(input, mean, variance, count, self.weight, self.bias, self.eps)  # pyright: ignore


def whole_statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and (biased) variance (C,) over all workers' x (B, C, ...), and over how many values: theirs, combined in float64."""
    variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
    found = x.new_zeros(dist.get_world_size(), 2 * len(mean) + 1, dtype=torch.float64)
    found[dist.get_rank()] = torch.cat([mean, variance, mean.new_tensor([x.numel() // x.shape[1]])])
    dist.all_reduce(found)
    counts, (means, variances) = found[:, -1:], found[:, :-1].chunk(2, dim=1)
    count = counts.sum()
    center = (counts * means).sum(0) / count
    spread = (counts * (variances + (means - center) ** 2)).sum(0) / count
    return center.to(x.dtype), spread.to(x.dtype), float(count)


class Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps), scaled and moved, for x (B, C, ...) with statistics (C,) of all workers' x.

    With x^ the normalised x and N the values over all workers, dx = scale (dy - sum dy / N - x^ sum(dy x^) / N) / sqrt(variance +
    eps), the sums over all workers; the gradients of scale and shift are those of the own rows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, count: float, scale: Tensor | None, shift: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, mean, variance, scale)
        ctx.count, ctx.eps = count, eps
        return F.batch_norm(x, mean, variance, scale, shift, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, mean, variance, scale = ctx.saved_tensors
        (dy,) = grads
        shape = [1, -1] + [1] * (x.ndim - 2)
        over = [0, *range(2, x.ndim)]
        normalised = (x - mean.view(shape)) * (variance + ctx.eps).rsqrt().view(shape)
        shifts, scales = dy.sum(over), (dy * normalised).sum(over)
        sums = torch.stack([shifts, scales])
        dist.all_reduce(sums)
        of_shift, of_scale = (s.view(shape) for s in sums / ctx.count)
        slope = (variance + ctx.eps).rsqrt() if scale is None else scale * (variance + ctx.eps).rsqrt()
        dx = slope.view(shape) * (dy - of_shift - normalised * of_scale)
        affine = scale is not None
        return dx, None, None, None, scales if affine else None, shifts if affine else None, None


class WholeDropout(nn.Module):
    """Dropout with the mask that these rows have in that of a whole batch."""

    def __init__(self, p: float, *, rows: slice, num_rows: int) -> None:
        super().__init__()
        self.p, self.rows, self.num_rows = p, rows, num_rows

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        whole = torch.ones(self.num_rows, *x.shape[1:], dtype=x.dtype, device=x.device)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            whole = whole.to(memory_format=torch.channels_last)  # draws are in the order of memory
        return x * F.dropout(whole, self.p, training=True)[self.rows]


# -------------------------------------------------------------------------------------------------------------- a worker


@dataclass(frozen=True)
class Order:
    """What the workers are to do next. Made by ParallelHost.order; read by every worker."""

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


class NobodyHere:
    """The seat of an adversary for all workers but the first: `gather` brings the answers."""

    def _nothing(self, *_: Any) -> None:
        return None

    respond = learn = oppose = accumulate = solve = score = weights = snapshot = restore = _nothing


class StoppedError(Exception):
    """The game is over, by an error that the host knows: no worker need try again."""


class Worker:
    """One of the group: its game, in step with the others', and what it asks of the host."""

    def __init__(self, start: Start) -> None:
        """Build the players, and put all of them where the last checkpoint was."""
        self.config, self.host = start.config, start.host
        self.peers = Group(start.config)
        self.first = self.peers.rank == 0
        privatizer = PrivatizerWorker(start.config, **means(start.config, start.size), peers=self.peers)
        self.number, self.reported = 0, -1
        seats: dict[str, Any] = {name: NobodyHere() for name in opponents(start.config)}
        if self.first:
            self.number, actors = answer(self.host.enter.remote(get_current_placement_group()))
            seats = {name: RaySeat(actor) for name, actor in actors.items()}
        self.game = Game(privatizer, seats, gather=self.gather, share=self.shared, mend=self.mend)
        checkpoint = ray.train.get_checkpoint()
        self.go_to(answer(self.host.beginning.remote()) if checkpoint is None else read(checkpoint))
        if checkpoint is None:
            self.report()
            ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        if self.first:
            answer(self.host.ready.remote(self.number, self.game.round))

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
                self.mend(lost)

    def shared(self, release: Release) -> Any:
        return share(release) if self.first else None

    def order(self) -> Order | None:
        """The next one, for all; None: there are no more. Ray Train's own broadcast waits as long as it takes."""
        return broadcast_from_rank_zero(answer(self.host.next.remote(self.number)) if self.first else None)

    def gather(self, answers: Sequence[Any]) -> list[Any]:
        """The adversaries' answers, everywhere. Their snapshots stay with the first worker, which is the only one to need them.

        Raises: LostError everywhere where one is lost; StoppedError where one raised anything else.
        """
        if not answers:
            return []
        found: list[Any] | Exception = []
        if self.first:
            try:
                found = gather(answers, deadline_s=self.config.runtime.deadline_s)
            except LostError as e:
                found = e
            except Exception as e:
                answer(self.host.fail.remote(e))
                found = StoppedError(one_line(e))
        told = found if isinstance(found, Exception) else [None if isinstance(f, bytes) else f for f in found]
        told = self.peers.tell(told)
        if isinstance(told, Exception):
            raise told
        return found if self.first and not isinstance(found, Exception) else told

    def mend(self, lost: LostError) -> None:
        """New actors in the seats of lost adversaries, see actors.Crew.mend.

        Raises: LostError where one is lost again; StoppedError where the host gives up.
        """
        failed: Exception | None = None
        if self.first:
            kept = self.game.kept.round if self.game.kept else self.game.round
            found: dict[str, Any] | Exception = answer(self.host.mend.remote(str(lost), self.game.round, kept))
            if isinstance(found, Exception):
                failed = found
            else:
                self.game.seats |= {name: RaySeat(actor) for name, actor in found.items()}
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

    def follow(self, order: Order) -> None:
        """Do what is asked; the first worker answers. Then, at the end of an epoch, a checkpoint is reported."""
        while self.game.round < order.at:
            self.game.play(order.at - self.game.round)
            self.report_epoch()
        found = QUESTIONS[order.question](self.game, order.argument)
        if self.first:
            answer(self.host.reply.remote(self.number, order.number, found, self.game.round))
        self.report_epoch()


QUESTIONS: dict[str, Callable[[Game, int], Any]] = {
    "length": lambda game, _: (game.total_rounds, game.rounds_per_epoch),
    "play": Game.play,
    "snapshot": lambda game, _: game.snapshot(),
    "sample": lambda game, count: game.privatizer.sample(count),
    "outcome": lambda game, _: game.privatizer.outcome(),
    "weights": lambda game, _: game.weights(),
}


def work(told: dict[str, Start]) -> None:
    """What Ray Train runs in each worker: orders of the host, until there are no more.

    What all workers raise alike (bad input, a number that is not finite) ends the game; anything else is a worker lost.
    """
    start = told["start"]
    try:
        supply(start.config, answer(start.host.environment.remote()))
        broadcast_from_rank_zero(None)  # when all nodes have the data: torch.distributed waits less long
        worker = Worker(start)
        while (order := worker.order()) is not None:
            worker.follow(order)
    except StoppedError:
        return
    except (InputError, FloatingPointError) as e:
        answer(start.host.fail.remote(e))


def read(checkpoint: Checkpoint) -> Snapshot:
    """The game in a checkpoint of Ray Train."""
    system: FileSystem = checkpoint.filesystem  # pyright: ignore[reportAssignmentType]
    with system.open_input_stream(f"{checkpoint.path}/{GAME}") as stream:
        return decode(stream.read(), checkpoint.path)


# -------------------------------------------------------------------------------------------------------------- the host


class Witness(UserCallback):
    """Tells the host what Ray Train's controller sees."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        answer(self.host.lost.remote(cause(worker_exceptions)))


def cause(errors: dict[int, Exception]) -> str:
    """Who was lost: those whose process does not answer; what the others raised for want of them only where all have answered."""
    gone = {rank: getattr(e, "health_check_failure", None) for rank, e in errors.items()}
    found = {rank: e for rank, e in gone.items() if e is not None} or {
        rank: getattr(e, "_base_exc", e) for rank, e in errors.items()
    }
    return "; ".join(f"privatizer worker {rank}: {one_line(e)}" for rank, e in sorted(found.items()))


class ParallelHost:
    """The central actor of such a game, with the face of actors.GameHost: Ray Train's trainer, the adversaries' actors, and the
    desk at which the workers fetch their orders. It computes nothing.

    Its methods run in threads: a worker waits for its order in one, the driver for the answer in another.
    """

    calls_at_once = 16
    trainer: threading.Thread | None = None

    def supply(self, config: Config, sizes: Sequence[Bundle], group: PlacementGroup, environment: Mapping[str, str]) -> None:
        """The adversaries' actors, with the data on each one's node; workers see to theirs.

        sizes: of a worker, of each adversary, of each spare; group: whose bundles the adversaries have, this one the first.
        environment: see actors.supply.
        """
        received(environment)
        self.config, self.size, self.passed = config, sizes[0], dict(environment)
        self.crew = Crew(config, sizes, group)
        gather(self.crew.supply(self.crew.names), deadline_s=SUPPLY_S)

    def open(self, snapshot: Snapshot | None = None) -> None:
        """The players themselves; snapshot: go on from there."""
        self.start = snapshot
        self.turn, self.changed = threading.Lock(), threading.Condition()
        self.asked = Order(0, 0, "length")
        self.answered, self.at, self.found = 0, snapshot.round if snapshot else 0, None
        self.groups, self.over = 0, False
        self.error: Exception | None = None
        self.place: PlacementGroup | None = None
        self.cause, self.lost_at = "", 0.0
        gather(self.crew.open(self.crew.names), deadline_s=max(self.config.runtime.deadline_s, OPEN_S))
        self.trainer = threading.Thread(target=self.train, args=(ray.get_runtime_context().current_actor,), daemon=True)
        self.trainer.start()
        self.total_rounds, self.rounds_per_epoch = self.order("length")

    def train(self, me: Any) -> None:
        """Ray Train's part, from the beginning to the end."""
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = POLL_S
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        config, gpus = self.config, self.size.get("GPU", 0.0)
        try:
            self.storage = storage(config)
            self.clear_storage()
            trainer = TorchTrainer(
                work,
                train_loop_config={"start": Start(config, self.size, me)},
                torch_config=TorchConfig(
                    backend="nccl" if gpus and config.runtime.device != "cpu" else "gloo",
                    timeout_s=int(config.runtime.deadline_s) + GRACE_S,
                ),
                scaling_config=ScalingConfig(
                    num_workers=config.privatizer.num_workers,
                    use_gpu=gpus > 0,
                    resources_per_worker=dict(self.size),
                    placement_strategy=config.runtime.placement,
                ),
                run_config=RunConfig(
                    name=TRAIN,
                    storage_path=self.storage.root,
                    storage_filesystem=self.storage.system,
                    failure_config=FailureConfig(max_failures=config.recovery.max_failures),
                    checkpoint_config=CheckpointConfig(num_to_keep=2),
                    callbacks=[Witness(me)],
                ),
            )
            trainer.fit()
        except WorkerGroupError as e:
            told = f"{cause(e.worker_failures)}; that is more than recovery.max_failures = {config.recovery.max_failures}"
            self.fail(RuntimeError(f"lost in round {self.at}: {told}"))
        except Exception as e:
            self.fail(e)
        finally:
            with self.changed:
                self.over = True
                self.changed.notify_all()

    def clear_storage(self) -> None:
        """Leave nothing that Ray Train would take for the beginning of this game; the run's own checkpoints have all of it."""
        with suppress(OSError):
            self.storage.system.delete_dir(f"{self.storage.root}/{TRAIN}")

    # What the workers call

    def enter(self, place: PlacementGroup | None) -> tuple[int, dict[str, Any]]:
        """A new group is there: its number, and the adversaries' actors by name."""
        with self.changed:
            self.groups, self.place = self.groups + 1, place
            self.changed.notify_all()
            return self.groups, {name: seat.actor for name, seat in self.crew.seats.items()}

    def environment(self) -> dict[str, str]:
        """What a worker's node may need to reach the data: kept out of what Ray Train stores."""
        return self.passed

    def beginning(self) -> Snapshot | None:
        """Where the first group starts; None: at the beginning."""
        return self.start

    def ready(self, group: int, round: int) -> None:
        """All players are where the last checkpoint was."""
        if group > 1:
            seconds = time.perf_counter() - self.lost_at
            told = Event(
                round=self.at, replayed=max(0, self.at - round), players=("privatizer",), cause=self.cause, seconds=seconds
            )
            self.crew.events.append(told)

    def next(self, group: int) -> Order | None:
        """Wait for an order that has no answer yet; None: there will be no more for this group."""
        with self.changed:
            self.changed.wait_for(lambda: self.over or self.groups != group or self.asked.number > self.answered)
            return None if self.over or self.groups != group else self.asked

    def reply(self, group: int, number: int, found: Any, round: int) -> None:
        with self.changed:
            if group == self.groups and number == self.asked.number:
                self.found, self.answered, self.at = found, number, round
                self.changed.notify_all()

    def mend(self, lost: str, round: int, kept: int) -> dict[str, Any] | Exception:
        """The adversaries' actors after Crew.mend, or why there are none."""
        try:
            self.crew.mend(LostError(lost), round=round, kept=kept)
        except LostError as e:
            return e
        except Exception as e:
            self.fail(e)
            return StoppedError(one_line(e))
        return {name: seat.actor for name, seat in self.crew.seats.items()}

    def fail(self, error: Exception) -> None:
        """The game is over."""
        with self.changed:
            self.error, self.over = self.error or error, True
            self.changed.notify_all()

    def lost(self, told: str) -> None:
        """Workers are lost; Ray Train starts a group anew if it may."""
        self.cause, self.lost_at = told, time.perf_counter()

    # What the driver calls

    def order(self, question: str, argument: int = 0) -> Any:
        """What the workers answer, be they started anew meanwhile.

        Raises: what ended the game.
        """
        with self.turn, self.changed:
            self.asked = Order(self.asked.number + 1, self.at, question, argument)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.over or self.answered == self.asked.number)
            if self.answered != self.asked.number:
                raise self.error or LostError("the privatizer's workers have ended")
            found, self.found = self.found, None
            return found

    def length(self) -> tuple[int, int]:
        """Rounds of the run, and of an epoch."""
        return self.total_rounds, self.rounds_per_epoch

    def round(self) -> int:
        """Rounds that have been told."""
        with self.turn:
            return self.at

    def play(self, rounds: int) -> Played:
        """Some more rounds, and what was lost and mended meanwhile."""
        metrics = self.order("play", rounds)
        self.crew.in_a_row = 0
        events, self.crew.events = self.crew.events, []
        return Played(metrics, tuple(events))

    def snapshot(self) -> Snapshot:
        return self.order("snapshot")

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.order("sample", count)

    def outcome(self) -> Outcome:
        return self.order("outcome")

    def weights(self) -> dict[str, dict[str, Any]]:
        return self.order("weights")

    def workers_group(self) -> PlacementGroup | None:
        """Where the workers are."""
        return self.place

    def end(self) -> None:
        """Send the workers home, and wait until Ray Train has ended."""
        if self.trainer is None:
            return
        with self.changed:
            self.over = True
            self.changed.notify_all()
        self.trainer.join()
        self.clear_storage()


def storage(config: Config) -> Checkpoints:
    """Where Ray Train's folder is: with the run's checkpoints, which all nodes that have workers must reach."""
    where = config.recovery.checkpoints
    if where is None:
        where = str((config.output or Path(tempfile.mkdtemp(prefix="cpgan-"))) / "checkpoints")
    return Checkpoints(where, keep=config.recovery.keep)

"""The host of a game whose privatizer has several workers: it starts Ray Train, and passes orders on and answers back."""

import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.util.placement_group import PlacementGroup

from cpgan_ray.common.credentials import import_env
from cpgan_ray.common.types import Event, Outcome, PlayedRounds
from cpgan_ray.config import Config
from cpgan_ray.distributed.adversary_pool import BUILD_TIMEOUT_S, PREPARE_TIMEOUT_S, AdversaryPool
from cpgan_ray.distributed.ddp.worker import GRACE_S, Command, Start, StoppedError, work
from cpgan_ray.distributed.resources import Bundle
from cpgan_ray.distributed.rpc import gather, get_result, one_line
from cpgan_ray.errors import LostError
from cpgan_ray.training.checkpoint import Checkpoints, Snapshot

POLL_S = "0.5"
"""How often Ray Train's controller looks at its workers, in seconds; it takes one report of each at a look."""

TRAIN = "train"
"""Ray Train's folder, beside the run's checkpoints."""


class FailureCallback(UserCallback):
    """Tells the host what Ray Train's controller sees."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        get_result(self.host.lost.remote(cause(worker_exceptions)))


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

    Its methods run in threads: a worker waits for its next command in one, the driver for the reply in another.
    """

    calls_at_once = 16
    trainer: threading.Thread | None = None

    def prepare_data(self, config: Config, sizes: Sequence[Bundle], group: PlacementGroup, environment: Mapping[str, str]) -> None:
        """The adversaries' actors, with the data on each one's node; workers see to theirs.

        sizes: of a worker, of each adversary, of each spare; group: whose bundles the adversaries have, this one the first.
        environment: see adversary_pool.prepare_data.
        """
        import_env(environment)
        self.config, self.size, self.passed = config, sizes[0], dict(environment)
        self.pool = AdversaryPool(config, sizes, group)
        gather(self.pool.prepare_data(self.pool.names), deadline_s=PREPARE_TIMEOUT_S)

    def build(self, snapshot: Snapshot | None = None) -> None:
        """The players themselves; snapshot: go on from there."""
        self.start = snapshot
        self.turn, self.changed = threading.Lock(), threading.Condition()
        self.asked = Command(0, 0, "length")
        self.answered, self.at, self.found = 0, snapshot.round if snapshot else 0, None
        self.groups, self.over = 0, False
        self.error: Exception | None = None
        self.place: PlacementGroup | None = None
        self.cause, self.lost_at = "", 0.0
        gather(self.pool.build(self.pool.names), deadline_s=max(self.config.runtime.reply_timeout_s, BUILD_TIMEOUT_S))
        self.trainer = threading.Thread(target=self.train, args=(ray.get_runtime_context().current_actor,), daemon=True)
        self.trainer.start()
        self.total_rounds, self.rounds_per_epoch = self.command("length")

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
                    timeout_s=int(config.runtime.reply_timeout_s) + GRACE_S,
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
                    callbacks=[FailureCallback(me)],
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
            return self.groups, {name: handle.actor for name, handle in self.pool.handles.items()}

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
            self.pool.events.append(told)

    def next(self, group: int) -> Command | None:
        """Wait for a command that has no reply yet; None if no more will come for this group."""
        with self.changed:
            self.changed.wait_for(lambda: self.over or self.groups != group or self.asked.number > self.answered)
            return None if self.over or self.groups != group else self.asked

    def reply(self, group: int, number: int, found: Any, round: int) -> None:
        with self.changed:
            if group == self.groups and number == self.asked.number:
                self.found, self.answered, self.at = found, number, round
                self.changed.notify_all()

    def replace_failed(self, lost: str, round: int, kept: int) -> dict[str, Any] | Exception:
        """The adversaries' actors after Crew.replace_failed, or why there are none."""
        try:
            self.pool.replace_failed(LostError(lost), round=round, kept=kept)
        except LostError as e:
            return e
        except Exception as e:
            self.fail(e)
            return StoppedError(one_line(e))
        return {name: handle.actor for name, handle in self.pool.handles.items()}

    def fail(self, error: Exception) -> None:
        """The game is over."""
        with self.changed:
            self.error, self.over = self.error or error, True
            self.changed.notify_all()

    def lost(self, told: str) -> None:
        """Workers are lost; Ray Train starts a group anew if it may."""
        self.cause, self.lost_at = told, time.perf_counter()

    # What the driver calls

    def command(self, question: str, argument: int = 0) -> Any:
        """What the workers answer, be they started anew meanwhile.

        Raises: what ended the game.
        """
        with self.turn, self.changed:
            self.asked = Command(self.asked.number + 1, self.at, question, argument)
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

    def play(self, rounds: int) -> PlayedRounds:
        """Some more rounds, and what was lost and mended meanwhile."""
        metrics = self.command("play", rounds)
        self.pool.in_a_row = 0
        events, self.pool.events = self.pool.events, []
        return PlayedRounds(metrics, tuple(events))

    def snapshot(self) -> Snapshot:
        return self.command("snapshot")

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.command("sample", count)

    def outcome(self) -> Outcome:
        return self.command("outcome")

    def weights(self) -> dict[str, dict[str, Any]]:
        return self.command("weights")

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
    return Checkpoints(where, keep=config.recovery.num_checkpoints)

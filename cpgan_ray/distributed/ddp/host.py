"""The host of a game whose privatizer has several workers: it starts Ray Train and passes commands and replies on."""

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
from cpgan_ray.distributed.ddp.worker import GRACE_S, Command, Start, StoppedError, run_worker
from cpgan_ray.distributed.resources import Bundle
from cpgan_ray.distributed.rpc import gather, get_result, one_line
from cpgan_ray.errors import LostError
from cpgan_ray.training.checkpoint import Checkpoints, Snapshot

POLL_S = "0.5"
"""Polling interval of Ray Train's controller in seconds; it takes one report of each worker per poll."""

TRAIN = "train"
"""Ray Train's folder, next to the run's checkpoints."""


class FailureCallback(UserCallback):
    """Reports failures seen by Ray Train's controller to the host."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        get_result(self.host.report_lost.remote(describe_failures(worker_exceptions)))


def describe_failures(errors: dict[int, Exception]) -> str:
    """The lost workers with their errors: workers whose process does not respond, or if all respond, the errors that they
    raised."""
    unresponsive = {rank: getattr(e, "health_check_failure", None) for rank, e in errors.items()}
    failures = {rank: e for rank, e in unresponsive.items() if e is not None} or {
        rank: getattr(e, "_base_exc", e) for rank, e in errors.items()
    }
    return "; ".join(f"privatizer worker {rank}: {one_line(e)}" for rank, e in sorted(failures.items()))


class ParallelHost:
    """The central actor of such a game, with the interface of GameHost: it runs Ray Train's trainer, has the adversaries' actors,
    and passes commands of the driver to the workers. It computes nothing.

    Its methods run in threads: in one of them a worker waits for its next command, in another the driver waits for the reply.
    """

    max_concurrency = 16
    trainer: threading.Thread | None = None

    def prepare_data(self, config: Config, sizes: Sequence[Bundle], group: PlacementGroup, environment: Mapping[str, str]) -> None:
        """Starts the adversaries' actors and prepares the data on their nodes; workers prepare the data on their own nodes.

        sizes: resources of a worker, of each adversary, of each spare. group: the adversaries' placement group, with this actor in
        its first bundle. environment: see adversary_pool.prepare_data.
        """
        import_env(environment)
        self.config, self.size, self.variables = config, sizes[0], dict(environment)
        self.pool = AdversaryPool(config, sizes, group)
        gather(self.pool.prepare_data(self.pool.names), deadline_s=PREPARE_TIMEOUT_S)

    def build(self, snapshot: Snapshot | None = None) -> None:
        """Builds the players. snapshot: continue from it."""
        self.first_snapshot = snapshot
        self.command_lock, self.changed = threading.Lock(), threading.Condition()
        self.pending = Command(0, 0, "length")
        self.answered, self.rounds_done, self.result = 0, snapshot.round if snapshot else 0, None
        self.num_groups, self.ended = 0, False
        self.error: Exception | None = None
        self.placement: PlacementGroup | None = None
        self.cause, self.lost_at = "", 0.0
        gather(self.pool.build(self.pool.names), deadline_s=max(self.config.runtime.reply_timeout_s, BUILD_TIMEOUT_S))
        self.trainer = threading.Thread(target=self.train, args=(ray.get_runtime_context().current_actor,), daemon=True)
        self.trainer.start()
        self.total_rounds, self.rounds_per_epoch = self.command("length")

    def train(self, handle: Any) -> None:
        """Runs Ray Train from the beginning to the end of the game. handle: the handle of this actor."""
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = POLL_S
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        config, gpus = self.config, self.size.get("GPU", 0.0)
        try:
            self.storage = storage(config)
            self.clear_storage()
            trainer = TorchTrainer(
                run_worker,
                train_loop_config={"start": Start(config, self.size, handle)},
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
                    callbacks=[FailureCallback(handle)],
                ),
            )
            trainer.fit()
        except WorkerGroupError as e:
            failures = describe_failures(e.worker_failures)
            limit = f"that is more than recovery.max_failures = {config.recovery.max_failures}"
            self.fail(RuntimeError(f"lost in round {self.rounds_done}: {failures}; {limit}"))
        except Exception as e:
            self.fail(e)
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def clear_storage(self) -> None:
        """Deletes Ray Train's folder, from which it would otherwise resume; the run's own checkpoints have the whole state."""
        with suppress(OSError):
            self.storage.system.delete_dir(f"{self.storage.root}/{TRAIN}")

    # What the workers call

    def register_group(self, placement: PlacementGroup | None) -> tuple[int, dict[str, Any]]:
        """Registers a new worker group. Returns its number, and the adversaries' actors by name."""
        with self.changed:
            self.num_groups, self.placement = self.num_groups + 1, placement
            self.changed.notify_all()
            return self.num_groups, {name: handle.actor for name, handle in self.pool.handles.items()}

    def environment(self) -> dict[str, str]:
        """Variables that a worker's node may need to reach the data; Ray Train must not store them."""
        return self.variables

    def initial_snapshot(self) -> Snapshot | None:
        """The snapshot from which the first group starts; None: from the beginning."""
        return self.first_snapshot

    def report_ready(self, group: int, round: int) -> None:
        """Called when all players have restored the last checkpoint."""
        if group > 1:
            replayed, seconds = max(0, self.rounds_done - round), time.perf_counter() - self.lost_at
            self.pool.events.append(
                Event(round=self.rounds_done, replayed=replayed, players=("privatizer",), cause=self.cause, seconds=seconds)
            )

    def next_command(self, group: int) -> Command | None:
        """Waits for a command without a reply. None if this group gets no more commands."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or self.num_groups != group or self.pending.number > self.answered)
            return None if self.ended or self.num_groups != group else self.pending

    def reply(self, group: int, number: int, result: Any, round: int) -> None:
        with self.changed:
            if group == self.num_groups and number == self.pending.number:
                self.result, self.answered, self.rounds_done = result, number, round
                self.changed.notify_all()

    def replace_failed(self, lost: str, round: int, snapshot_round: int) -> dict[str, Any] | Exception:
        """The adversaries' actors after AdversaryPool.replace_failed, or its error."""
        try:
            self.pool.replace_failed(LostError(lost), round=round, snapshot_round=snapshot_round)
        except LostError as e:
            return e
        except Exception as e:
            self.fail(e)
            return StoppedError(one_line(e))
        return {name: handle.actor for name, handle in self.pool.handles.items()}

    def fail(self, error: Exception) -> None:
        """Ends the game with an error."""
        with self.changed:
            self.error, self.ended = self.error or error, True
            self.changed.notify_all()

    def report_lost(self, failures: str) -> None:
        """Called when workers are lost. Ray Train then starts a new group, unless there were too many failures."""
        self.cause, self.lost_at = failures, time.perf_counter()

    # What the driver calls

    def command(self, name: str, argument: int = 0) -> Any:
        """Sends a command to the workers and returns the reply, even if the workers are restarted in the meantime.

        Raises: the error that ended the game.
        """
        with self.command_lock, self.changed:
            self.pending = Command(self.pending.number + 1, self.rounds_done, name, argument)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.ended or self.answered == self.pending.number)
            if self.answered != self.pending.number:
                raise self.error or LostError("the privatizer's workers have ended")
            result, self.result = self.result, None
            return result

    def length(self) -> tuple[int, int]:
        """Number of rounds of the run, and of an epoch."""
        return self.total_rounds, self.rounds_per_epoch

    def round(self) -> int:
        """Number of rounds whose metrics were returned."""
        with self.command_lock:
            return self.rounds_done

    def play(self, rounds: int) -> PlayedRounds:
        """Plays up to `rounds` more rounds. Returns their metrics and the failures in the meantime."""
        metrics = self.command("play", rounds)
        self.pool.consecutive_failures = 0
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
        """The placement group of the workers."""
        return self.placement

    def end(self) -> None:
        """Ends the workers, and waits until Ray Train has ended."""
        if self.trainer is None:
            return
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self.trainer.join()
        self.clear_storage()


def storage(config: Config) -> Checkpoints:
    """The folder of the run's checkpoints, which also contains Ray Train's folder. All nodes with workers must reach it."""
    location = config.recovery.checkpoints
    if location is None:
        location = str((config.output or Path(tempfile.mkdtemp(prefix="cpgan-"))) / "checkpoints")
    return Checkpoints(location, keep=config.recovery.num_checkpoints)

"""The job of training: data, the game on its backend, tracking, fresh attacks, and the output folder."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.common.atomic_io import refuse_link
from cpgan_ray.common.claims import claim_folder
from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.common.signals import defer_signals
from cpgan_ray.common.types import Metrics, Outcome
from cpgan_ray.config import Config, flatten, to_json
from cpgan_ray.config.folders.runs import ADJUSTABLE, store_of
from cpgan_ray.data import Dataset, ensure_learnable, load, pin_store
from cpgan_ray.data.batching import rounds_per_epoch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection, scale
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks import ridge_attack
from cpgan_ray.evaluation.encoders.encoder import open_encoder
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, trained_against
from cpgan_ray.evaluation.quick import QUICK_ROWS, quick_r2
from cpgan_ray.evaluation.report.panels import panel, reconstruct_rows
from cpgan_ray.evaluation.report.report import degeneracy_reasons, read_strongest_attack
from cpgan_ray.evaluation.tournament import metrics
from cpgan_ray.models.cost import costs
from cpgan_ray.pipelines.evaluate import attacks_on_ray as attacks_on_ray
from cpgan_ray.pipelines.evaluate import evaluate_codes
from cpgan_ray.pipelines.output_folder import output_folder
from cpgan_ray.pipelines.session import CHUNK_S, GameSession, on_ray, open_session
from cpgan_ray.tracking import Console, Tracker, ensure_trackable, read_curves
from cpgan_ray.training.checkpoint import Checkpoints, Snapshot
from cpgan_ray.training.game import active_adversaries

logger = logging.getLogger(__name__)

PANEL_PICTURES = 10


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The surroundings of a run. A trial of a search hosts the game in its own way, and has a parent run and a callback."""

    host: Callable[[Config, Snapshot | None], AbstractContextManager[GameSession]] = open_session
    on_quick_attack: Callable[[Metrics], None] = lambda metrics: None
    """Called after each quick fresh attack with `epoch`, `utility/val_accuracy` and `privacy/quick_r2`."""
    parent: str | None = None
    """Id of the parent run in MLflow."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    """Logged in addition to the usual params."""


@dataclass(frozen=True)
class PeriodicCallback:
    """A function to call every so many rounds, while no round is played. It gets the game and the metrics of the last round."""

    every: int
    act: Callable[[GameSession, Metrics], None]

    def due(self, done: int) -> bool:
        return self.every > 0 and done % self.every == 0


def train(config: Config, context: RunContext | None = None, *, resume: str | None = None) -> dict[str, Any]:
    """Train, attack, and write everything to the output folder and to MLflow. Returns the summary that a job prints.

    resume: id of the MLflow run of an interrupted run. It continues in its output folder from its last checkpoint, or starts again
    if there is none.

    Raises: InputError for anything the user can fix, before anything is written to the output folder.
    """
    context = context or RunContext()
    with ExitStack() as claims:
        output = claims.enter_context(output_folder(config.output, config.preset, resume=resume is not None))
        checkpoints = Checkpoints(
            config.recovery.checkpoints or str(refuse_link(output / "checkpoints")),
            keep=config.recovery.num_checkpoints,
            settings=resume_fingerprint(config),
        )
        if config.recovery.checkpoint_every and (folder := checkpoints.local_folder) and not folder.is_relative_to(output):
            claims.enter_context(claim_folder(folder, flag="--recovery.checkpoints"))
        return train_in(output, config, context, checkpoints, resume=resume)


def train_in(output: Path, config: Config, context: RunContext, checkpoints: Checkpoints, *, resume: str | None) -> dict[str, Any]:
    """`train`, in an output folder that is already locked for this run."""
    started = time.perf_counter()
    ensure_trackable(config.tracking, output)
    if config.recovery.checkpoint_every and not resume:
        checkpoints.ensure_free()
    snapshot = checkpoints.latest() if resume else None
    if snapshot is not None and snapshot.players.keys() != {"privatizer", *active_adversaries(config)}:
        raise InputError(
            f"the checkpoint in {checkpoints.location} has other players ({', '.join(snapshot.players)}): start a new run"
        )
    set_up_process(threads=config.runtime.threads or available_cpus())
    dataset = prepare_run(config)
    if resume and (first_store := store_of(output)) not in (None, dataset.folder.name):
        raise InputError(
            f"the run in {output} was started on prepared store {first_store}, but these data give {dataset.folder.name}: "
            "correct --data-dir"
        )
    first_round = snapshot.round if snapshot else 0
    with ExitStack() as players:
        game = players.enter_context(context.host(pin_store(replace(config, output=output), dataset), snapshot))
        new_tracker = partial(
            Tracker, dataset=dataset, tags=context.tags, parent=context.parent, params=context.params, resume=resume
        )
        with defer_signals() as stop, new_tracker(config, output, played=first_round) as tracker, stop.allowed():
            callbacks = [
                PeriodicCallback(config.tracking.panel_every * game.rounds_per_epoch, panel_drawer(config, dataset, tracker)),
                PeriodicCallback(
                    config.attacks.quick_every * game.rounds_per_epoch, quick_attacker(config, dataset, tracker, context)
                ),
            ]
            writer = CheckpointWriter(checkpoints, config.recovery.checkpoint_every)
            play(game, tracker, names=active_adversaries(config), callbacks=callbacks, writer=writer, done=first_round)
            outcome = game.outcome()
            players.close()  # frees their cores and memory for the attacks
            tracker.flush()
            summary = evaluate(config, dataset, outcome, tracker, final_round=game.total_rounds - 1)
            seconds = time.perf_counter() - started
            tracker.log({"time/total_s": seconds}, step=game.total_rounds - 1)
            stop.complete()
    return {"run_id": tracker.run_id, "output": str(output), **summary, "seconds": round(seconds, 1)}


def resume_fingerprint(config: Config) -> dict[str, Any]:
    """The settings that influence a game's results. Settings that may change when a run is resumed are left out, and so are the
    paths of its data."""
    excluded = (*ADJUSTABLE, "data_dir", "cache_dir", "shared_cache", "trust")
    return {name: value for name, value in flatten(config).items() if not name.startswith(excluded)}


def prepare_run(config: Config) -> Dataset:
    """Prepare the data set of a run, with everything that its players and attacks need.

    Raises: InputError if the run could not finish: it fails now, not after hours of training.
    """
    if on_ray(config) or attacks_on_ray(config.runtime):
        ensure_unchanged()
    dataset = load(config)
    rounds_per_epoch(len(dataset.train), config.batch_size)
    ensure_learnable(dataset, config.data.labels)
    check_undefended(config)
    attack_specs(config.attacks, dataset)
    requested = {getattr(config.adversaries[name], "components", 0) for name in active_adversaries(config)}
    for components in {number or DEFAULT_COMPONENTS for number in requested} | {DEFAULT_COMPONENTS}:
        projection(dataset, components=components)
    return dataset


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


def evaluate(config: Config, dataset: Dataset, outcome: Outcome, tracker: Tracker, *, final_round: int) -> dict[str, Any]:
    """Export the programs, run the tournament of fresh attacks, and write the report with the utility. Returns the summary."""
    pictures = dataset.test.take(np.arange(2)).transpose(0, 3, 1, 2).copy()
    tracker.log_programs(outcome.programs, {"privatizer": pictures, "utility_head": outcome.codes["test"][:2].copy()})
    evaluated = evaluate_codes(
        EvaluationContext(dataset, outcome.codes, config.attacks, config.seed, trained_against(config), config.data.labels),
        runtime=config.runtime,
        logits=outcome.logits,
        description=describe_run(config)
        | {"cost": costs(config, image_shape=dataset.image_shape, outputs=outcome.logits["test"].shape[1])},
        curves=read_curves(tracker.output / "metrics.jsonl"),
        undefended=config.tracking.undefended,
    )
    utility = evaluated.report["utility"]
    test_utility = {f"utility/{name}": value for name, value in utility.items() if name != "val_accuracy"}  # logged with its epoch
    tracker.log(test_utility | metrics(evaluated.result), step=final_round)
    tracker.tag("strongest.attack", evaluated.result.strongest.spec.name)
    evaluated.write(tracker.output / "report")
    tracker.log_folder(tracker.output / "report", "report")
    if reasons := degeneracy_reasons(evaluated.report):
        tracker.tag("code.degenerate", reasons[0])
    accuracies = {name: round(utility[name], 4) for name in ("accuracy", "majority_accuracy", "balanced_accuracy")}
    return {**accuracies, **headline(evaluated.report)}


def describe_run(config: Config) -> dict[str, Any]:
    """The report's description of a run."""
    settings = to_json(config)
    names = ("data", "privatizer", "utility", "game", "adversaries", "epochs", "batch_size", "attacks")
    return {
        "name": config.preset,
        "k": config.k,
        "privacy_weight": config.privacy_weight,
        "seed": config.seed,
        "settings": {name: settings[name] for name in names},
    }


def headline(report: dict[str, Any]) -> dict[str, Any]:
    """The tournament's part of the summary that a job prints."""
    strongest = {key: round(v, 4) if isinstance(v, float) else v for key, v in report["privacy"]["strongest"].items()}
    warnings = [warning["message"] for warning in report["warnings"]]
    return {"strongest": strongest, "label_floor_r2": round(report["privacy"]["label_floor_r2"], 4), "warnings": warnings}


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
    config: Config, dataset: Dataset, tracker: Tracker, context: RunContext
) -> Callable[[GameSession, Metrics], None]:
    """A callback during training that runs a quick fresh attack on the current codes, logs its R2, and calls
    `context.on_quick_attack`."""

    def attack(game: GameSession, last: Metrics) -> None:
        round = int(last["round"])
        r2 = quick_r2(game.sample(QUICK_ROWS), dataset, seed=config.seed)
        tracker.log({"privacy/quick_r2": r2}, step=round)
        tracker.settle()  # the next call may end this process, and a stopped trial must show why
        epoch = (round + 1) // game.rounds_per_epoch
        context.on_quick_attack({"epoch": epoch, "utility/val_accuracy": last["utility/val_accuracy"], "privacy/quick_r2": r2})

    return attack


def check_undefended(config: Config) -> None:
    """Raises: InputError if the undefended twin's folder has no exported privatizer, or if its privatizer or report is damaged."""
    folder = config.tracking.undefended
    if folder is not None and not (folder / "privatizer.pt2").is_file():
        raise InputError(f"tracking.undefended is {folder}, which has no privatizer.pt2: give the output folder of a finished run")
    if folder is not None:
        open_encoder(folder / "privatizer.pt2")
        read_strongest_attack(folder)

"""The whole job of training: data, the game on its backend, tracking, fresh attacks, and the folder that is left behind."""

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
from cpgan_ray.config.folders import ADJUSTABLE, store_of
from cpgan_ray.data import Dataset, ensure_learnable, load, pin_store
from cpgan_ray.data.batching import rounds_per_epoch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection, scale
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks import ridge_attack
from cpgan_ray.evaluation.encoders.encoder import open_encoder
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, trained_against
from cpgan_ray.evaluation.quick import QUICK_ROWS, quick_r2
from cpgan_ray.evaluation.report.panels import panel, reconstructed
from cpgan_ray.evaluation.report.report import degenerate, strongest_of
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
    """What a run is part of. A trial of a search has its own way to host the game, a parent run, and a listener in mid-training."""

    host: Callable[[Config, Snapshot | None], AbstractContextManager[GameSession]] = open_session
    listen: Callable[[Metrics], None] = lambda metrics: None
    """Called after each quick fresh attack with `epoch`, `utility/val_accuracy` and `privacy/quick_r2`."""
    parent: str | None = None
    """MLflow run that the run is a child of."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    """Logged beside the usual ones."""


@dataclass(frozen=True)
class PeriodicCallback:
    """Something to do every so many rounds while nothing is played: it gets the game and the last round's metrics."""

    every: int
    act: Callable[[GameSession, Metrics], None]

    def due(self, done: int) -> bool:
        return self.every > 0 and done % self.every == 0


def train(config: Config, context: RunContext | None = None, *, resume: str | None = None) -> dict[str, Any]:
    """Train, attack, leave everything in the output folder and in MLflow; returns the summary that a job prints.

    resume: MLflow run of an interrupted run, which goes on in its output folder from its last checkpoint, or from its beginning.

    Raises: InputError for anything the user can mend, before anything is written to the output folder.
    """
    context = context or RunContext()
    with ExitStack() as claims:
        output = claims.enter_context(output_folder(config.output, config.preset, resume=resume is not None))
        kept = Checkpoints(
            config.recovery.checkpoints or str(refuse_link(output / "checkpoints")),
            keep=config.recovery.num_checkpoints,
            settings=resume_fingerprint(config),
        )
        if config.recovery.checkpoint_every and (folder := kept.local_folder) and not folder.is_relative_to(output):
            claims.enter_context(claim_folder(folder, flag="--recovery.checkpoints"))
        return train_in(output, config, context, kept, resume=resume)


def train_in(output: Path, config: Config, context: RunContext, kept: Checkpoints, *, resume: str | None) -> dict[str, Any]:
    """The same in a folder that is this run's."""
    started = time.perf_counter()
    ensure_trackable(config.tracking, output)
    if config.recovery.checkpoint_every and not resume:
        kept.ensure_free()
    snapshot = kept.latest() if resume else None
    if snapshot is not None and snapshot.players.keys() != {"privatizer", *active_adversaries(config)}:
        raise InputError(
            f"the checkpoint in {kept.location} is of other players ({', '.join(snapshot.players)}): begin the run again"
        )
    set_up_process(threads=config.runtime.threads or available_cpus())
    dataset = prepare_run(config)
    if resume and (begun := store_of(output)) not in (None, dataset.folder.name):
        made = dataset.folder.name
        raise InputError(f"the run in {output} was begun on prepared store {begun}, and these data make {made}: mend --data-dir")
    with ExitStack() as players:
        game = players.enter_context(context.host(pin_store(replace(config, output=output), dataset), snapshot))
        tracked = partial(Tracker, dataset=dataset, tags=context.tags, parent=context.parent, params=context.params, resume=resume)
        with defer_signals() as stop, tracked(config, output, played=snapshot.round if snapshot else 0) as tracker, stop.allowed():
            pauses = [
                PeriodicCallback(config.tracking.panel_every * game.rounds_per_epoch, panel_drawer(config, dataset, tracker)),
                PeriodicCallback(
                    config.attacks.quick_every * game.rounds_per_epoch, quick_attacker(config, dataset, tracker, context)
                ),
            ]
            keeper = CheckpointWriter(kept, config.recovery.checkpoint_every)
            play(
                game,
                tracker,
                names=active_adversaries(config),
                pauses=pauses,
                keeper=keeper,
                done=snapshot.round if snapshot else 0,
            )
            outcome = game.outcome()
            players.close()  # their cores and memory are the attacks' now
            tracker.flush()
            summary = evaluate(config, dataset, outcome, tracker, final_round=game.total_rounds - 1)
            seconds = time.perf_counter() - started
            tracker.log({"time/total_s": seconds}, step=game.total_rounds - 1)
            stop.complete()
    return {"run_id": tracker.run_id, "output": str(output), **summary, "seconds": round(seconds, 1)}


def resume_fingerprint(config: Config) -> dict[str, Any]:
    """The settings that decide how a game goes: none that a run may be resumed with another value of, nor where its data are."""
    left = (*ADJUSTABLE, "data_dir", "cache_dir", "shared_cache", "trust")
    return {name: value for name, value in flatten(config).items() if not name.startswith(left)}


def prepare_run(config: Config) -> Dataset:
    """The data set of a run, prepared, with all that its players and attacks will ask for.

    Raises: InputError where the run could not be played to its end: now, not after hours of training.
    """
    if on_ray(config) or attacks_on_ray(config.runtime):
        ensure_unchanged()
    dataset = load(config)
    rounds_per_epoch(len(dataset.train), config.batch_size)
    ensure_learnable(dataset, config.data.labels)
    check_undefended(config)
    attack_specs(config.attacks, dataset)
    asked = {getattr(config.adversaries[name], "components", 0) for name in active_adversaries(config)}
    for components in {number or DEFAULT_COMPONENTS for number in asked} | {DEFAULT_COMPONENTS}:
        projection(dataset, components=components)
    return dataset


class CheckpointWriter:
    """Writes checkpoints when they are due. One that cannot be written is told and missed; those before it stay."""

    def __init__(self, checkpoints: Checkpoints, every: int) -> None:
        self.checkpoints, self.every = checkpoints, every
        self.last: int | None = None

    def due(self, done: int, *, last: bool) -> bool:
        """last: there may be no later one."""
        if self.last is None:
            self.last = done - done % self.every if self.every else done
        return self.every > 0 and (last or done - self.last >= self.every)

    def write(self, snapshot: Snapshot) -> None:
        self.last = snapshot.round
        try:
            self.checkpoints.write(snapshot)
        except OSError as e:
            told = f"checkpoint of round {snapshot.round} not written to {self.checkpoints.location} ({redacted(str(e))})"
            logger.warning(told)


def play(
    game: GameSession,
    tracker: Tracker,
    *,
    names: Sequence[str],
    pauses: Sequence[PeriodicCallback],
    keeper: CheckpointWriter,
    done: int = 0,
) -> None:
    """All rounds from `done` on, logged as they come. The next ones are under way while the last are logged, but for pauses.

    Asked to stop, it ends the rounds that are under way, writes a checkpoint and leaves.
    """
    if done == game.total_rounds:
        return
    console = Console(total_rounds=game.total_rounds, rounds_per_epoch=game.rounds_per_epoch, names=names, done=done)
    coming = game.play(1)
    with defer_signals() as stop, closing(console):
        while done < game.total_rounds:
            played = game.get(coming)
            done = int(played[-1]["round"]) + 1
            chunk = max(1, round(CHUNK_S * len(played) / sum(m["time/round_s"] for m in played)))
            over, stopping = done == game.total_rounds, stop.requested  # asked once: a signal may come at any line
            due = [pause for pause in pauses if pause.due(done) and not over]
            snapshot = game.snapshot() if keeper.due(done, last=over or stopping or game.warned()) else None
            if not (over or due or stopping):
                coming = game.play(chunk)
            for one in played:
                tracker.log({name: value for name, value in one.items() if name != "round"}, step=int(one["round"]))
            console.show(played)
            tracker.log_events(game.events)
            game.events.clear()
            if snapshot is not None:
                tracker.settle()  # what a checkpoint counts as played has been logged
                keeper.write(snapshot)
            if stopping:
                stop.now()
            for pause in due:
                pause.act(game, played[-1])
            if due:
                coming = game.play(chunk)


def evaluate(config: Config, dataset: Dataset, outcome: Outcome, tracker: Tracker, *, final_round: int) -> dict[str, Any]:
    """Utility on the test split, the tournament of fresh attacks, exported programs, report card. Returns the summary."""
    pictures = dataset.test.take(np.arange(2)).transpose(0, 3, 1, 2).copy()
    tracker.log_programs(outcome.programs, {"privatizer": pictures, "utility_head": outcome.codes["test"][:2].copy()})
    evaluated = evaluate_codes(
        EvaluationContext(dataset, outcome.codes, config.attacks, config.seed, trained_against(config), config.data.labels),
        runtime=config.runtime,
        logits=outcome.logits,
        about=about(config) | {"cost": costs(config, image_shape=dataset.image_shape, outputs=outcome.logits["test"].shape[1])},
        curves=read_curves(tracker.output / "metrics.jsonl"),
        undefended=config.tracking.undefended,
    )
    utility = evaluated.report["utility"]
    told = {f"utility/{name}": value for name, value in utility.items() if name != "val_accuracy"}  # logged with its epoch
    tracker.log(told | metrics(evaluated.result), step=final_round)
    tracker.tag("strongest.attack", evaluated.result.strongest.spec.name)
    evaluated.write(tracker.output / "report")
    tracker.log_folder(tracker.output / "report", "report")
    if why := degenerate(evaluated.report):
        tracker.tag("code.degenerate", why[0])
    accuracies = {name: round(utility[name], 4) for name in ("accuracy", "majority_accuracy", "balanced_accuracy")}
    return {**accuracies, **headline(evaluated.report)}


def about(config: Config) -> dict[str, Any]:
    """What a report says of the run that it is on."""
    settings = to_json(config)
    kept = ("data", "privatizer", "utility", "game", "adversaries", "epochs", "batch_size", "attacks")
    return {
        "name": config.preset,
        "k": config.k,
        "privacy_weight": config.privacy_weight,
        "seed": config.seed,
        "settings": {name: settings[name] for name in kept},
    }


def headline(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a job's last line that the tournament answers for."""
    strongest = {key: round(v, 4) if isinstance(v, float) else v for key, v in report["privacy"]["strongest"].items()}
    warnings = [warning["message"] for warning in report["warnings"]]
    return {"strongest": strongest, "label_floor_r2": round(report["privacy"]["label_floor_r2"], 4), "warnings": warnings}


def panel_drawer(config: Config, dataset: Dataset, tracker: Tracker) -> Callable[[GameSession, Metrics], None]:
    """In mid-training: test pictures and what a ridge attack recovers of them."""

    def draw(game: GameSession, last: Metrics) -> None:
        basis = projection(dataset, components=DEFAULT_COMPONENTS)
        data = EvaluationContext(dataset, game.outcome().codes, config.attacks, config.seed).data("leaked")
        rows = np.arange(min(PANEL_PICTURES, len(dataset.test)))
        shown = {
            "original": scale(dataset.test.take(rows)),
            "defended,\nridge attack": reconstructed(data, ridge_attack(data, config.attacks), rows, np.asarray(basis.mean)),
        }
        tracker.log_panel(panel(shown, dataset), step=int(last["round"]))

    return draw


def quick_attacker(
    config: Config, dataset: Dataset, tracker: Tracker, context: RunContext
) -> Callable[[GameSession, Metrics], None]:
    """In mid-training: a quick fresh attack on the codes of the moment, logged, and told to whoever listens."""

    def attack(game: GameSession, last: Metrics) -> None:
        round = int(last["round"])
        found = quick_r2(game.sample(QUICK_ROWS), dataset, seed=config.seed)
        tracker.log({"privacy/quick_r2": found}, step=round)
        tracker.settle()  # who listens may end this process: a trial that is stopped shows why
        epoch = (round + 1) // game.rounds_per_epoch
        context.listen({"epoch": epoch, "utility/val_accuracy": last["utility/val_accuracy"], "privacy/quick_r2": found})

    return attack


def check_undefended(config: Config) -> None:
    """Raises: InputError where the undefended twin's folder has no exported privatizer, or what it has is damaged."""
    folder = config.tracking.undefended
    if folder is not None and not (folder / "privatizer.pt2").is_file():
        raise InputError(f"tracking.undefended is {folder}, which has no privatizer.pt2: give the output folder of a finished run")
    if folder is not None:
        open_encoder(folder / "privatizer.pt2")
        strongest_of(folder)

"""The job of training: data, the game on its backend, tracking, fresh attacks, and the output folder."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpgan_ray.common.atomic_io import refuse_link
from cpgan_ray.common.claims import claim_folder
from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.common.signals import defer_signals
from cpgan_ray.common.types import Metrics, Outcome
from cpgan_ray.config import Config, flatten, to_json
from cpgan_ray.config.folders.runs import ADJUSTABLE, store_of
from cpgan_ray.config.targets import PICTURE
from cpgan_ray.data import Dataset, ensure_learnable, load, pin_store, task_of
from cpgan_ray.data.batching import rounds_per_epoch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.bounds.channel import Channel
from cpgan_ray.evaluation.client import cost_metrics
from cpgan_ray.evaluation.encoders.encoder import open_own
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, trained_against
from cpgan_ray.evaluation.identity.judges import check_judge
from cpgan_ray.evaluation.late_tasks import late_metrics
from cpgan_ray.evaluation.report.report import alice_answers, degeneracy_reasons, read_strongest_attack
from cpgan_ray.evaluation.tournament_numbers import metrics
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.models.cost import costs, ensure_within_budget
from cpgan_ray.models.export import export_programs
from cpgan_ray.pipelines.classifier import with_classifier
from cpgan_ray.pipelines.evaluate import attacks_on_ray, client_of_run, evaluate_codes
from cpgan_ray.pipelines.fit_to_data import fit_to_data
from cpgan_ray.pipelines.label_weights import with_label_weights
from cpgan_ray.pipelines.late_labels import check_late_labels, check_twin_answers
from cpgan_ray.pipelines.other_data import encode_other, load_other
from cpgan_ray.pipelines.output_folder import output_folder
from cpgan_ray.pipelines.parts import pinned
from cpgan_ray.pipelines.rounds import CheckpointWriter, PeriodicCallback, panel_drawer, play, quick_attacker
from cpgan_ray.pipelines.session import GameSession, on_ray, open_session
from cpgan_ray.pipelines.teachers import with_teachers
from cpgan_ray.tracking import Tracker, ensure_trackable, read_curves
from cpgan_ray.training.checkpoint import Checkpoints, Snapshot
from cpgan_ray.training.game import active_adversaries
from cpgan_ray.training.label_weights import label_weights
from cpgan_ray.training.targets import target_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The surroundings of a run. A trial of a search hosts the game in its own way, and has a parent run and a callback."""

    host: Callable[[Config, Snapshot | None], AbstractContextManager[GameSession]] = open_session
    on_quick_attack: Callable[[Metrics], None] = lambda metrics: None
    """Called after each quick fresh attack with `epoch`, both validation accuracies of `utility/` and `privacy/quick_r2`."""
    parent: str | None = None
    """Id of the parent run in MLflow."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    """Logged in addition to the usual params."""
    is_last: bool = True
    """Whether the process has no other work after this run: a request to stop that comes after its end then has no effect."""


def train(config: Config, context: RunContext | None = None, *, resume: str | None = None) -> dict[str, Any]:
    """Train, attack, and write everything to the output folder and to MLflow. Returns the summary that a job prints.

    resume: id of the MLflow run of an interrupted run. It continues in its output folder from its last checkpoint, or starts again
    if there is none.

    Raises: InputError for anything the user can fix, before anything is written to the output folder.
    """
    context, config = context or RunContext(), pinned(config)
    with ExitStack() as claims:
        output = claims.enter_context(output_folder(config.output, config.preset, resume=resume is not None))
        parallel = context.host is open_session and on_ray(config)
        config = with_teachers(with_classifier(fit_to_data(config), parallel=parallel), parallel=parallel)
        config = with_label_weights(config)
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
                    config.attacks.quick_every * game.rounds_per_epoch,
                    quick_attacker(config, dataset, tracker, context.on_quick_attack),
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
            if context.is_last:
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
    ensure_learnable(dataset, task_of(dataset, config.data.labels))
    check_late_labels(config, dataset)
    label_weights(config.utility, task_of(dataset, config.data.labels))
    ensure_within_budget(config, image_shape=dataset.image_shape)
    check_undefended(config)
    attack_specs(config.attacks, dataset, other=load_other(config, dataset, noise=config.privatizer.noise))
    check_judge(config.attacks, dataset)
    check_own_networks(config, dataset)
    requested = check_targets(config, dataset)
    for components in {number or DEFAULT_COMPONENTS for number in requested} | {DEFAULT_COMPONENTS}:
        projection(dataset, components=components)
    return dataset


def check_targets(config: Config, dataset: Dataset) -> set[int]:
    """The numbers of principal components that the adversaries need; 0: pixels.

    Raises: InputError if the data set does not have the target of an adversary.
    """
    active = [config.adversaries[name] for name in active_adversaries(config)]
    for target in {adversary.target for adversary in active} - {PICTURE}:
        target_source(target, dataset, components=0)
    return {adversary.components for adversary in active if adversary.target == PICTURE}


def check_own_networks(config: Config, dataset: Dataset) -> None:
    """Build and export the networks once, if the user's own code or a library makes one of them.

    Raises: InputError if they cannot be built for these samples, or not exported.
    """
    if not (":" in config.privatizer.family + config.utility.family or config.privatizer.weights):
        return
    shape, outputs = dataset.image_shape, task_of(dataset, config.data.labels).num_logits
    with torch.random.fork_rng(devices=()):
        networks = {
            "privatizer": build_privatizer(config.privatizer, k=config.k, image_shape=shape),
            "head": build_head(config.utility, k=config.k, num_logits=outputs, image_shape=shape),
        }
        export_programs(nn.ModuleDict(networks), k=config.k, image_shape=shape, dtype=dataset.train.dtype)


def evaluate(config: Config, dataset: Dataset, outcome: Outcome, tracker: Tracker, *, final_round: int) -> dict[str, Any]:
    """Export the programs, run the tournament of fresh attacks, and write the report with the utility. Returns the summary."""
    pictures = dataset.test.take(np.arange(2)).transpose(0, 3, 1, 2).copy()
    tracker.log_programs(outcome.programs, {"privatizer": pictures, "utility_head": outcome.codes["test"][:2].copy()})
    context = EvaluationContext(
        dataset,
        outcome.codes,
        config.attacks,
        config.seed,
        trained_against(config),
        config.data.labels,
        channel=Channel.of_privatizer(config.privatizer, clean=outcome.clean),
        late_labels=config.data.late_labels,
    )
    if (other := load_other(config, dataset, noise=config.privatizer.noise)) is not None:
        context = replace(context, other=encode_other(open_own(tracker.output / "privatizer.pt2"), other, config))
    evaluated = evaluate_codes(
        context,
        runtime=config.runtime,
        logits=outcome.logits,
        description=describe_run(config)
        | {"cost": costs(config, image_shape=dataset.image_shape, outputs=outcome.logits["test"].shape[1])}
        | {"client": client_of_run(config, outcome.codes, dataset)},
        curves=read_curves(tracker.output / "metrics.jsonl"),
        undefended=config.tracking.undefended,
        encode=open_own(tracker.output / "privatizer.pt2").encode if config.attacks.generative else None,
    )
    utility = evaluated.report["utility"]
    test_utility = {
        f"utility/{name}": value for name, value in utility.items() if not name.startswith("val_")
    }  # logged with the epoch
    tracker.log(
        test_utility | metrics(evaluated.result) | late_metrics(evaluated.report) | cost_metrics(evaluated.report), step=final_round
    )
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
    if (folder := config.attacks.attacker_data) is not None:
        settings["attacks"]["attacker_data"] = folder.name  # a report may be published, a path of this machine should not
    settings["utility"] |= {
        "teachers": [Path(name).name for name in config.utility.teachers],
        "teacher_answers": (config.utility.teacher_answers or "").rpartition("@")[2] or None,
    }
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
    floors = {name: report["privacy"][name] for name in ("answers_floor_r2", "label_floor_r2")}
    return {
        "strongest": strongest,
        **{name: None if r2 is None else round(r2, 4) for name, r2 in floors.items()},
        "warnings": warnings,
    }


def check_undefended(config: Config) -> None:
    """Raises: InputError if the undefended twin's folder has no exported privatizer, or if its privatizer or report is damaged."""
    folder = config.tracking.undefended
    if folder is not None and not (folder / "privatizer.pt2").is_file():
        raise InputError(f"tracking.undefended is {folder}, which has no privatizer.pt2: give the output folder of a finished run")
    if folder is not None:
        open_own(folder / "privatizer.pt2")
        read_strongest_attack(folder)
        alice_answers(folder)
        check_twin_answers(folder, config)

"""The classifier that the client of a run on answers runs: a finished undefended run, or one of a preset that is trained first.

Its weights become one file next to the prepared store (models/answers.py), and its answers to the training pictures another, from
which the run learns like from those of teachers: a classifier knows how sure it is of each answer.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from cpgan_ray.common.atomic_io import write_bytes
from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.ownership import sign
from cpgan_ray.config import Config
from cpgan_ray.config.folders.runs import read_run_record, store_of
from cpgan_ray.config.players import ANSWERS
from cpgan_ray.config.presets import PRESETS, preset
from cpgan_ray.data import Dataset, Task, ensure_learnable, load, pin_store, task_of
from cpgan_ray.data.batching import rounds_per_epoch
from cpgan_ray.data.store import checksum, folder_lock
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.programs import load_program
from cpgan_ray.models.pretrained import pinned_weights
from cpgan_ray.pipelines.teachers import (
    FILES,
    HEAD,
    PRIVATIZER,
    answers_file,
    ensure_teaches,
    exists,
    program_logits,
    run_files,
    settings_of,
    train_all,
    with_teachers,
    write_answers,
)
from cpgan_ray.training.accuracy import mean_accuracy
from cpgan_ray.training.classifier import Trained, file_of, train_classifier
from cpgan_ray.training.teachers import answers_from, pinned_file

logger = logging.getLogger(__name__)

SUFFIX = ".pt"


def with_classifier(config: Config, *, parallel: bool) -> Config:
    """The configuration with the files of its classifier's weights and answers, which are made unless they exist. Unchanged for
    other families of privatizers.

    parallel: train it, and its teachers, as Ray tasks; otherwise in this process.

    Raises: InputError if there is no such preset or run, if the run is defended or was trained on another task or other data.
    """
    p = config.privatizer
    if p.family != ANSWERS or p.classifier is None:
        return config
    if p.weights and config.utility.teacher_answers and Path(p.weights.partition("@")[0]).is_file():
        return config
    dataset = load(config)
    task = task_of(dataset, config.data.labels)
    ensure_learnable(dataset, task)
    rounds_per_epoch(len(dataset.train), config.batch_size)
    if config.k != task.num_logits:
        raise InputError(
            f"k is {config.k}, but privatizer.family 'answers' sends one number for each of the {task.num_logits} logits: set --k "
            f"{task.num_logits}"
        )
    make = from_preset if p.classifier in PRESETS else from_run
    weights, answers = make(p.classifier, config, dataset, task, parallel=parallel)
    file = pinned_weights(str(weights))
    if p.weights not in (None, file):
        raise InputError(
            f"the run was started with the classifier {p.weights}, but privatizer.classifier {redacted(p.classifier)!r} now gives "
            f"{file}: restore the first file, or start a new run"
        )
    utility = replace(config.utility, teacher_answers=pinned_file(str(answers)))
    return replace(config, privatizer=replace(p, weights=file), utility=utility)


def stored(dataset: Dataset, task: Task, *key: object, make: Callable[[], Trained]) -> tuple[Path, Path]:
    """The files of a classifier's weights and answers, which are made unless both exist."""
    answers = answers_file(dataset, "classifier", *key)
    weights = answers.with_name(f"classifier-{answers.stem.partition('-')[2]}{SUFFIX}")
    with folder_lock(weights):
        if not (exists(weights, dataset) and exists(answers, dataset)):
            trained = make()
            write_answers(answers, answers_from(trained.logits, task))
            write_bytes(weights, trained.file)
            sign(weights)
    return weights, answers


# --------------------------------------------------------------------------------------------------------------- presets


def from_preset(name: str, config: Config, dataset: Dataset, task: Task, *, parallel: bool) -> tuple[Path, Path]:
    """The files of an undefended run of a preset on this run's data, with its seed and its teachers."""
    if preset(name).privatizer.family == ANSWERS:
        raise InputError(f"privatizer.classifier is {name!r}, which runs a classifier itself: give another preset, such as celeba")
    undefended = with_teachers(classifier_config(name, pin_store(config, dataset)), parallel=parallel)
    rounds_per_epoch(len(dataset.train), undefended.batch_size)

    def make() -> Trained:
        results: list[Trained] = []
        started = time.monotonic()
        logger.info(f"training the classifier, {name} undefended, into {dataset.folder}")
        train_all([undefended], train_classifier, lambda _, trained: results.append(trained), parallel=parallel)
        (trained,) = results
        right = mean_accuracy(trained.logits["val"], task.answers(dataset.val), task)
        logger.info(f"classifier: validation accuracy {right:.3f}, after {time.monotonic() - started:.0f} s")
        return trained

    return stored(dataset, task, settings_of(undefended), make=make)


def classifier_config(name: str, config: Config) -> Config:
    """The undefended run of a preset on the data of `config`, without adversaries, rounding and noise."""
    base = preset(name)
    taught = {field: getattr(config.utility, field) for field in ("teachers", "train_teachers", "class_weighted_loss")}
    return replace(
        config,
        k=base.k,
        epochs=base.epochs,
        batch_size=min(base.batch_size, config.batch_size),
        precision=base.precision,
        privacy_weight=0.0,
        privatizer=replace(base.privatizer, quantization_step=0.0, levels=0, noise=0.0, num_workers=1),
        utility=replace(base.utility, **taught),
        game=type(base.game)(),
        adversaries={},
    )


# ---------------------------------------------------------------------------------------------------------- finished runs


def from_run(location: str, config: Config, dataset: Dataset, task: Task, *, parallel: bool) -> tuple[Path, Path]:
    """The files of a finished undefended run, from its exported programs."""
    name = f"privatizer.classifier: {redacted(location)}"
    if config.utility.teachers or config.utility.train_teachers:
        raise InputError(f"{name} has finished, so the teachers in utility could not teach it: leave them out, or give a preset")
    with run_files(location) as folder:
        if missing := [file for file in FILES if not (folder / file).is_file()]:
            known = ", ".join(PRESETS)
            raise InputError(f"{name} has no {missing[0]}: give the output folder of a finished run, or a preset ({known})")
        run = read_run_record(folder, trust=config.trust)[0]
        ensure_teaches(run, config, dataset, task, name=name)
        if (store := store_of(folder)) not in (None, dataset.folder.name):
            raise InputError(
                f"{name} was trained on prepared store {store}, this run uses {dataset.folder.name}: give a run on the same data"
            )
        if ":" in run.privatizer.family + run.utility.family:
            raise InputError(f"{name} has networks of its own code, which cannot be a part of another network: give a preset")
        if run.privatizer.quantization_step or run.privatizer.noise or run.privatizer.levels:
            raise InputError(
                f"{name} rounds its codes, or adds noise to them, so it knows less than it could: give a run with "
                "--privatizer.quantization-step 0"
            )

        def make() -> Trained:
            networks = {"privatizer": weights_of(folder / PRIVATIZER, "privatizer."), "head": weights_of(folder / HEAD, "")}
            logits = program_logits(folder, dataset, task, name=name)
            return Trained(file_of(networks, logits["train"], run, dataset, task), logits)

        return stored(dataset, task, checksum(folder / PRIVATIZER), checksum(folder / HEAD), task.names, make=make)


def weights_of(path: Path, prefix: str) -> dict[str, Tensor]:
    """The weights in an exported program, by their names behind `prefix`.

    Raises: InputError if it is damaged, or no program of this project.
    """
    try:
        program = load_program(path)
    except Exception as e:  # torch, zipfile and json raise many types for a damaged file
        reason = " ".join(str(e).split())[:120]
        raise InputError(f"{path} cannot be read ({reason}): give a run whose files belong together") from e
    return {name.removeprefix(prefix): value for name, value in program.state_dict.items() if name.startswith(prefix)}

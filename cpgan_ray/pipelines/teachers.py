"""The teachers of a run: finished undefended runs, or undefended runs that are trained first.

Their answers to the training pictures become one file next to the prepared store, which every process of the run reads
(training/teachers.py).
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from cpgan_ray.common.atomic_io import refuse_link, write_bytes
from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.ownership import SUFFIX as SIGNATURE
from cpgan_ray.common.ownership import is_own, sign
from cpgan_ray.common.plugins.loading import DIGITS
from cpgan_ray.common.process import available_cpus
from cpgan_ray.common.rng import stream
from cpgan_ray.config import Config, EncoderConfig, GameConfig, UtilityConfig, flatten
from cpgan_ray.config.folders.runs import CONFIG, read_run_record, store_of
from cpgan_ray.data import Dataset, Task, ensure_learnable, load, pin_store, task_of
from cpgan_ray.data.batching import rounds_per_epoch
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.data.store import checksum, folder_lock
from cpgan_ray.data.sync.remote_files import RemoteFolder
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import open_own
from cpgan_ray.evaluation.encoders.heads import head_logits
from cpgan_ray.training.accuracy import mean_accuracy
from cpgan_ray.training.classifier import views
from cpgan_ray.training.game import play_in_process
from cpgan_ray.training.label_weights import label_weights
from cpgan_ray.training.teachers import SUFFIX, TeacherAnswers, answers_from, as_logits, mean_answers, pinned_file, read_answers

logger = logging.getLogger(__name__)

PRIVATIZER, HEAD = "privatizer.pt2", "utility_head.pt2"
FILES = (CONFIG, PRIVATIZER, HEAD)
"""The files of a run that a teacher needs."""
AUGMENTATION = ("horizontal_flip", "max_shift_px", "cutout", "input_noise")
"""Settings of the data in which a teacher may differ, like `labels` and `digest`, which are compared by what they lead to."""
WHERE = ("preset", "data_dir", "cache_dir", "shared_cache", "output", "trust", "runtime.", "recovery.", "attacks.", "tracking.")
"""Settings that do not change what a teacher answers."""


T = TypeVar("T")


def with_teachers(config: Config, *, parallel: bool) -> Config:
    """The configuration with the file of its teachers' answers, which is made unless it exists. Unchanged without teachers.

    parallel: train teachers as Ray tasks; otherwise in this process, one after the other.

    Raises: InputError if a teacher is defended, or was trained on another task or other data than the run; if the run could not
    start; or if a resumed run would get other answers than before.
    """
    utility = config.utility
    if not (utility.teachers or utility.train_teachers):
        return config
    if utility.teacher_answers is not None and Path(utility.teacher_answers.partition("@")[0]).is_file():
        return config
    dataset = load(config)
    task = task_of(dataset, config.data.labels)
    rounds_per_epoch(len(dataset.train), config.batch_size)
    ensure_learnable(dataset, task)
    label_weights(utility, task)
    if utility.teachers:
        files = [answers_of_run(location, config, dataset, task) for location in utility.teachers]
    else:
        files = answers_of_trained(config, dataset, task, parallel=parallel)
    file = pinned_file(str(files[0] if len(files) == 1 else mean_file(files, dataset, task)))
    if utility.teacher_answers not in (None, file):
        raise InputError(
            f"the run was started with the teachers' answers {utility.teacher_answers}, but its teachers now give {file}: restore "
            "the first file, or start a new run"
        )
    return replace(config, utility=replace(utility, teacher_answers=file))


def answers_file(dataset: Dataset, *key: Any) -> Path:
    """The file of the answers that are made from `key`, which JSON can write."""
    text = json.dumps([dataset.attacker_share, *key], sort_keys=True)
    return dataset.folder / f"teacher-{hashlib.sha256(text.encode()).hexdigest()[:DIGITS]}{SUFFIX}"


def exists(path: Path, dataset: Dataset) -> bool:
    """Whether a file of answers exists and may be used: next to data of another user it must be this user's own."""
    return refuse_link(path).is_file() and (not dataset.own_only or is_own(path))


def write_answers(path: Path, answers: TeacherAnswers) -> None:
    write_bytes(path, answers.to_bytes())
    sign(path)


def mean_file(files: Sequence[Path], dataset: Dataset, task: Task) -> Path:
    """The file with the mean answers of several files."""
    path = answers_file(dataset, "mean", [checksum(file) for file in files])
    with folder_lock(path):
        if not exists(path, dataset):
            write_answers(path, mean_answers([read_answers(str(file), dataset, task) for file in files]))
    return path


# ---------------------------------------------------------------------------------------------------------- finished runs


def answers_of_run(location: str, config: Config, dataset: Dataset, task: Task) -> Path:
    """The file of the answers of a finished run, by its exported programs. Those of another user run in a sandbox.

    Raises: InputError, see `with_teachers`.
    """
    name = f"utility.teachers: {redacted(location)}"
    with run_files(location) as folder:
        if missing := [file for file in FILES if not (folder / file).is_file()]:
            raise InputError(f"{name} has no {missing[0]}: give the output folder of a finished run")
        teacher = read_run_record(folder, trust=config.trust)[0]
        ensure_teaches(teacher, config, dataset, task, name=name)
        if (store := store_of(folder)) not in (None, dataset.folder.name):
            raise InputError(
                f"{name} was trained on prepared store {store}, this run uses {dataset.folder.name}: give a run on the same data"
            )
        path = answers_file(dataset, "run", checksum(folder / PRIVATIZER), checksum(folder / HEAD), task.names)
        with folder_lock(path):
            if not exists(path, dataset):
                write_answers(path, answers_from(program_logits(folder, dataset, task, name=name), task))
    return path


@contextlib.contextmanager
def run_files(location: str) -> Iterator[Path]:
    """A folder with the files of a run, which are copied first if it is behind a URI."""
    if "://" not in location:
        yield Path(location)
        return
    remote = RemoteFolder(location, option="utility.teachers")
    with TemporaryDirectory(prefix="cpgan-teacher-") as temporary:
        for name in (*FILES, *(file + SIGNATURE for file in FILES)):
            if (file := remote.find(name)) is not None:
                remote.copy(name, Path(temporary) / name, size=file.size)
        yield Path(temporary)


def ensure_teaches(teacher: Config, config: Config, dataset: Dataset, task: Task, *, name: str) -> None:
    """Raises: InputError if a run is defended, or was trained on another task or other data than `config`."""
    if teacher.is_defended:
        raise InputError(
            f"{name} is defended (privacy weight {teacher.privacy_weight:g}), so its answers know less: give a run with "
            "--privacy-weight 0"
        )
    for field in (f for f in vars(config.data) if f not in (*AUGMENTATION, "labels", "digest")):
        value, of_run = getattr(teacher.data, field), getattr(config.data, field)
        if value != of_run:
            raise InputError(
                f"{name} was trained with data.{field} {value!r}, but this run has {of_run!r}: give a run on the same data"
            )
    if (labels := teacher.data.labels or dataset.label_names) != task.names:
        raise InputError(
            f"{name} predicts {', '.join(labels)[:200]}, but this run {', '.join(task.names)[:200]}: give a run on the same labels"
        )
    if teacher.utility.class_weighted_loss != config.utility.class_weighted_loss:
        raise InputError(
            f"{name} was trained with utility.class_weighted_loss {teacher.utility.class_weighted_loss}, but this run has "
            f"{config.utility.class_weighted_loss}: their probabilities differ in meaning, give a run with the same loss"
        )


def program_logits(folder: Path, dataset: Dataset, task: Task, *, name: str) -> dict[str, np.ndarray]:
    """The logits (N, num_logits) of `views`, by the exported programs in a folder.

    Raises: InputError if they are damaged, or do not take these pictures or predict these labels.
    """
    with contextlib.closing(open_own(folder / PRIVATIZER)) as encoder:
        if encoder.image_shape is not None and encoder.image_shape != dataset.image_shape:
            raise InputError(
                f"{name} takes pictures of {'x'.join(map(str, encoder.image_shape))}, the store has "
                f"{'x'.join(map(str, dataset.image_shape))}: give a run on the same data"
            )
        sets = code_sets(dataset)
        codes = {
            view: np.concatenate(
                [encoder.encode(np.ascontiguousarray(block.transpose(0, 3, 1, 2))) for block in sets[view].blocks()]
            )
            for view in views(dataset)
        }
    logits = head_logits(folder / HEAD, codes, EncoderConfig(), remedy="give a run whose files belong together")
    if (outputs := logits["val"].shape[1]) != task.num_logits:
        raise InputError(f"{name} has {outputs} outputs, but the task needs {task.num_logits}: give a run on the same labels")
    return logits


# --------------------------------------------------------------------------------------------------------- trained teachers


def answers_of_trained(config: Config, dataset: Dataset, task: Task, *, parallel: bool) -> list[Path]:
    """The files of the answers of `utility.train_teachers` teachers; those that do not exist are trained."""
    configs = [teacher_config(pin_store(config, dataset), number) for number in range(config.utility.train_teachers)]
    paths = [answers_file(dataset, "trained", settings_of(teacher)) for teacher in configs]
    with contextlib.ExitStack() as locks:
        for path in sorted(paths):
            locks.enter_context(folder_lock(path))
        todo = [(path, teacher) for path, teacher in zip(paths, configs, strict=True) if not exists(path, dataset)]
        started = time.monotonic()

        def store(index: int, answers: TeacherAnswers) -> None:
            path, teacher = todo[index]
            write_answers(path, answers)
            right = mean_accuracy(as_logits(answers.val, task), task.answers(dataset.val), task)
            logger.info(
                f"teacher {index + 1}/{len(todo)}, seed {teacher.seed}: validation accuracy {right:.3f}, after "
                f"{time.monotonic() - started:.0f} s"
            )

        if todo:
            logger.info(f"training {len(todo)} teachers, undefended, into {dataset.folder}")
            train_all([teacher for _, teacher in todo], train_teacher, store, parallel=parallel)
    return paths


def teacher_config(config: Config, number: int) -> Config:
    """A teacher of a run: its networks, schedule and augmentation without adversaries, rounding and noise, with another seed."""
    privatizer = replace(config.privatizer, quantization_step=0.0, levels=0, noise=0.0, num_workers=1)
    taught = (
        "label_weights",
        "learn_label_weights",
        "learned_label_weights",
        "train_teachers",
        "teacher_weight",
        "teacher_answers",
    )
    utility = replace(config.utility, **{name: getattr(UtilityConfig(), name) for name in taught})
    return replace(
        config,
        seed=int(stream(config.seed, "teacher", number).integers(1 << 31)),
        privacy_weight=0.0,
        privatizer=privatizer,
        utility=utility,
        game=GameConfig(),
        adversaries={},
    )


def settings_of(teacher: Config) -> dict[str, Any]:
    """The settings that a teacher's answers depend on."""
    return {name: value for name, value in flatten(teacher).items() if not name.startswith(WHERE)}


def train_all(
    configs: Sequence[Config], train: Callable[[Config, int], T], done: Callable[[int, T], None], *, parallel: bool
) -> None:
    """Train undefended runs by `train`, a function of a configuration and a number of threads. `done` is called with the number of
    each and what `train` returns."""
    runtime = configs[0].runtime
    if not parallel:
        for number, config in enumerate(configs):
            done(number, train(config, runtime.threads or available_cpus()))
        return
    from cpgan_ray.distributed.cluster import connected
    from cpgan_ray.distributed.tasks import run_in_tasks

    cpus = runtime.privatizer_cpus or 1.0
    work = [(config, runtime.threads or max(1, int(cpus))) for config in configs]
    with connected(runtime):  # the connection of the game then has the file of answers
        run_in_tasks(train, work, runtime=runtime, cpus=cpus, gpus=runtime.privatizer_gpus, done=done)


def train_teacher(config: Config, threads: int) -> TeacherAnswers:
    """Train one teacher in this process."""
    game = play_in_process(config, threads=threads)
    while game.round < game.total_rounds:
        game.play(game.rounds_per_epoch)
    worker = game.privatizer
    return answers_from({name: worker.codes(name)[1] for name in views(worker.dataset)}, worker.task)

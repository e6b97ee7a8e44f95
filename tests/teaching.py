"""Answers of teachers for tests: random, so that their effect on a game is large."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from cpgan_ray.common.plugins.loading import digest_of
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, Task, load, task_of
from cpgan_ray.training.teachers import TeacherAnswers, probabilities


def random_answers(dataset: Dataset, task: Task, *, seed: int = 0) -> TeacherAnswers:
    rng, views = np.random.default_rng(seed), 2 if dataset.info.mirrored else 1
    train, val = (2 * rng.normal(size=(rows, task.num_logits)) for rows in (views * len(dataset.train), len(dataset.val)))
    return TeacherAnswers(train=probabilities(train, task).reshape(-1, views, task.num_logits), val=probabilities(val, task))


def with_random_teacher(config: Config, folder: Path, *, weight: float = 0.5) -> Config:
    """The configuration with a file of random answers in `folder`, which this process has not read yet: a cluster that was started
    before can still be used."""
    dataset = load(config)
    content = random_answers(dataset, task_of(dataset, config.data.labels)).to_bytes()
    (folder / "teacher.npz").write_bytes(content)
    file = f"{folder / 'teacher.npz'}@{digest_of(content)}"
    return replace(config, utility=replace(config.utility, teacher_answers=file, teacher_weight=weight))

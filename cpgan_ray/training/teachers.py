"""The answers of undefended teachers to the training pictures, from which the privatizer and the utility head learn in addition to
the labels.

The job computes them once (pipelines/teachers.py), and every process that needs them reads one file, whose digest is checked. They
are float16: an error of 2^-12 in a probability changes nothing that is learnt, and the file is half as large.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cpgan_ray.common.arrays import read_arrays
from cpgan_ray.common.plugins import loading
from cpgan_ray.common.types import Batch
from cpgan_ray.data import Dataset, Task
from cpgan_ray.errors import InputError

SUFFIX = ".npz"
MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherAnswers:
    """Probabilities, in the columns of the task's logits: of the second value of a binary label, and of each class of the
    others."""

    train: np.ndarray
    """(N, V, num_logits) float16: of each training picture, and if V is 2 of its mirror image."""
    val: np.ndarray
    """(M, num_logits) float16: of each validation picture."""

    def of(self, batch: Batch) -> np.ndarray:
        """The answers to the pictures of a batch, mirrored as the batch sets it (not shifted): (B, num_logits) float32."""
        return self.train[batch.rows, batch.mirrored.astype(np.int64)].astype(np.float32)

    def to_bytes(self) -> bytes:
        """The content of a file."""
        np.savez(buffer := io.BytesIO(), train=self.train, val=self.val)
        return buffer.getvalue()


def probabilities(logits: np.ndarray, task: Task) -> np.ndarray:
    """The probabilities, float16, that logits (N, num_logits) stand for."""
    parts = [torch.from_numpy(logits[:, label.logits].astype(np.float64)) for label in task.labels]
    values = [part.sigmoid() if label.binary else part.softmax(dim=1) for part, label in zip(parts, task.labels, strict=True)]
    return torch.cat(values, dim=1).numpy().astype(np.float16)


def answers_from(logits: Mapping[str, np.ndarray], task: Task) -> TeacherAnswers:
    """The answers that logits (N, num_logits) of `train`, of its mirror images if there are any, and of `val` stand for."""
    views = [logits[name] for name in ("train", "train_mirrored") if name in logits]
    train = np.stack([probabilities(values, task) for values in views], axis=1)
    return TeacherAnswers(train=train, val=probabilities(logits["val"], task))


def as_logits(answers: np.ndarray, task: Task) -> np.ndarray:
    """Numbers (N, num_logits) float32 that give the same hard answers as the probabilities: positive for the second value of a
    binary label, largest for the most probable class."""
    values = answers.astype(np.float32)
    values[:, [label.first_logit for label in task.labels if label.binary]] -= 0.5
    return values


def mean_answers(teachers: list[TeacherAnswers]) -> TeacherAnswers:
    """The mean probabilities of several teachers."""
    parts = [[t.train for t in teachers], [t.val for t in teachers]]
    train, val = (np.stack(part).mean(axis=0, dtype=np.float32).astype(np.float16) for part in parts)
    return TeacherAnswers(train=train, val=val)


def pinned_file(path: str) -> str:
    """The path of a file of answers, with its digest; every process of the run can then read it."""
    return f"{path}@{loading.content_of(path, '', suffix=SUFFIX, limit=MAX_BYTES)[1]}"


def read_answers(file: str, dataset: Dataset, task: Task) -> TeacherAnswers:
    """The answers in a file. file: its path, and `@` and its digest if it is pinned.

    Raises: InputError if it cannot be read, has another digest, or is not for these data and labels.
    """
    path, _, digest = file.partition("@")
    content, _ = loading.content_of(path, digest, suffix=SUFFIX, limit=MAX_BYTES)
    try:
        answers = TeacherAnswers(**read_arrays(content, ("train", "val")))
    except ValueError as e:
        raise InputError(f"utility.teacher_answers {path} is damaged ({e}): delete it, it is made again") from e
    views = 2 if dataset.info.mirrored else 1
    expected = ((len(dataset.train), views, task.num_logits), (len(dataset.val), task.num_logits))
    if (shapes := (answers.train.shape, answers.val.shape)) != expected:
        raise InputError(f"utility.teacher_answers {path} has answers of shape {shapes}, these data and labels need {expected}")
    for values in (answers.train, answers.val):
        if values.dtype != np.float16 or not bool(((values >= 0) & (values <= 1)).all()):
            raise InputError(f"utility.teacher_answers {path} has other values than probabilities: delete it, it is made again")
    return answers

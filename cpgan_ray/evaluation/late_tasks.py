"""Late tasks: what a code is worth for labels that were no part of the task when the privatizer was trained (`data.late_labels`).

Answers cannot answer the next question, a code may. For each late label heads are trained on the frozen codes of the defender's
training pictures (and of their mirror images), and in the same way on hard answers to the task, as numbers: on the run's own, and
on those of an undefended twin if there is one. The heads are those of the attribute map (attributes.py): the same classifiers,
epochs and choice on the validation split for all inputs. They are class-weighted, which balanced accuracy asks for; the accuracy of
a rare label may therefore be below that of the majority guess.

A balanced accuracy above chance is worth something if the label is a task, and a leak if it is sensitive: a label cannot be both in
one configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpgan_ray.common.types import Metrics
from cpgan_ray.config import EncoderConfig
from cpgan_ray.data import Dataset, Task, task_of
from cpgan_ray.data.answers import answer_numbers
from cpgan_ray.data.code_sets import views_of
from cpgan_ray.data.store import MISSING
from cpgan_ray.data.task import LATE_FIELD
from cpgan_ray.evaluation.attributes import Inferred, infer
from cpgan_ray.evaluation.encoders.heads import head_logits
from cpgan_ray.evaluation.fitting import EvaluationContext, hard_answers
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.scoring import (
    accuracy_intervals,
    ends_of,
    mean_over_labels_interval,
    mean_where,
    resampled_balanced_accuracy,
)

CODE, ANSWERS, TWIN_ANSWERS = "code", "answers", "twin_answers"
"""What the heads of late tasks are trained on."""


@dataclass(frozen=True, eq=False)
class LateTasks:
    """What the heads answer to the test pictures, for each input that heads were trained on; `CODE` is always among them."""

    inferred: Mapping[str, Inferred]  # of the same labels and rows
    numbers: Mapping[str, int]  # of each input: the numbers that a picture has
    identity: np.ndarray  # (N,) the person on each test picture
    seed: int

    @property
    def of(self) -> Task:
        return self.inferred[CODE].of

    def as_json(self) -> dict[str, Any]:
        """The report's entry: for each input the means over the labels on the test split, with 95 % intervals over people, and how
        much better the code is than it, paired by people (`gain`); and for each label the balanced accuracies."""
        code = self.inferred[CODE]
        intervals = {
            name: accuracy_intervals(one.right, one.labels, self.identity, num_values=self.of.num_values, seed=self.seed)[1]
            for name, one in self.inferred.items()
        }

        def of_label(i: int, name: str) -> dict[str, float | None]:
            ends = [float(end) if np.isfinite(end) else None for end in intervals[name][i]]
            return {"balanced_accuracy": float(self.inferred[name].balanced_accuracy[i]), "low": ends[0], "high": ends[1]}

        return {
            "chance": self.of.chance,
            "inputs": {name: self.means(name) for name in self.inferred},
            "labels": [
                {"name": label.name, "chance": 1 / len(label.values), **{name: of_label(i, name) for name in self.inferred}}
                for i, label in enumerate(code.of.labels)
            ],
        }

    def means(self, name: str) -> dict[str, float | int]:
        """The entry on one input."""
        one, code = self.inferred[name], self.inferred[CODE]
        low, high = mean_over_labels_interval(one.right, one.labels != MISSING, self.identity, seed=self.seed)
        samples = self.resampled(name)
        balanced_low, balanced_high = ends_of(samples, self.identity)
        values: dict[str, float | int] = {
            "numbers": self.numbers[name],
            "accuracy": float(np.mean(mean_where(one.right.T, (one.labels != MISSING).T))),
            "accuracy_low": low,
            "accuracy_high": high,
            "balanced_accuracy": float(one.balanced_accuracy.mean()),
            "balanced_accuracy_low": balanced_low,
            "balanced_accuracy_high": balanced_high,
        }
        if name == CODE:
            return values
        gain_low, gain_high = ends_of(self.resampled(CODE) - samples, self.identity)
        gain = float(code.balanced_accuracy.mean() - one.balanced_accuracy.mean())
        return values | {"gain": gain, "gain_low": gain_low, "gain_high": gain_high}

    def resampled(self, name: str) -> np.ndarray:
        """The mean balanced accuracy of one input in each bootstrap sample over people; the samples are the same for all inputs."""
        one = self.inferred[name]
        return resampled_balanced_accuracy(one.right, one.labels, self.identity, num_values=self.of.num_values, seed=self.seed)


def late_tasks(context: EvaluationContext, *, twin: Mapping[str, np.ndarray] | None = None) -> LateTasks | None:
    """Train and score the heads of the late labels of a run. None if it has none, or if fewer than two values of each of them occur
    in one of the splits.

    twin: the hard answers (N, L) of an undefended twin to the same task, of `train` with its views, `val` and `test`; None: there
    is no twin.
    """
    if not context.late_labels:
        return None
    late, inputs = task_of(context.dataset, context.late_labels, field=LATE_FIELD), {CODE: context.codes}
    if context.answers.keys() >= context.codes.keys():
        inputs[ANSWERS] = {name: answer_numbers(values, context.task) for name, values in context.answers.items()}
    if twin is not None:
        inputs[TWIN_ANSWERS] = {name: answer_numbers(values, context.task) for name, values in twin.items()}
    inferred = {name: infer_from(codes, context.dataset, late, seed=context.seed) for name, codes in inputs.items()}
    scored = {name: one for name, one in inferred.items() if one is not None}
    if not scored:
        return None
    numbers = {name: codes["test"][0].size for name, codes in inputs.items()}
    return LateTasks(scored, numbers, context.dataset.test.identity, context.seed)


def infer_from(codes: Codes, dataset: Dataset, late: Task, *, seed: int) -> Inferred | None:
    """Heads of the late labels on these codes, fitted on `train` with its mirror images and other draws, chosen on `val`."""
    views = views_of(codes, "train", mirrored=dataset.info.mirrored)
    z = {"fit": np.concatenate([codes[name] for name in views]), "tune": codes["val"], "score": codes["test"]}
    labels = {
        "fit": np.tile(dataset.train.labels, (len(views), 1)),
        "tune": dataset.val.labels,
        "score": dataset.test.labels,
    }
    tensors = {name: torch.from_numpy(np.require(values, np.float32, ["C", "W"])) for name, values in z.items()}
    return infer(tensors, labels, of=late, seed=seed)


def twin_answers(folder: Path, codes: Codes, task: Task) -> dict[str, np.ndarray]:
    """The hard answers (N, L) of an undefended twin on its own codes.

    Raises: InputError if its utility head is damaged, or belongs to another encoder.
    """
    remedy = "give another undefended twin with --tracking.undefended"
    return hard_answers(head_logits(folder / "utility_head.pt2", codes, EncoderConfig(), remedy=remedy), task)


def late_metrics(report: Mapping[str, Any]) -> Metrics:
    """The metrics of the late tasks in a report; none if it has none."""
    if (late := report.get("late_tasks")) is None:
        return {}
    inputs = {name: {key: value for key, value in of.items() if key != "numbers"} for name, of in late["inputs"].items()}
    values: Metrics = {"late/chance": late["chance"]}
    for name, of in inputs.items():
        prefix = "late" if name == CODE else f"late/{name}"
        values |= {f"{prefix}/{key}": value for key, value in of.items()}
    return values

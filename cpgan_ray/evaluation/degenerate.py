"""Warnings that a reader of a report must see first: degenerate codes, and numbers that rest on too few samples.

A constant code has R2 = 0 and would pass every gate. It is private only because it is useless, so a degenerate code is reported and
fails every gate. Codes that are constant on the rows on which attacks are fitted, but not on those on which they are scored, make
an attack fail; they are detected in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cpgan_ray.data import Dataset, Task, majority_logits
from cpgan_ray.data.store import MISSING
from cpgan_ray.data.task import value_counts
from cpgan_ray.evaluation.probe import probe_logits
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.scoring import balanced_accuracy_interval, mean_over_labels_interval
from cpgan_ray.training.accuracy import correct_predictions, mean_accuracy, mean_balanced_accuracy

Kind = Literal["constant_code", "too_few_codes", "uneven_code", "useless_code", "no_answers", "rare_class", "failed_attacks"]
NO_VARIATION = 1e-6
"""A range of a coordinate up to this, relative to its size, is float32 rounding."""
UNEVEN = 4.0
"""Maximal ratio of the spreads of two splits: their samples come from the same distribution, so their codes must too."""
MIN_GAIN = 0.01
"""The best classifier of a code must remove at least this share of the majority guess's error."""
MIN_BALANCED_GAIN = 0.05
"""A useful balanced accuracy removes at least this share of the error of chance."""
MIN_CLASS_ROWS = 10
"""With fewer test samples than this, the recall of a class means little."""


@dataclass(frozen=True)
class ReportWarning:
    """Something that a reader of the report must know before its numbers."""

    kind: Kind
    message: str
    fails_gates: bool
    """Whether the code is degenerate, so that no gate may pass it."""


def code_warnings(
    codes: Codes, dataset: Dataset, task: Task, *, logits: Mapping[str, np.ndarray], seed: int
) -> list[ReportWarning]:
    """All warnings about the codes, the worst first; at most one of them is of a kind that fails gates.

    codes: `train`, `val`, `test`, each (N, k); logits: (N, num_logits) of `test`, or empty for an encoder without a utility head.
    In that case classifiers of the codes (probe.py) check whether they answer the task. Without any answer in the test split it is
    not known whether the codes are useful.
    """
    answered = bool((task.answers(dataset.test) != MISSING).any())
    warnings = [constant_code(codes) or (too_few_codes(codes["test"], dataset, task) if answered else None) or uneven_code(codes)]
    if warnings == [None]:
        warnings = [useless_code(codes, dataset, task, logits=logits, seed=seed) if answered else no_answers()]
    return [warning for warning in warnings if warning is not None] + (rare_classes(dataset, task) if answered else [])


def is_uninformative(warnings: Sequence[ReportWarning]) -> bool:
    """Whether no attack could find anything in the codes, so that a full tournament would waste hours."""
    return any(warning.kind in ("constant_code", "too_few_codes") for warning in warnings)


def constant_code(codes: Codes) -> ReportWarning | None:
    """A warning if all codes of a split are the same, up to rounding."""
    constant = [name for name in ("train", "val", "test") if is_constant(codes[name])]
    if not constant:
        return None
    where = "every picture" if len(constant) == 3 else f"all pictures of the splits {', '.join(constant)}"
    return ReportWarning("constant_code", f"the code is the same for {where}: it is private because it is useless", True)


def is_constant(z: np.ndarray) -> bool:
    """Whether no coordinate of z (N, k) varies by more than float32 rounds at the size of that coordinate."""
    return bool(np.all(np.ptp(z, axis=0) <= NO_VARIATION * np.abs(z).max(axis=0)))


def too_few_codes(z: np.ndarray, dataset: Dataset, task: Task) -> ReportWarning | None:
    """A warning if the test split has so few distinct codes z (N, k) that not even the best classifier removes more than MIN_GAIN
    of the majority guess's error. The best classifier knows the true answers and gives each code the most common one of its
    samples."""
    code = distinct_row_numbers(z)
    count = int(code.max()) + 1
    y = task.answers(dataset.test)
    best = float(np.mean([best_accuracy(code, column) for column in y.T if (column != MISSING).any()]))
    majority = mean_accuracy(majority_logits(dataset, task, rows=len(y)), y, task)
    if best - majority > MIN_GAIN * (1 - majority):
        return None
    message = f"the test split has only {count} distinct code{'s' if count > 1 else ''}: no classifier could reach an accuracy"
    return ReportWarning("too_few_codes", f"{message} above {best:.4f} on the task (majority guess {majority:.4f})", True)


def best_accuracy(code: np.ndarray, answers: np.ndarray) -> float:
    """The accuracy of the most common answer to each code. code: (N,), numbers of the codes; answers: (N,), to one label."""
    known = answers != MISSING
    pairs, counts = np.unique(np.stack([code[known], answers[known]]), axis=1, return_counts=True)
    most = np.zeros(int(code.max()) + 1, np.int64)
    np.maximum.at(most, pairs[0], counts)
    return float(most.sum() / known.sum())


def distinct_row_numbers(z: np.ndarray) -> np.ndarray:
    """The number (N,) of each row's value among the distinct rows of z (N, k)."""
    rows = np.ascontiguousarray(z + 0.0)  # turns -0.0 into 0.0
    whole = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    return np.unique(whole, return_inverse=True)[1]


def uneven_code(codes: Codes) -> ReportWarning | None:
    """A warning if codes vary far more in one split than in another: attacks are fitted on one split and scored on another."""
    center = np.median(codes["train"], axis=0)
    spread = {name: float(np.abs(codes[name] - center).mean()) for name in ("train", "val", "test")}
    least, most = (pick(spread, key=spread.__getitem__) for pick in (min, max))
    if spread[most] <= UNEVEN * spread[least]:
        return None
    times = f"{spread[most] / spread[least]:.1f} times" if spread[least] else "infinitely many times"
    message = f"codes of {most} vary {times} as much as codes of {least}, although both splits hold the same kind of pictures"
    return ReportWarning("uneven_code", f"{message}: an attack fitted on one split measures nothing on the other", True)


def useless_code(
    codes: Codes, dataset: Dataset, task: Task, *, logits: Mapping[str, np.ndarray], seed: int
) -> ReportWarning | None:
    """A warning if the answers are no better than the majority guess: the interval over people of the gain in accuracy includes 0,
    and the balanced accuracy removes no more than MIN_BALANCED_GAIN of the error of chance."""
    test_logits = logits.get("test")
    rows = np.arange(len(dataset.test))
    if test_logits is None:
        test_logits, rows = probe_logits(codes, dataset, task)
    y, identity = task.answers(dataset.test)[rows], dataset.test.identity[rows]
    if not (y != MISSING).any():
        return None
    guess = majority_logits(dataset, task, rows=len(y))
    right, guessed = (correct_predictions(answers, y, task) for answers in (test_logits, guess))
    gain = right.astype(float) - guessed
    low, _ = balanced_accuracy_interval(right, y, identity, num_values=task.num_values, seed=seed)
    useful = task.chance + MIN_BALANCED_GAIN * (1 - task.chance)
    if mean_over_labels_interval(gain, y != MISSING, identity, seed=seed)[0] > 0 or low > useful:
        return None
    by = "the utility head answers" if "test" in logits else "the best of a linear and a nearest-neighbour classifier of z answers"
    accuracies = [mean_accuracy(answers, y, task) for answers in (test_logits, guess)]
    message = f"{by} the task with accuracy {accuracies[0]:.4f}, majority guess {accuracies[1]:.4f}"
    return ReportWarning(
        "useless_code",
        f"{message}, balanced accuracy {mean_balanced_accuracy(test_logits, y, task):.4f}: it is no better than a guess",
        True,
    )


def no_answers() -> ReportWarning:
    """A warning that the codes were not compared with any answer."""
    message = "all answers of the test split are missing: whether the code is good for the task is not known"
    return ReportWarning("no_answers", message, False)


def failed_attacks(*, r2: float, answers_r2: float) -> ReportWarning:
    """A warning that the attacks on z have failed. r2: of the strongest of them; answers_r2: of the answers floor."""
    message = (
        f"the strongest attack finds {r2:.4f} in z, but an attack on the answers that are computed from z finds {answers_r2:.4f}"
    )
    return ReportWarning("failed_attacks", f"{message}: the attacks on z have failed, and their R2 is only a lower bound", False)


def rare_classes(dataset: Dataset, task: Task) -> list[ReportWarning]:
    """A warning for each value of a task label with fewer than MIN_CLASS_ROWS samples in the test split, or for a label without any
    answer there."""
    messages = []
    for label, counts in zip(task.labels, value_counts(task.answers(dataset.test), task), strict=True):
        if not counts.any():
            messages.append(f"all answers of the test split to {label.name} are missing: it counts in no accuracy")
            continue
        for value, count in zip(label.values, counts.tolist(), strict=True):
            if count < MIN_CLASS_ROWS:
                samples = "1 sample" if count == 1 else f"{count} samples"
                messages.append(f"{label.name} = {value} has only {samples} in the test split: its accuracy means little")
    return [ReportWarning("rare_class", message, False) for message in messages]

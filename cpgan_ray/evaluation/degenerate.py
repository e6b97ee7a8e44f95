"""Warnings that a reader of a report must see first: degenerate codes, and numbers that rest on too few samples.

A constant code has R2 = 0 and would pass every gate. It is private only because it is useless, so a degenerate code is reported and
fails every gate. Codes that are constant on the rows on which attacks are fitted, but not on those on which they are scored, make
an attack fail; they are detected in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cpgan_ray.data import Dataset, label_columns, majority_logits, task_targets
from cpgan_ray.data.task import class_names
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.scoring import balanced_accuracy_interval, mean_interval
from cpgan_ray.training.losses import correct_predictions, is_multiclass, mean_balanced_accuracy

Kind = Literal["constant_code", "too_few_codes", "uneven_code", "useless_code", "rare_class"]
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
PROBE_ROWS = {"train": 5000, "val": 2000, "test": 2000}
NEIGHBOURS = (5, 25)
PENALTIES = (1.0, 100.0)


@dataclass(frozen=True)
class ReportWarning:
    """Something that a reader of the report must know before its numbers."""

    kind: Kind
    message: str
    fails_gates: bool
    """Whether the code is degenerate, so that no gate may pass it."""


def code_warnings(
    codes: Codes, dataset: Dataset, task: tuple[str, ...], *, logits: Mapping[str, np.ndarray], seed: int
) -> list[ReportWarning]:
    """All warnings about the codes, the worst first; at most one of them is of a kind that fails gates.

    codes: `train`, `val`, `test`, each (N, k); logits: (N, L or C) of `test`, or empty for an encoder without a utility head. In
    that case classifiers that are trained here check whether the task can be answered from the codes.
    """
    warnings = [constant_code(codes) or too_few_codes(codes["test"], dataset, task) or uneven_code(codes)]
    if warnings == [None]:
        warnings = [useless_code(codes, dataset, task, logits=logits, seed=seed)]
    return [warning for warning in warnings if warning is not None] + rare_classes(dataset, task)


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


def too_few_codes(z: np.ndarray, dataset: Dataset, task: tuple[str, ...]) -> ReportWarning | None:
    """A warning if the test split has so few distinct codes z (N, k) that not even the best classifier removes more than MIN_GAIN
    of the majority guess's error. The best classifier knows the test labels and answers each code with the most common label of its
    samples."""
    code = distinct_row_numbers(z)
    count = int(code.max()) + 1
    y = task_targets(dataset, task, split="test") > 0.5
    rows = np.bincount(code, minlength=count)
    ones = np.stack([np.bincount(code, weights=column, minlength=count) for column in y.T], axis=1)
    if class_names(dataset, task) is None:
        best = np.maximum(ones, rows[:, None] - ones).sum(axis=0).mean() / len(z)
    else:
        best = ones.max(axis=1).sum() / len(z)
    majority = float(majority_right(dataset, task).mean())
    if best - majority > MIN_GAIN * (1 - majority):
        return None
    message = f"the test split has only {count} distinct code{'s' if count > 1 else ''}: no classifier could reach an accuracy"
    return ReportWarning("too_few_codes", f"{message} above {best:.4f} on the task (majority guess {majority:.4f})", True)


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
    codes: Codes, dataset: Dataset, task: tuple[str, ...], *, logits: Mapping[str, np.ndarray], seed: int
) -> ReportWarning | None:
    """A warning if the answers are no better than the majority guess: the interval over people of the gain in accuracy includes 0,
    and the balanced accuracy removes no more than MIN_BALANCED_GAIN of the error of chance."""
    test_logits = logits.get("test")
    rows = np.arange(len(dataset.test))
    if test_logits is None:
        test_logits, rows = probe_logits(codes, dataset, task)
    y = dataset.test.labels[rows][:, label_columns(dataset, task)]
    identity = dataset.test.identity[rows]
    right = correct_predictions(test_logits, y)
    gain = right.mean(axis=1) - majority_right(dataset, task)[rows]
    classes = test_logits.shape[1] if is_multiclass(test_logits, y) else 2
    low, _ = balanced_accuracy_interval(right, y[:, :, None] == np.arange(classes), identity, seed=seed)
    if mean_interval(gain, identity, seed=seed)[0] > 0 or low > 1 / classes + MIN_BALANCED_GAIN * (1 - 1 / classes):
        return None
    by = "the utility head answers" if "test" in logits else "the best of a linear and a nearest-neighbour classifier of z answers"
    message = f"{by} the task with accuracy {right.mean():.4f}, majority guess {right.mean() - gain.mean():.4f}"
    return ReportWarning(
        "useless_code",
        f"{message}, balanced accuracy {mean_balanced_accuracy(test_logits, y):.4f}: it is no better than a guess",
        True,
    )


def majority_right(dataset: Dataset, task: tuple[str, ...]) -> np.ndarray:
    """For each test sample, the share (N,) of its labels that the majority guess answers right."""
    y = dataset.test.labels[:, label_columns(dataset, task)]
    return correct_predictions(majority_logits(dataset, task, rows=len(y)), y).mean(axis=1)


def probe_logits(codes: Codes, dataset: Dataset, task: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Answers (n, L or C) to some test rows, and the numbers (n,) of these rows. Linear and nearest-neighbour classifiers of
    standardised codes are trained on training rows; the one that is best on validation rows answers."""
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    rows = {name: np.linspace(0, len(codes[name]) - 1, min(n, len(codes[name]))).astype(int) for name, n in PROBE_ROWS.items()}
    center, scale = codes["train"].mean(axis=0), codes["train"].std(axis=0)
    z = {name: (codes[name][rows_] - center) / np.where(scale > 0, scale, 1) for name, rows_ in rows.items()}
    y = {name: task_targets(dataset, task, split=name)[rows_] for name, rows_ in rows.items()}
    labels = dataset.val.labels[rows["val"]][:, label_columns(dataset, task)]
    models = [*map(Ridge, PENALTIES), *(KNeighborsRegressor(min(n, len(z["train"]))) for n in NEIGHBOURS)]
    best, best_logits = -1.0, np.zeros(())
    for model in models:
        model.fit(z["train"], y["train"])
        offset = 0.5 if class_names(dataset, task) is None else 0.0
        val, test = (np.asarray(model.predict(z[name])).reshape(len(z[name]), -1) - offset for name in ("val", "test"))
        if (score := float(correct_predictions(val, labels).mean())) > best:
            best, best_logits = score, test
    return best_logits, rows["test"]


def rare_classes(dataset: Dataset, task: tuple[str, ...]) -> list[ReportWarning]:
    """A warning for each value of a task label with fewer than MIN_CLASS_ROWS samples in the test split."""
    names, warnings = class_names(dataset, task), []
    columns = label_columns(dataset, task)
    for column in columns:
        counts = np.bincount(dataset.test.labels[:, column].astype(np.int64), minlength=2 if names is None else len(names))
        for value, count in enumerate(counts):
            if count < MIN_CLASS_ROWS:
                label = f"{dataset.label_names[column]} = {value if names is None else names[value]}"
                samples = "1 sample" if count == 1 else f"{count} samples"
                message = f"{label} has only {samples} in the test split: its accuracy means little"
                warnings.append(ReportWarning("rare_class", message, False))
    return warnings

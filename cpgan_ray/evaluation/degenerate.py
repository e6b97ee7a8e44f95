"""Codes that hide everything because they say nothing, and numbers that rest on too little: what a reader must know first.

A constant code has R2 = 0 and would pass every gate. Privacy by uselessness is no privacy, so a degenerate code is named, and fails
every gate. Codes that are constant on the rows on which attacks are fitted, and not on those on which they are scored, are one way
to make an attack fail; they are caught in the same way.
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
"""Range of a coordinate, relative to its size, that is rounding of float32."""
UNEVEN = 4.0
"""Largest ratio of the spreads of two splits: their samples come from one distribution, and so must their codes."""
MIN_GAIN = 0.01
"""Share of the way from the majority guess to no error that a code must make possible for any classifier."""
MIN_BALANCED_GAIN = 0.05
"""Share of the way from chance to no error by which a balanced accuracy must be above chance to count as an answer."""
MIN_CLASS_ROWS = 10
"""Test samples of a class below which its recall is hardly more than an anecdote."""
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
    """All that a reader must know of codes, the worst first; at most one of the kinds that fail gates.

    codes: `train`, `val`, `test`, each (N, k); logits: (N, L or C) of `test`, or empty for an encoder without a utility head. In
    that case classifiers that are trained here find out whether the task can be answered from its codes.
    """
    found = [constant_code(codes) or too_few_codes(codes["test"], dataset, task) or uneven_code(codes)]
    if found == [None]:
        found = [useless_code(codes, dataset, task, logits=logits, seed=seed)]
    return [warning for warning in found if warning is not None] + rare_classes(dataset, task)


def says_nothing(warnings: Sequence[ReportWarning]) -> bool:
    """Whether no attack could find anything in the codes, so that a tournament would be a waste of hours."""
    return any(warning.kind in ("constant_code", "too_few_codes") for warning in warnings)


def constant_code(codes: Codes) -> ReportWarning | None:
    """A split whose codes are all the same, but for rounding."""
    same = [name for name in ("train", "val", "test") if is_constant(codes[name])]
    if not same:
        return None
    where = "every picture" if len(same) == 3 else f"all pictures of the splits {', '.join(same)}"
    return ReportWarning("constant_code", f"the code is the same for {where}: it is private because it is useless", True)


def is_constant(z: np.ndarray) -> bool:
    """Whether no coordinate of z (N, k) varies by more than float32 rounds at the size of that coordinate."""
    return bool(np.all(np.ptp(z, axis=0) <= NO_VARIATION * np.abs(z).max(axis=0)))


def too_few_codes(z: np.ndarray, dataset: Dataset, task: tuple[str, ...]) -> ReportWarning | None:
    """So few distinct codes (N, k) of the test split that not even a classifier that knows the test labels could do better than the
    majority guess by more than LEAST_GAIN of the way to no error: it answers each code with the commonest label of its samples."""
    code = distinct(z)
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
    message = f"the test split has only {count} distinct code{'s' if count > 1 else ''}, from which no classifier could answer"
    return ReportWarning(
        "too_few_codes", f"{message} the task with more than accuracy {best:.4f} (majority guess {majority:.4f})", True
    )


def distinct(z: np.ndarray) -> np.ndarray:
    """The number (N,) of each row's value among the distinct rows of z (N, k)."""
    rows = np.ascontiguousarray(z + 0.0)  # -0.0 is 0.0
    whole = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    return np.unique(whole, return_inverse=True)[1]


def uneven_code(codes: Codes) -> ReportWarning | None:
    """Codes that vary far more in one split than in another: attacks are fitted on the one and scored on the other."""
    center = np.median(codes["train"], axis=0)
    spread = {name: float(np.abs(codes[name] - center).mean()) for name in ("train", "val", "test")}
    least, most = (pick(spread, key=spread.__getitem__) for pick in (min, max))
    if spread[most] <= UNEVEN * spread[least]:
        return None
    times = f"{spread[most] / spread[least]:.1f} times" if spread[least] else "infinitely"
    message = f"codes of {most} vary {times} as much as those of {least}, though both are of the same kind of pictures"
    return ReportWarning("uneven_code", f"{message}: an attack that is fitted on the one says nothing about the other", True)


def useless_code(
    codes: Codes, dataset: Dataset, task: tuple[str, ...], *, logits: Mapping[str, np.ndarray], seed: int
) -> ReportWarning | None:
    """Answers that are not better than the majority guess: neither their accuracy, by the lower end of its interval over people,
    nor their balanced accuracy, by more than LEAST_BALANCED_GAIN of the way from chance to no error."""
    answered = logits.get("test")
    rows = np.arange(len(dataset.test))
    if answered is None:
        answered, rows = probed(codes, dataset, task)
    y = dataset.test.labels[rows][:, label_columns(dataset, task)]
    identity = dataset.test.identity[rows]
    right = correct_predictions(answered, y)
    gain = right.mean(axis=1) - majority_right(dataset, task)[rows]
    classes = answered.shape[1] if is_multiclass(answered, y) else 2
    low, _ = balanced_accuracy_interval(right, y[:, :, None] == np.arange(classes), identity, seed=seed)
    if mean_interval(gain, identity, seed=seed)[0] > 0 or low > 1 / classes + MIN_BALANCED_GAIN * (1 - 1 / classes):
        return None
    by = "the utility head answers" if "test" in logits else "the best of a linear and a nearest-neighbour classifier of z answers"
    message = f"{by} the task with accuracy {right.mean():.4f}, majority guess {right.mean() - gain.mean():.4f}"
    return ReportWarning(
        "useless_code",
        f"{message}, balanced accuracy {mean_balanced_accuracy(answered, y):.4f}: it is no better for the task than a guess",
        True,
    )


def majority_right(dataset: Dataset, task: tuple[str, ...]) -> np.ndarray:
    """Share (N,) of each test sample's labels that the majority guess answers right."""
    y = dataset.test.labels[:, label_columns(dataset, task)]
    return correct_predictions(majority_logits(dataset, task, rows=len(y)), y).mean(axis=1)


def probed(codes: Codes, dataset: Dataset, task: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Answers (n, L or C) to some test rows (n,) by classifiers of standardised codes, linear and nearest neighbours: of those that
    are trained on training rows the one that is best on validation rows."""
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    rows = {name: np.linspace(0, len(codes[name]) - 1, min(n, len(codes[name]))).astype(int) for name, n in PROBE_ROWS.items()}
    center, scale = codes["train"].mean(axis=0), codes["train"].std(axis=0)
    z = {name: (codes[name][chosen] - center) / np.where(scale > 0, scale, 1) for name, chosen in rows.items()}
    y = {name: task_targets(dataset, task, split=name)[chosen] for name, chosen in rows.items()}
    labels = dataset.val.labels[rows["val"]][:, label_columns(dataset, task)]
    models = [*map(Ridge, PENALTIES), *(KNeighborsRegressor(min(n, len(z["train"]))) for n in NEIGHBOURS)]
    best, found = -1.0, np.zeros(())
    for model in models:
        model.fit(z["train"], y["train"])
        offset = 0.5 if class_names(dataset, task) is None else 0.0
        val, test = (np.asarray(model.predict(z[name])).reshape(len(z[name]), -1) - offset for name in ("val", "test"))
        if (score := float(correct_predictions(val, labels).mean())) > best:
            best, found = score, test
    return found, rows["test"]


def rare_classes(dataset: Dataset, task: tuple[str, ...]) -> list[ReportWarning]:
    """Values of the task's labels of which the test split has fewer than LEAST_CLASS_ROWS samples."""
    names, found = class_names(dataset, task), []
    columns = label_columns(dataset, task)
    for column in columns:
        counts = np.bincount(dataset.test.labels[:, column].astype(np.int64), minlength=2 if names is None else len(names))
        for value, count in enumerate(counts):
            if count < MIN_CLASS_ROWS:
                what = f"{dataset.label_names[column]} = {value if names is None else names[value]}"
                samples = "1 sample" if count == 1 else f"{count} samples"
                message = f"{what} has only {samples} in the test split: accuracies of it mean little"
                found.append(ReportWarning("rare_class", message, False))
    return found

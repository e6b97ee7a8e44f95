"""Tests of the warnings about degenerate codes, which fail gates; useful codes pass, however private they are."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import Dataset, Task, load, task_of, task_targets
from cpgan_ray.data.store import MISSING
from cpgan_ray.evaluation.degenerate import best_accuracy, code_warnings, is_constant, is_uninformative
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, fit_in_process
from cpgan_ray.evaluation.probe import probe_logits
from cpgan_ray.evaluation.scoring import balanced_accuracy_interval
from cpgan_ray.evaluation.tournament import score_attacks
from cpgan_ray.training.accuracy import accuracy, correct_predictions
from tests.mixed import LABELS, STORED, mixed_config

RNG = np.random.default_rng(0)
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(
        Config(cache_dir=tmp_path_factory.mktemp("digits"), data=DataConfig(dataset="digits", final_fraction=0.0)), progress=False
    )


@pytest.fixture(scope="module")
def faces(cache_dir, tiny_config) -> Dataset:
    return load(tiny_config, progress=False)


def size(dataset: Dataset, split: str) -> int:
    return len(getattr(dataset, split))


def answers(dataset: Dataset, split: str, labels: tuple[str, ...] = ()) -> np.ndarray:
    """The true answers of a split as numbers."""
    return task_targets(dataset, task_of(dataset, labels), split=split)


def fails(codes, dataset, *, task=(), logits=None) -> list[str]:
    warnings = code_warnings(codes, dataset, task_of(dataset, task), logits=logits or {}, seed=0)
    return [w.kind for w in warnings if w.fails_gates]


def constant(dataset: Dataset, value: float = 0.0, k: int = 3) -> dict[str, np.ndarray]:
    return {name: np.full((size(dataset, name), k), value, np.float32) for name in SPLITS}


@pytest.mark.parametrize("value", [0.0, 1.0, -3e7])
def test_code_warnings_constant_code_fails(digits, value):
    codes = constant(digits, value)
    codes["test"] = codes["test"] + np.float32(abs(value) * 1e-7) * RNG.normal(size=codes["test"].shape).astype(np.float32)
    warnings = code_warnings(codes, digits, task_of(digits, ()), logits={}, seed=0)
    assert [w.kind for w in warnings] == ["constant_code"] and is_uninformative(warnings)


@pytest.mark.parametrize("split", SPLITS)
def test_code_warnings_code_constant_in_one_split_fails(digits, split):
    codes = {name: answers(digits, name) for name in SPLITS}
    codes[split] = np.zeros_like(codes[split])
    assert fails(codes, digits) == ["constant_code"]


def test_code_warnings_too_few_values_for_ten_classes_fails(digits):
    codes = constant(digits)
    for z in codes.values():
        z[:2] = 1.0  # two pictures differ from all others
    assert fails(codes, digits) == ["too_few_codes"]


def test_code_warnings_uneven_code_fails(digits):
    codes = {name: RNG.normal(size=(size(digits, name), 3)).astype(np.float32) for name in SPLITS}
    codes["train"] *= 0.1
    assert fails(codes, digits) == ["uneven_code"]


def test_code_warnings_random_code_fails_and_label_code_passes(digits, faces):
    for dataset in (digits, faces):
        noise = {name: RNG.normal(size=(size(dataset, name), 4)).astype(np.float32) for name in SPLITS}
        assert fails(noise, dataset) == ["useless_code"]
        label_code = {name: answers(dataset, name) for name in SPLITS}
        assert fails(label_code, dataset) == []


def test_code_warnings_class_number_as_code_passes(digits):
    """A linear classifier cannot infer ten classes from one number, but a nearest-neighbour classifier can."""
    codes = {name: getattr(digits, name).labels[:, :1].astype(np.float32) for name in SPLITS}
    assert fails(codes, digits) == []


def test_code_warnings_majority_answers_fail_and_better_ones_pass(faces):
    task = ("Male",)
    y = answers(faces, "test", task)
    codes = {name: RNG.normal(size=(size(faces, name), 4)).astype(np.float32) for name in SPLITS}
    assert fails(codes, faces, task=task, logits={"test": np.full_like(y, 9.0)}) == ["useless_code"]
    wrong = RNG.random(y.shape) < 0.3
    assert fails(codes, faces, task=task, logits={"test": np.where(wrong, 1 - y, y) - 0.5}) == []


def test_code_warnings_rare_label_needs_balanced_task_targets(faces):
    """Many false alarms on a rare label reduce accuracy, but the answers may still be useful."""
    rare = min(faces.label_names, key=lambda name: abs(answers(faces, "test", (name,)).mean() - 0.25))
    y = answers(faces, "test", (rare,))
    codes = {name: RNG.normal(size=(size(faces, name), 4)).astype(np.float32) for name in SPLITS}
    alarms = np.where((y > 0) | (RNG.random(y.shape) < 0.4), 1.0, -1.0)
    assert (alarms > 0).mean() > y.mean() and 1 - y.mean() > ((alarms > 0) == (y > 0)).mean()
    assert fails(codes, faces, task=(rare,), logits={"test": np.full_like(y, -1.0)}) == ["useless_code"]
    assert fails(codes, faces, task=(rare,), logits={"test": alarms}) == []


@pytest.fixture(scope="module")
def mixed(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(mixed_config(tiny_config, tmp_path_factory.mktemp("mixed")), progress=False)


def test_code_warnings_on_mixed_labels_with_missing_answers(mixed):
    noise = {name: RNG.normal(size=(size(mixed, name), 4)).astype(np.float32) for name in SPLITS}
    assert fails(noise, mixed, task=LABELS) == ["useless_code"]
    assert fails({name: answers(mixed, name, LABELS) for name in SPLITS}, mixed, task=LABELS) == []
    for name, column in zip(LABELS, (0, 2, 8), strict=True):  # a code of one label is useful
        one = {split: answers(mixed, split, LABELS)[:, column : column + 4] for split in SPLITS}
        assert fails(one, mixed, task=LABELS) == [], name


def test_code_warnings_label_without_test_answers_is_named_once(mixed):
    labels = mixed.test.labels.copy()
    labels[:, STORED.index("group")] = MISSING
    partly = dataclasses.replace(mixed, test=dataclasses.replace(mixed.test, labels=labels))
    codes = {name: answers(partly, name, LABELS) for name in SPLITS}
    [warning] = code_warnings(codes, partly, task_of(partly, LABELS), logits={}, seed=0)
    assert warning.message == "all answers of the test split to group are missing: it counts in no accuracy"


def test_probe_learns_each_label_from_its_known_rows(mixed):
    """The codes are the pictures themselves. The ink of a digit is hard to find by its neighbours."""
    task = task_of(mixed, LABELS)
    complete = {name: mixed.splits[name].take(np.arange(size(mixed, name))).reshape(size(mixed, name), -1) for name in SPLITS}
    logits, rows = probe_logits({name: x.astype(np.float32) for name, x in complete.items()}, mixed, task)
    assert logits.shape == (len(rows), task.num_logits)
    assert (accuracy(logits, task.answers(mixed.test)[rows], task) > [0.95, 0.95, 0.35]).all()


def test_best_accuracy_is_that_of_the_most_common_known_answers():
    code = np.array([0, 0, 0, 1, 1, 2])
    assert best_accuracy(code, np.array([3, 3, 1, MISSING, 2, MISSING], np.int8)) == 3 / 4
    assert best_accuracy(code, np.array([0, 0, 0, 0, 0, 1], np.int8)) == 1


def test_code_warnings_without_test_answers_judge_only_the_codes(mixed):
    labels = np.full_like(mixed.test.labels, MISSING)
    unlabelled = dataclasses.replace(mixed, test=dataclasses.replace(mixed.test, labels=labels))
    noise = {name: RNG.normal(size=(size(mixed, name), 4)).astype(np.float32) for name in SPLITS}
    assert fails(noise, unlabelled, task=LABELS) == []
    assert [w.kind for w in code_warnings(noise, unlabelled, task_of(unlabelled, LABELS), logits={}, seed=0)] == ["no_answers"]
    assert fails(constant(mixed), unlabelled, task=LABELS) == ["constant_code"]


def test_balanced_accuracy_interval_contains_scikit_learn_value():
    y, logits = RNG.integers(0, 2, size=(200, 3)), RNG.normal(size=(200, 3))
    y[:, 0] = RNG.random(200) < 0.1
    logits += y
    right = correct_predictions(logits, y, Task.of(["a", "b", "c"]))
    low, high = balanced_accuracy_interval(right, y, np.arange(200), num_values=(2, 2, 2), seed=0)
    assert low < np.mean([balanced_accuracy_score(y[:, i], logits[:, i] > 0) for i in range(3)]) < high < low + 0.2


def test_code_warnings_rare_class_warns_but_passes(faces):
    y = faces.test.labels
    codes = {name: answers(faces, name) for name in SPLITS}
    warnings = code_warnings(codes, faces, task_of(faces, ()), logits={}, seed=0)
    rare = [w.message for w in warnings if w.kind == "rare_class"]
    expected = [n for n, column in zip(faces.label_names, y.T, strict=True) for v in (0, 1) if (column == v).sum() < 10]
    assert len(rare) == len(expected) and all(any(name in line for line in rare) for name in expected)
    assert not any(w.fails_gates for w in warnings)


def test_is_constant_detects_variation_in_any_coordinate():
    z = np.ones((50, 4), np.float32)
    assert is_constant(z) and is_constant(np.zeros((3, 2), np.float32)) and is_constant(z[:1])
    z[7, 2] += 1e-4
    assert not is_constant(z)
    z = np.tile(np.float32([1e7, 0.0]), (50, 1))
    z[7, 1] = 1.0
    assert not is_constant(z), "a large coordinate must not hide a small one"


def test_brief_tournament_on_constant_code_has_zero_r2(faces, tiny_config):
    codes = constant(faces) | {f"{name}_mirrored": np.zeros((size(faces, name), 3), np.float32) for name in ("train", "val")}
    config = dataclasses.replace(tiny_config.attacks, names=("mlp", "resnet_decoder"), attributes=True, identity=True)
    context = EvaluationContext(faces, codes, config, 0)
    todo = attack_specs(config, faces, brief=True)
    result = score_attacks(fit_in_process(todo, context, done=lambda made: None), context)
    assert [e.name for e in todo] == ["ridge", "ridge"]
    assert abs(result.strongest.score.r2) < 0.02

"""Tests of late tasks: heads on codes and answers agree with references, and a code that knows more than its answers shows it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.config import AttackConfig, Config, DataConfig
from cpgan_ray.data import Dataset, Task, load, task_of
from cpgan_ray.data.answers import answer_numbers
from cpgan_ray.data.code_sets import code_sets, split_of
from cpgan_ray.data.store import MISSING
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attributes import infer
from cpgan_ray.evaluation.fitting import EvaluationContext
from cpgan_ray.evaluation.late_tasks import ANSWERS, CODE, TWIN_ANSWERS, LateTasks, late_metrics, late_tasks
from cpgan_ray.evaluation.report.card import late_sentence
from cpgan_ray.evaluation.scoring import resampled_balanced_accuracy, resampled_hits

torch.set_num_threads(1)
TASK, LATE = ("Smiling", "Eyeglasses"), ("Male", "Young")


@pytest.fixture(scope="module")
def dataset(tiny_config: Config) -> Dataset:
    return load(tiny_config, progress=False)


def context_of(dataset: Dataset, *, code: str) -> EvaluationContext:
    """The run's answers are right, and independent of the late label `Male` given by `code`: a code that is noise, the answers, or
    the answers and a noisy copy of the late labels."""
    task, late = task_of(dataset, TASK), task_of(dataset, LATE)
    rng = np.random.default_rng(0)
    answers, codes = {}, {}
    for name in code_sets(dataset):
        split = split_of(name, dataset)
        answers[name] = task.answers(split).astype(np.int16)
        bits = answer_numbers(answers[name], task)
        noise = rng.normal(size=(len(split), 2)).astype(np.float32)
        signal = (2 * late.answers(split) - 1 + 0.5 * noise).astype(np.float32)
        codes[name] = {"noise": noise, "answers": bits, "more": np.concatenate([bits, signal], axis=1)}[code]
    return EvaluationContext(dataset, codes, AttackConfig(), seed=0, labels=TASK, answers=answers, late_labels=LATE)


def measured(context: EvaluationContext, **twin) -> LateTasks:
    result = late_tasks(context, **twin)
    assert result is not None
    return result


@pytest.fixture(scope="module")
def more(dataset: Dataset) -> LateTasks:
    context = context_of(dataset, code="more")
    return measured(context, twin=context.answers)


def test_code_with_late_label_is_worth_more_than_answers(more):
    inputs = more.as_json()["inputs"]
    assert inputs[CODE]["balanced_accuracy"] > 0.9
    assert inputs[ANSWERS]["balanced_accuracy"] < 0.75
    assert inputs[ANSWERS]["gain"] == pytest.approx(inputs[CODE]["balanced_accuracy"] - inputs[ANSWERS]["balanced_accuracy"])
    assert 0.1 < inputs[ANSWERS]["gain_low"] < inputs[ANSWERS]["gain"] < inputs[ANSWERS]["gain_high"]
    assert inputs[TWIN_ANSWERS] == inputs[ANSWERS], "the same numbers, the same heads"
    assert (inputs[CODE]["numbers"], inputs[ANSWERS]["numbers"]) == (4, 2)


def test_code_of_answers_has_no_gain_and_noise_is_at_chance(dataset):
    inputs = measured(context_of(dataset, code="answers")).as_json()["inputs"]
    assert inputs[ANSWERS]["gain"] == inputs[ANSWERS]["gain_low"] == inputs[ANSWERS]["gain_high"] == 0
    inputs = measured(context_of(dataset, code="noise")).as_json()["inputs"]
    assert inputs[CODE]["balanced_accuracy_low"] < 0.5 < inputs[CODE]["balanced_accuracy_high"]


def test_numbers_of_late_tasks_are_those_of_scikit_learn(more):
    report = more.as_json()
    for i, row in enumerate(report["labels"]):
        for name, one in more.inferred.items():
            y, right = one.labels[:, i], one.right[:, i]
            expected = balanced_accuracy_score(y, np.where(right, y, 1 - y))
            assert row[name]["balanced_accuracy"] == pytest.approx(expected)
            assert row[name]["low"] <= expected <= row[name]["high"]
    assert [row["name"] for row in report["labels"]] == list(LATE)
    of_code = report["inputs"][CODE]
    assert of_code["accuracy"] == pytest.approx(more.inferred[CODE].right.mean())
    assert of_code["balanced_accuracy"] == pytest.approx(np.mean([row[CODE]["balanced_accuracy"] for row in report["labels"]]))
    assert of_code["balanced_accuracy_low"] < of_code["balanced_accuracy"] < of_code["balanced_accuracy_high"]


def test_heads_are_as_good_as_logistic_regression():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 3))
    z = {name: rng.normal(size=(rows, 8)).astype(np.float32) for name, rows in (("fit", 4000), ("tune", 1000), ("score", 4000))}
    y = {name: (x @ weights + 2 * rng.logistic(size=(len(x), 3)) > [0, 1, 3]).astype(np.int8) for name, x in z.items()}
    inferred = infer({name: torch.from_numpy(x) for name, x in z.items()}, y, of=Task.of(("a", "b", "c")), seed=0)
    assert inferred is not None
    for i in range(3):
        reference = LogisticRegression(class_weight="balanced").fit(z["fit"], y["fit"][:, i])
        expected = balanced_accuracy_score(y["score"][:, i], reference.predict(z["score"]))
        assert expected > 0.65
        assert inferred.balanced_accuracy[i] == pytest.approx(expected, abs=0.02)


def test_resampled_balanced_accuracy_is_the_mean_recall_of_each_sample():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, size=(60, 2)).astype(np.int8)
    y[:5, 0] = MISSING
    right, people = (rng.random((60, 2)) < 0.7) & (y != MISSING), np.arange(60) // 2
    samples = resampled_balanced_accuracy(right, y, people, num_values=(2, 2), seed=0)
    hits = resampled_hits(right, y, people, num_values=(2, 2), seed=0)
    expected = np.mean([(h / n).mean(axis=1) for h, n in hits], axis=0)
    assert samples == pytest.approx(expected)


def test_missing_answers_to_a_late_label_do_not_count(dataset):
    context = context_of(dataset, code="more")
    column = task_of(dataset, LATE).columns[0]
    labels = dataset.test.labels.copy()
    labels[: len(labels) // 2, column] = MISSING
    incomplete = replace(dataset, test=replace(dataset.test, labels=labels))
    one = measured(replace(context, dataset=incomplete)).inferred[CODE]
    assert (one.labels[:, 0] == MISSING).sum() == len(labels) // 2
    known = one.labels[:, 0] != MISSING
    assert not one.right[~known, 0].any() and one.right[known, 0].mean() > 0.9


def test_late_metrics_are_in_the_dictionary(more):
    values = late_metrics({"late_tasks": more.as_json()})
    names = {name.replace("/answers/", "/<name>/").replace("/twin_answers/", "/<name>/") for name in values}
    assert names == {name for name in DICTIONARY if name.startswith("late/")}
    assert late_metrics({}) == late_metrics({"late_tasks": None}) == {}


def test_card_says_what_a_code_is_worth_for_late_tasks(more):
    sentence = late_sentence(more.as_json())
    gain = more.as_json()["inputs"][ANSWERS]["gain"]
    assert sentence.startswith("Of 2 labels that were no part of the task")
    assert f"{100 * gain:+.1f} points" in sentence and "the undefended twin's answers" in sentence


def test_run_without_late_labels_or_answers(dataset):
    context = context_of(dataset, code="more")
    assert late_tasks(replace(context, late_labels=())) is None
    assert measured(replace(context, answers={})).inferred.keys() == {CODE}


def test_late_label_of_the_task_is_refused():
    with pytest.raises(InputError, match="data.labels and data.late_labels both have 'Male'"):
        DataConfig(labels=("Smiling", "Male"), late_labels=("Male",))

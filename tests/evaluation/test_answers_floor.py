"""Tests of the answers floor, and of the check of the tournament that it allows."""

from dataclasses import replace

import numpy as np
import pytest

from cpgan_ray.config import AttackConfig, AttackJob, Config
from cpgan_ray.data import Dataset, load, task_of
from cpgan_ray.data.answers import answer_numbers
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.evaluation.fitting import (
    ANSWERS,
    AttackSpec,
    EvaluationContext,
    answers_attacks,
    attack_specs,
    fit_in_process,
    fit_stacks,
    hard_answers,
)
from cpgan_ray.evaluation.report.paired import read_rows, write_rows
from cpgan_ray.evaluation.report.report import reference_rows, rows_of
from cpgan_ray.evaluation.tournament import TournamentResult, score_attacks
from cpgan_ray.evaluation.tournament_numbers import as_json, failed_tournament, metrics
from cpgan_ray.pipelines.gates import gate_failures

SMALL = AttackConfig(
    names=("ridge", "kernel", "stack"), fit_fractions=(), kernel_features=32, identity=False, attributes=False, similarity=False
)


def context_of(dataset: Dataset, *, code: str, config: AttackConfig = SMALL) -> EvaluationContext:
    """The run's answers say which parts of the picture are bright; the code is noise, the answers, or these and the parts."""
    task = task_of(dataset, ())
    sets = code_sets(dataset)
    parts = {name: pixels(code_set) for name, code_set in sets.items()}
    level, count = np.median(parts["train"], axis=0), len(task.labels)
    answers = {name: (x > level)[:, np.arange(count) % x.shape[1]].astype(np.int16) for name, x in parts.items()}
    rng = np.random.default_rng(0)
    noise = {name: rng.normal(size=(len(code_set), 3)).astype(np.float32) for name, code_set in sets.items()}
    bits = {name: answer_numbers(own, task) for name, own in answers.items()}
    both = {name: np.concatenate([bits[name], parts[name]], axis=1) for name in sets}
    return EvaluationContext(dataset, {"noise": noise, "answers": bits, "both": both}[code], config, seed=0, answers=answers)


def pixels(code_set) -> np.ndarray:
    x = np.concatenate(list(code_set.blocks()))
    b, h, w, c = x.shape
    return x.reshape(b, h // 8, 8, w // 8, 8, c).mean(axis=(2, 4)).reshape(b, -1).astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tiny_config: Config) -> Dataset:
    return load(tiny_config, progress=False)


def tournament(context: EvaluationContext) -> TournamentResult:
    specs = attack_specs(context.config, context.dataset, answers=context.has_answers)
    attacks = fit_in_process(specs, context, done=lambda _: None)
    return score_attacks(attacks + fit_stacks(attacks, context, done=lambda _: None), context)


@pytest.fixture(scope="module")
def failed(dataset: Dataset) -> TournamentResult:
    return tournament(context_of(dataset, code="noise"))


@pytest.fixture(scope="module")
def passed(dataset: Dataset) -> TournamentResult:
    return tournament(context_of(dataset, code="both"))


def test_attack_specs_of_answers_are_those_that_attack_z(dataset):
    specs = attack_specs(SMALL, dataset, answers=True)
    assert {s.name for s in specs if s.variant == ANSWERS} == {"ridge", "kernel"}
    assert not any(s.counts for s in specs if s.variant == ANSWERS)
    assert not [s for s in attack_specs(SMALL, dataset) if s.variant == ANSWERS]
    nearest = attack_specs(replace(SMALL, names=("nearest",)), dataset, answers=True)
    assert [s.name for s in nearest if s.variant == ANSWERS] == ["ridge"]
    brief = attack_specs(SMALL, dataset, answers=True, brief=True)
    assert AttackSpec("ridge", ANSWERS) in brief and len(brief) == 3


def test_excess_is_over_the_answers_floor(passed, tmp_path):
    values, report = metrics(passed), as_json(passed)
    floor = values["privacy/answers_floor_r2"]
    assert 0.05 < floor < values["privacy/strongest_r2"]
    assert values["privacy/excess_r2"] == pytest.approx(values["privacy/strongest_r2"] - floor)
    assert values["privacy/label_excess_r2"] == pytest.approx(values["privacy/strongest_r2"] - values["privacy/label_floor_r2"])
    assert report["privacy"]["excess"]["verdict"] == "more"
    assert report["answers_floor"]["low"] <= floor <= report["answers_floor"]["high"]
    assert any(row["name"].startswith("answers floor") and row["r2"] == floor for row in reference_rows(passed, None))
    assert failed_tournament(passed) is None and not report["privacy"]["weaker_than_answers"]
    write_rows(tmp_path, rows_of(passed, None))
    rows = read_rows(tmp_path)
    assert rows.answers_floor is not None and rows.answers_floor.r2 == pytest.approx(floor)
    assert rows.floor is not None and rows.floor.r2 == pytest.approx(values["privacy/label_floor_r2"])


def test_tournament_below_its_answers_is_not_saturated(failed):
    assert failed.strongest.score.r2 < 0.05
    report = as_json(failed)
    assert report["privacy"]["weaker_than_answers"] and report["privacy"]["excess"]["verdict"] == "less"
    assert not any(row["saturated"] for row in report["attacks"])
    warning = failed_tournament(failed)
    assert warning is not None and "the attacks on z have failed" in warning.message and not warning.fails_gates
    gated = report | {"warnings": [vars(warning)]}
    assert gate_failures(gated, AttackJob(fail_above=1.0)) == (warning.message,), "a lower bound passes no gate"


def test_answers_floor_is_left_out_on_request_or_without_answers(dataset):
    assert not context_of(dataset, code="both", config=replace(SMALL, answers_floor=False)).has_answers
    context = context_of(dataset, code="both")
    assert context.has_answers
    assert not replace(context, answers={name: context.answers[name] for name in ("val", "test")}).has_answers


def test_attacks_on_a_code_of_answers_are_fitted_once(dataset):
    context = context_of(dataset, code="answers")
    specs = attack_specs(SMALL, dataset, answers=True)
    on_z = fit_in_process([s for s in specs if s.counts], context, done=lambda _: None)
    shared = answers_attacks(specs, on_z, context)
    assert {(a.spec.name, a.spec.variant) for a in shared} == {("ridge", ANSWERS), ("kernel", ANSWERS)}
    assert all(any(a.fitted is b.fitted for b in on_z) for a in shared)
    assert not context_of(dataset, code="both").sends_answers


def test_hard_answers_are_the_signs_and_largest_logits(dataset):
    task = task_of(dataset, ())
    logits = {"test": np.random.default_rng(0).normal(size=(5, task.num_logits))}
    assert np.array_equal(hard_answers(logits, task)["test"], logits["test"] > 0)
